from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import conf
from harness.config import EvalConfig, MediaConfig
from harness.evaluation import protocol
from harness.evaluation.protocol import eval_sampling, generation_kwargs, protocol_hash, protocol_settings
from harness.rollout.base import Sampling

CHANGED = {
    "suite": "other", "levels": [1], "num_questions": 7, "seed": 1, "temperature": 0.7, "top_p": 0.9, "top_k": 5,
    "min_p": 0.1, "presence_penalty": 0.5, "repetition_penalty": 1.1, "max_response_tokens": 9,
    "tasks": ["bar_clip"], "media": MediaConfig(max_pixels=300_000),
}  # fmt: skip


@pytest.mark.parametrize("name", [f.name for f in fields(EvalConfig) if f.name != "every"])
def test_every_option_that_can_change_a_score_changes_the_hash(name: str) -> None:
    changed = replace(EvalConfig(), **{name: CHANGED[name]})
    assert protocol_hash(changed, "math_verify") != protocol_hash(EvalConfig(), "math_verify")


def test_how_often_is_evaluated_is_no_part_of_the_protocol() -> None:
    assert protocol_hash(EvalConfig(every=5), "math_verify") == protocol_hash(EvalConfig(), "math_verify")


def test_grader_closing_and_task_version_change_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = {protocol_hash(EvalConfig(), grader) for grader in ("math_verify", "mathruler")}
    monkeypatch.setattr(protocol, "CLOSING", "Answer.")
    hashes.add(protocol_hash(EvalConfig(), "math_verify"))
    monkeypatch.setattr(protocol, "TASK_VERSION", 2)
    hashes.add(protocol_hash(EvalConfig(), "math_verify"))
    assert len(hashes) == 4


def test_a_whole_number_and_its_float_are_one_protocol() -> None:
    assert protocol_hash(EvalConfig(temperature=0), "math_verify") == protocol_hash(
        EvalConfig(temperature=0.0), "math_verify"
    )


def test_hash_is_the_same_in_another_process_which_needs_neither_torch_nor_a_library() -> None:
    program = (
        "import sys; from harness.config import EvalConfig; from harness.evaluation.protocol import protocol_hash; "
        "import harness.evaluation.suites; "
        "assert not {'torch', 'lm_eval', 'lmms_eval', 'datasets', 'PIL'} & sys.modules.keys(); "
        "print(protocol_hash(EvalConfig(), 'math_verify'))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == protocol_hash(EvalConfig(), "math_verify")
    assert re.fullmatch("[0-9a-f]{12}", output.strip())


def test_settings_are_the_options_and_what_stands_around_them() -> None:
    settings = protocol_settings(EvalConfig(suite="mini", tasks=["bar_chart", "bar_clip"]), "mathruler")
    assert settings == {
        "suite": "mini",
        "tasks": ["bar_chart", "bar_clip"],
        "levels": [1, 2, 3, 4],
        "num_questions": 200,
        "seed": 0,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0.0,
        "presence_penalty": 1.5,
        "repetition_penalty": 1.0,
        "max_response_tokens": 12_288,
        "media": {
            "min_pixels": 262_144,
            "max_pixels": 1_310_720,
            "fps": 2.0,
            "num_frames": None,
            "max_frames": 768,
        },
        "closing": protocol.CLOSING,
        "task_version": 1,
        "grader": "mathruler",
    }


def test_the_default_decoding_is_the_published_one() -> None:
    assert eval_sampling(EvalConfig()) == Sampling(
        num_rollouts=1,
        seed=0,
        step=0,
        temperature=0.6,
        top_p=0.95,
        top_k=20,
        min_p=0.0,
        presence_penalty=1.5,
        repetition_penalty=1.0,
        max_new_tokens=12_288,
    )


def test_every_decoding_option_reaches_the_sampler() -> None:
    config = EvalConfig(
        seed=3, temperature=0.7, top_p=0.8, top_k=9, min_p=0.02, presence_penalty=0.4, repetition_penalty=1.2,
        max_response_tokens=11,
    )  # fmt: skip
    assert eval_sampling(config) == Sampling(
        num_rollouts=1, seed=3, step=0, temperature=0.7, top_p=0.8, top_k=9, min_p=0.02, presence_penalty=0.4,
        repetition_penalty=1.2, max_new_tokens=11,
    )  # fmt: skip
    assert generation_kwargs(config) == {
        "until": [],
        "do_sample": True,
        "max_gen_toks": 11,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 9,
        "min_p": 0.02,
        "presence_penalty": 0.4,
        "repetition_penalty": 1.2,
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "mini",
            EvalConfig(suite="mini", temperature=0.0, top_p=1.0, top_k=0, presence_penalty=0.0, max_response_tokens=48),
        ),
        ("none", EvalConfig()),
    ],
)
def test_option_files(name: str, expected: EvalConfig) -> None:
    options = OmegaConf.load(Path(conf.__file__).parent / "eval" / f"{name}.yaml")
    assert OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(EvalConfig), options)) == expected
