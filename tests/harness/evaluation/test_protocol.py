from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields, replace
from importlib.metadata import version
from typing import Any

import pytest

from harness.config.compose import compose
from harness.config.evaluation import EvalJudgeConfig, MediaConfig
from harness.config.schema import EvalConfig, from_hydra
from harness.evaluation import protocol
from harness.evaluation.protocol import (
    NO_PART,
    Setup,
    answered_by,
    card_hash,
    eval_sampling,
    evaluation_card,
)
from harness.evaluation.suites import Benchmark, load_suite
from harness.rollout.base import Sampling
from harness.types import Question
from methods.prompts import CLOSING

QUESTIONS = (
    Question(id="a", text="Compute 1+1.", answer="2"),
    Question(id="b", text="Compute 1+2.", answer="3", metadata={"level": 1}),
)
BENCHMARK = Benchmark(name="sums", family="LLM", questions=QUESTIONS)
SETUP = Setup(engine="transformers", dtype="float32", enable_thinking=False)
CHANGED = {
    "seed": 1, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "presence_penalty": 0.5,
    "repetition_penalty": 1.1, "max_response_tokens": 9, "media": MediaConfig(max_pixels=300_000),
}  # fmt: skip


def hash_of(benchmark: Benchmark = BENCHMARK, grader: str = "math_verify", **options: Any) -> str:
    return card_hash(evaluation_card(benchmark, EvalConfig(**options), grader))


@pytest.mark.parametrize("name", [f.name for f in fields(EvalConfig) if f.name not in NO_PART])
def test_every_option_of_answering_changes_the_hash(name: str) -> None:
    assert hash_of(**{name: CHANGED[name]}) != hash_of()


def test_what_only_chooses_benchmarks_is_no_part_of_a_card() -> None:
    assert hash_of(every=5, suite="mini", columns=["x"], data_root="/data", stage="judge", limit=3) == hash_of()


@pytest.mark.parametrize(
    "change",
    [
        {"id": "c"},
        {"text": "Compute 1 + 1."},
        {"answer": "3"},
        {"metadata": {"level": 2}},
        {"messages": ({"role": "user", "content": "Hello."},)},
    ],
)
def test_a_changed_question_changes_the_hash(change: dict[str, Any]) -> None:
    assert hash_of(replace(BENCHMARK, questions=(replace(QUESTIONS[0], **change), QUESTIONS[1]))) != hash_of()


def test_fewer_questions_and_another_scoring_change_the_hash() -> None:
    changed = [{"questions": QUESTIONS[:1]}, {"scoring": "exact_judge"}, {"dataset": "owner/name"}, {"name": "other"}]
    hashes = {hash_of(replace(BENCHMARK, **change)) for change in changed}
    assert len(hashes | {hash_of()}) == 5


def test_the_judge_is_part_of_the_card_where_one_is_asked() -> None:
    asked = EvalJudgeConfig(url="http://localhost:1/v1")
    judged = replace(BENCHMARK, judge="shared", scoring="exact_judge")
    assert hash_of(judge=asked) == hash_of()
    hashes = {
        hash_of(judged),
        hash_of(judged, judge=asked),
        hash_of(judged, judge=replace(asked, model="other")),
        hash_of(judged, judge=replace(asked, when="unparsed")),
        hash_of(judged, judge=replace(asked, max_tokens=64)),
    }
    assert len(hashes) == 5
    elsewhere = replace(asked, url="http://localhost:2/v1", retries=9, timeout=1.0, concurrency=1)
    assert hash_of(judged, judge=elsewhere) == hash_of(judged, judge=asked)


def test_grader_closing_and_task_version_change_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = {hash_of(), hash_of(grader="mathruler")}
    monkeypatch.setattr("methods.prompts.CLOSING", "Answer.")
    hashes.add(hash_of())
    monkeypatch.setattr(protocol, "TASK_VERSION", 99)
    hashes.add(hash_of())
    assert len(hashes) == 4


@pytest.mark.parametrize("parser", ["math-verify", "latex2sympy2-extended", "sympy"])
def test_another_version_of_a_parser_is_another_protocol(parser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, known = hash_of(), answered_by(SETUP, "math_verify")
    versions = {parser: "0.0.1"}
    monkeypatch.setattr(protocol.metadata, "version", lambda name: versions.get(name) or version(name))
    assert hash_of() != before and answered_by(SETUP, "math_verify") != known
    assert answered_by(SETUP, "mathruler") != known


@pytest.mark.parametrize("change", [{"engine": "vllm"}, {"dtype": "bfloat16"}, {"enable_thinking": True}])
def test_how_a_model_computes_is_part_of_card_and_key(change: dict[str, Any]) -> None:
    other = replace(SETUP, **change)
    cards = [evaluation_card(BENCHMARK, EvalConfig(), "math_verify", setup) for setup in (SETUP, other)]
    assert card_hash(cards[0]) != card_hash(cards[1]) and cards[1].items() >= change.items()
    assert answered_by(SETUP, "math_verify") != answered_by(other, "math_verify")


def test_the_setup_of_a_run_is_its_students() -> None:
    words = ["method=base", "student=tiny_s", "student.enable_thinking=true", "student.dtype=float16"]
    assert Setup.of(from_hydra(compose(words))) == Setup(engine="transformers", dtype="float16", enable_thinking=True)
    served = [*words, "rollout=server", "student.urls=[http://127.0.0.1:9/v1]"]
    assert Setup.of(from_hydra(compose(served))) == Setup(engine="server", enable_thinking=True)  # whatever they serve


def test_a_whole_number_and_its_float_are_one_protocol() -> None:
    assert hash_of(temperature=0) == hash_of(temperature=0.0)


def test_hash_is_the_same_in_another_process_which_needs_neither_torch_nor_a_library() -> None:
    program = (
        "import sys; from harness.config.schema import EvalConfig; from harness.evaluation.protocol import *; "
        "from harness.evaluation.suites import load_suite; "
        "config = EvalConfig(suite='mini', mini_tasks=['arithmetic'], levels=[2], num_questions=3); "
        "benchmark, = load_suite(config).benchmarks; "
        "assert not {'torch', 'lm_eval', 'lmms_eval', 'datasets', 'PIL'} & sys.modules.keys(); "
        "print(card_hash(evaluation_card(benchmark, config, 'math_verify')))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    config = EvalConfig(suite="mini", mini_tasks=["arithmetic"], levels=[2], num_questions=3)
    (benchmark,) = load_suite(config).benchmarks
    assert output.strip() == card_hash(evaluation_card(benchmark, config, "math_verify"))
    assert re.fullmatch("[0-9a-f]{12}", output.strip())


@pytest.mark.clause("C105")
def test_a_card_says_what_it_stands_for() -> None:
    card = evaluation_card(BENCHMARK, EvalConfig(), "math_verify")
    assert re.fullmatch("[0-9a-f]{64}", card.pop("questions")) and re.fullmatch("[0-9a-f]{64}", card.pop("prompts"))
    assert card == {
        "benchmark": "sums",
        "dataset": "generated",
        "num_questions": 2,
        "decoding": {
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
        },
        "options": {},
        "closing": CLOSING,
        "scoring": "det",
        "grader": "math_verify",
        "judge": None,
        "task_version": 3,
        "media": None,
        "engine": None,
        "dtype": None,
        "enable_thinking": None,
        "versions": {name: version(name) for name in ("lm-eval", "math-verify", "latex2sympy2-extended", "sympy")},
    }


@pytest.mark.clause("C105")
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
    assert from_hydra(compose(["student=tiny_xs", "recipe=paper", f"eval={name}"])).eval == expected
