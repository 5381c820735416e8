"""Whole runs with a teacher behind an endpoint: the loopback server gives a real model's answers over real HTTP."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from harness.compose import compose
from harness.config import ModelConfig, from_hydra
from harness.errors import RunInterrupted, UserError
from harness.rollout.loopback import Fault, ServedModel, serve
from harness.run import build_method, run
from harness.run_folder import RunFolder
from harness.testing import assert_same_run

SMALL = [
    "student=tiny_xs", "teacher=tiny_teacher", "eval=none", "data.batch_size=4", "data.pool_size=16", "steps=2",
    "data.num_questions=40", "data.levels=[2]", "method.group_size=4", "rollout.max_response_tokens=24",
    "num_threads=1", "checkpoint_every=1", "server.max_wait=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def teacher() -> ServedModel:
    return ServedModel(ModelConfig(name="teacher", path="tiny:teacher", dtype="float32"))


def config_of(outputs: Path, *overrides: str):
    return from_hydra(compose([*SMALL, f"outputs={outputs}", *overrides]))


def start(outputs: Path, url: str, method: str, *overrides: str) -> Path:
    return run(config_of(outputs, f"teacher.urls=[{url}]", f"method={method}", *overrides))


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["off_policy_kd", "on_policy_kd"])
def test_distillation_from_a_served_teacher_is_close_to_the_exact_one(tmp_path, teacher, method):
    """64 of the 300 tokens and a tail bucket: the divergence can only lose, and at this size loses little."""
    with serve(teacher) as server:
        served = start(tmp_path / "served", server.url, method, "update.learning_rate=1e-6")
    exact = run(config_of(tmp_path / "exact", f"method={method}", "update.learning_rate=1e-6"))
    first, other = rows_of(served)[0], rows_of(exact)[0]
    assert RunFolder.read_info(served)["status"] == "done"
    if method == "on_policy_kd":  # the same student draws; a served teacher draws by its own generator
        assert 0 < first["train/loss"] <= other["train/loss"] + 1e-6
        assert first["train/loss"] == pytest.approx(other["train/loss"], rel=0.02)
    else:
        assert first["tokens/teacher_generated"] > 0 and first["train/loss"] > 0


def test_a_teacher_that_fails_in_a_step_and_comes_back_changes_nothing(tmp_path, teacher):
    with serve(teacher) as server:
        whole = start(tmp_path / "a", server.url, "zppo")
        count = len(server.requests)

    def plan(number, body):
        faults = {1: Fault(drop=True), 2: Fault(status=503), 4: Fault(body="no json"), count // 2: Fault(drop=True)}
        return faults.get(number)

    with serve(teacher, plan=plan) as server:
        troubled = start(tmp_path / "b", server.url, "zppo")
        assert len(server.requests) > count  # what failed was asked again
    assert_same_run(whole, troubled)


def test_a_teacher_that_is_gone_interrupts_the_run_and_another_endpoint_goes_on(tmp_path, teacher):
    with serve(teacher) as server:
        whole = start(tmp_path / "a", server.url, "zppo")
        count = len(server.requests)
    gone = lambda number, body: Fault(drop=True) if number >= count - 2 else None  # noqa: E731
    with serve(teacher, plan=gone) as server, pytest.raises(RunInterrupted, match="launch"):
        start(tmp_path / "b", server.url, "zppo")
    (folder,) = (path.parent for path in (tmp_path / "b").rglob("run.json"))
    info = RunFolder.read_info(folder)
    assert info["status"] == "interrupted" and server.url in info["error"]
    assert [row["step"] for row in rows_of(folder)] == [1]
    with serve(teacher) as server:  # on another port
        assert start(tmp_path / "b", server.url, "zppo") == folder
    assert [row["step"] for row in rows_of(folder)] == [1, 2]
    assert sorted(p.name for p in (folder / "rollouts").iterdir()) == ["step-000001.parquet", "step-000002.parquet"]
    assert_same_run(whole, folder)


def test_an_endpoint_that_gives_text_alone_serves_methods_that_read_text(tmp_path, teacher):
    with serve(teacher) as server:
        folder = start(tmp_path, server.url, "zppo", "teacher.api=text", "steps=1")
    frame = pd.read_parquet(folder / "rollouts" / "step-000001.parquet")
    assert (frame["sampler"] == "teacher").any() and not frame[frame["sampler"] == "teacher"]["trained"].any()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=on_policy_kd", "teacher.api=text"], "reads the teacher's distribution.*teacher.api=text"),
        (["method=off_policy_kd", "teacher.api=text"], "teacher.api=text"),
        (["method=prefix", "teacher.api=text"], None),
        (["method=on_policy_kd", "rollout.temperature=0.7"], "rollout.temperature=1"),
        (["method=on_policy_kd", "teacher_process=true"], "teacher_process=false"),
        (["method=zppo", "teacher.api=text"], None),
    ],
)
def test_what_an_endpoint_cannot_give_is_refused_before_anything_loads(tmp_path, overrides, message):
    config = config_of(tmp_path, "teacher.urls=[http://127.0.0.1:9/v1]", *overrides)
    if message is None:
        assert build_method(config) is not None
        return
    with pytest.raises(UserError, match=message):
        build_method(config)


def test_a_student_behind_an_endpoint_is_evaluated(tmp_path, teacher):
    with serve(teacher) as server:
        overrides = ["method=base", "rollout=server", f"student.urls=[{server.url}]", "student.path=tiny:teacher"]
        suite = ["eval=mini", "eval.tasks=[arithmetic]", "eval.levels=[1]", "eval.num_questions=8"]
        config = from_hydra(compose(["student=tiny_xs", f"outputs={tmp_path}", *overrides, *suite]))
        folder = run(config)
    scores = pd.read_csv(folder / "eval" / "mini" / "scores.csv")
    assert scores["n"].tolist() == [8] and scores["score"].tolist() == [100.0]


def test_a_teacher_in_a_process_of_its_own_is_the_same_teacher(tmp_path):
    runs = [
        run(config_of(tmp_path / value, "method=on_policy_kd", "steps=1", f"teacher_process={value}"))
        for value in ("false", "true")
    ]
    assert_same_run(*runs)
