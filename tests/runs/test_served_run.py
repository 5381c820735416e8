"""Whole runs whose teacher, or student, is behind an endpoint: the same records and weights, whatever it does."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.commands.evaluate import eval_command
from harness.config.compose import compose
from harness.config.deployment import build_method
from harness.config.schema import ModelConfig, from_hydra
from harness.errors import RunInterrupted, UserError
from harness.records.folder import RunFolder
from harness.run.run import run
from harness.testing import assert_same_run
from harness.testing import run_metrics as metrics
from methods.base import DistillationMethod
from tests.support.http_server import Fault, LoopbackServer, Plan
from tests.support.model_server import ServedModel, serve

SMALL = [
    "student=tiny_xs", "eval=none", "steps=2", "data.batch_size=8", "data.pool_size=24", "data.levels=[2,4]",
    "method.group_size=4", "rollout.max_response_tokens=32", "num_threads=1", "server.concurrency=4", "server.top_k=64",
]  # fmt: skip
ZPPO = [
    "method=zppo", "method.augment_ratio=0.5", "method.teacher_group_size=2", "method.compress_max_tokens=48",
    "data.batch_size=5", "rollout.temperature=1.5",  # at 1 the tiny teacher draws the same reply whatever the seed
]  # fmt: skip
OFF_POLICY = ["method=off_policy_kd", "method.teacher_group_size=2"]
ON_POLICY = ["method=on_policy_kd"]
METHODS = {"zppo": ZPPO, "off_policy_kd": OFF_POLICY, "on_policy_kd": ON_POLICY}


def start(outputs: Path, *overrides: str) -> Path:
    lines = [*SMALL, f"outputs={outputs}", *overrides]
    return run(from_hydra(compose(lines)), overrides=lines)


def asked_at(server: LoopbackServer) -> str:
    return f"teacher.urls=[{server.url}]"


@pytest.fixture(scope="module")
def model() -> ServedModel:
    return ServedModel(ModelConfig(name="loopback", path="tiny:teacher", dtype="float32"))


@pytest.fixture(scope="module")
def server(model):
    with serve(model) as server:
        yield server


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, server) -> Callable[[str], Path]:
    """The run of a method with an endpoint that behaves; each is made once, when it is asked for."""
    return cache(lambda name: start(tmp_path_factory.mktemp(name), *METHODS[name], asked_at(server)))


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """The distribution of a teacher beside the student."""
    return start(tmp_path_factory.mktemp("local"), *ON_POLICY)


@pytest.mark.parametrize("name", ["zppo", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m != "zppo")])
def test_a_served_teacher_trains_the_student(unbroken, name):
    folder = unbroken(name)
    rows = metrics(folder)
    assert RunFolder.read_info(folder)["status"] == "done"
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["train/num_updates"] > 0 for row in rows)
    frame = rollouts(folder)
    theirs = frame[frame["sampler"] == "teacher"]
    for row in rows:
        counted = theirs[theirs["step"] == row["step"]]["num_response_tokens"].sum()
        assert row.get("tokens/teacher_generated", 0) == counted
        assert (counted > 0) == (name != "on_policy_kd")


@pytest.mark.slow
def test_a_served_distribution_is_the_local_one_but_for_its_tail(unbroken, local):
    """Both runs train on the same rollouts in step 1; merging tokens into a tail can only lower a divergence.

    The tiny teacher puts nearly all of its mass on 64 of its tokens.
    """
    served, exact = metrics(unbroken("on_policy_kd"))[0], metrics(local)[0]
    assert served["rollout/accuracy"] == exact["rollout/accuracy"]
    assert served["train/num_tokens"] == exact["train/num_tokens"]
    assert served["train/loss"] <= exact["train/loss"] + 1e-6
    assert served["train/loss"] == pytest.approx(exact["train/loss"], rel=0.01)
    assert served["train/grad_norm"] == pytest.approx(exact["train/grad_norm"], rel=0.02)


@pytest.mark.slow
def test_a_teacher_in_a_process_of_its_own_changes_nothing(tmp_path, local):
    assert_same_run(local, start(tmp_path, *ON_POLICY, "teacher_process=true"))


@pytest.mark.slow
def test_an_endpoint_that_fails_for_a_while_loses_and_repeats_nothing(tmp_path, model, unbroken):
    asked: Counter[str] = Counter()

    def plan(number: int, body: dict[str, Any]) -> Fault | None:
        """Of either kind of request a few are dropped, refused for now, or answered with rubbish."""
        kind = kind_of(body)
        asked[kind] += 1
        faults = {
            3: Fault(drop=True),
            4: Fault(status=500, retry_after="0.1"),
            6: Fault(status=429, retry_after="0"),
            7: Fault(body="<html>", retry_after="0"),
        }
        return faults.get(asked[kind])

    with serve(model, plan=plan) as server:
        broken = start(tmp_path, *OFF_POLICY, asked_at(server))
    assert set(asked) == {"sample", "score"}
    assert min(asked.values()) > 7, "not every fault was reached"
    assert_same_run(unbroken("off_policy_kd"), broken)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"), [pytest.param("zppo", "sample", marks=pytest.mark.slow), ("off_policy_kd", "score")]
)
def test_a_run_whose_endpoint_dies_goes_on_at_another(tmp_path, model, unbroken, name, kind):
    lines = [*METHODS[name], "checkpoint.every=1", "server.max_wait=2"]
    whole = unbroken(name)
    folder = tmp_path / whole.relative_to(whole.parents[3])
    with serve(model) as server:
        server.plan = dies(server, lambda body: kind_of(body) == kind and (folder / "metrics.jsonl").exists())
        with pytest.raises(RunInterrupted, match=r"has not answered for 2 s .* launch the same command again to go on"):
            start(tmp_path, *lines, asked_at(server))
        first = server.url
    info = RunFolder.read_info(folder)
    assert info["status"] == "interrupted"
    assert f"the teacher's endpoint {first} has not answered" in info["error"]
    assert [row["step"] for row in metrics(folder)] == [1]
    with serve(model) as server:
        assert server.url != first
        assert start(tmp_path, *lines, asked_at(server)) == folder
    info = RunFolder.read_info(folder)
    assert (info["status"], info["error"]) == ("done", None)
    assert [row["step"] for row in metrics(folder)] == [1, 2]
    assert Counter(rollouts(folder)["step"]).keys() == {1, 2}
    assert_same_run(whole, folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for key in ("tokens/student_generated", "tokens/teacher_generated"):
        assert info["cost"][key] == sum(row[key] for row in rows)


@pytest.mark.slow
def test_methods_that_read_replies_take_a_teacher_of_text_alone(tmp_path, model):
    with serve(model) as server:
        folder = start(tmp_path, *ZPPO, asked_at(server), "teacher.api=text")
        assert all("messages" in body and "prompt" not in body for body in server.requests)
    rows = metrics(folder)
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["tokens/teacher_generated"] > 0 and row["bcq/prompts"] > 0 for row in rows)
    assert all(value == value for row in rows for value in row.values()), "its missing log-probabilities are in metrics"


class Tempered(DistillationMethod):
    """Compares distributions at the temperature of sampling."""

    def logit_temperature(self, sampling):
        return sampling

    def credit(self, groups):
        return []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([*OFF_POLICY, "teacher.api=text"], r"off_policy_kd reads the teacher's distribution.*teacher.api=tokens"),
        (["method=on_policy_kd", "teacher.api=text"], r"on_policy_kd reads the teacher's distribution.*api=tokens"),
        (["method=grpo_teacher_response", "teacher.api=text"], r"trains the teacher's tokens.*teacher.api=tokens"),
        (
            ["method._target_=tests.runs.test_served_run:Tempered", "rollout.temperature=0.7"],
            r"temperature=0.7.*set rollout.temperature=1",
        ),
        (["method=on_policy_kd", "teacher_process=true"], r"teacher_process=true.*set teacher_process=false"),
    ],
)
def test_what_a_served_teacher_cannot_give_is_refused_before_anything_is_loaded(tmp_path, options, message):
    lines = [*SMALL, *options, f"outputs={tmp_path}", "teacher.urls=[http://127.0.0.1:9/v1]"]
    with pytest.raises(UserError, match=message) as caught:
        run(from_hydra(compose(lines)))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())  # no folder of a run either


CAN = (
    ZPPO, [*ZPPO, "teacher.api=text"], ["method=prefix", "teacher.api=text"],
    ["method=sft", "teacher.api=text"], ["method=on_policy_kd", "rollout.temperature=0.7"],
)  # fmt: skip


@pytest.mark.parametrize("options", CAN)
def test_what_it_can_give_is_not_refused(options):
    lines = [*SMALL, *options, "teacher.urls=[http://127.0.0.1:9/v1]"]
    assert build_method(from_hydra(compose(lines))) is not None


MINI = ["eval.mini_tasks=[arithmetic]", "eval.levels=[1]", "eval.num_questions=8", "rollout=server", "num_threads=1"]


@pytest.mark.parametrize(
    "api", [pytest.param("tokens", marks=pytest.mark.slow), "text"]
)  # the next test asks for tokens
def test_a_served_student_is_evaluated(tmp_path, server, api):
    """The tiny teacher as the student of a row `base`; its weights are not loaded."""
    lines = [
        "method=base", "student=hf", "student.name=api", "student.path=tiny:teacher", "student.dtype=float32",
        f"student.urls=[{server.url}]", f"student.api={api}", "eval=mini", *MINI, f"outputs={tmp_path}",
    ]  # fmt: skip
    folder = run(from_hydra(compose(lines)), overrides=lines)
    scores = pd.read_csv(folder / "eval" / "mini" / "scores.csv")
    assert list(scores["n"]) == [8]
    assert scores["score"][0] > 50.0  # it was trained on these


@pytest.mark.slow
def test_eval_command_asks_an_endpoint(tmp_path, server, model):
    asked_before = len(server.requests)
    words = ["model=tiny:teacher", *MINI, f"student.urls=[{server.url}]", "student.dtype=float32"]
    text = eval_command([*words, f"outputs={tmp_path}"])
    assert len(server.requests) == asked_before + 1 + 8  # the run's first token is a probe
    local = eval_command([*words[:1], *MINI[:3], "num_threads=1", "student.dtype=float32", f"outputs={tmp_path / 'b'}"])
    assert text.splitlines()[:-1] == local.splitlines()[:-1]  # greedy: the scores of the model itself


def rollouts(folder: Path) -> pd.DataFrame:
    return pd.concat(pd.read_parquet(file) for file in sorted((folder / "rollouts").glob("*.parquet")))


def kind_of(body: dict[str, Any]) -> str:
    return "score" if "prompt_logprobs" in body else "sample"


def dies(server: LoopbackServer, counts: Callable[[dict[str, Any]], bool]) -> Plan:
    """A plan: the third request that counts ends the server, and with it the connections that it has."""
    counted: list[int] = []

    def end() -> None:
        server.shutdown()
        server.server_close()

    def plan(number: int, body: dict[str, Any]) -> Fault | None:
        if counts(body):
            counted.append(number)
            if len(counted) == 3:
                threading.Thread(target=end).start()
        return Fault(drop=True) if len(counted) >= 3 else None

    return plan
