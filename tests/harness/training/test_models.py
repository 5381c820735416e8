"""Which teacher a run opens: an engine where it may sample, a scorer where its distribution is read, nothing else."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from harness.config.compose import compose
from harness.config.deployment import Deployment, build_method
from harness.config.schema import ModelConfig, from_hydra
from harness.models.chat import Chat
from harness.models.loading import load_tokenizer
from harness.training import models as build
from tests.support.model_server import serve

pytestmark = pytest.mark.usefixtures("forked")


@pytest.fixture(scope="module")
def chat() -> Chat:
    config = ModelConfig(name="xs", path="tiny:xs", dtype="float32")
    return Chat(load_tokenizer(config), config)


@pytest.fixture
def opened(chat, stack: ExitStack, monkeypatch, tmp_path):
    """`opened(*overrides)`: names of the engine's and the scorer's class, and how many models this process loaded."""
    loaded = []
    load = build.open_model
    monkeypatch.setattr(build, "open_model", lambda *args, **options: loaded.append(args) or load(*args, **options))

    def open_one(*overrides):
        config = from_hydra(compose(["student=tiny_xs", "teacher=tiny_teacher", *overrides]))
        method = build_method(config)
        assert method is not None
        place = Deployment.of(config, method).teacher
        teacher = build.open_teacher(method, config, place, chat, log=tmp_path / "log", stack=stack)
        names = tuple(None if part is None else type(part).__name__ for part in (teacher.engine, teacher.scorer))
        return (*names, len(loaded)), teacher.num_parameters

    return open_one


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method=grpo"], (None, None, 0)),
        (["method=zppo"], ("TransformersEngine", None, 1)),
        (["method=off_policy_kd"], ("TransformersEngine", "LocalScorer", 1)),
        (["method=on_policy_kd", "teacher_process=true"], (None, "ProcessScorer", 0)),
        pytest.param(
            ["method=off_policy_kd", "teacher_process=true"],
            ("TransformersEngine", "ProcessScorer", 1),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_teacher_that_this_run_loads(opened, overrides, expected):
    found, num_parameters = opened(*overrides)
    assert found == expected
    assert (num_parameters > 500_000) == (overrides != ["method=grpo"])


def test_a_teacher_behind_an_endpoint_is_not_loaded(opened, served_model, stack):
    server = stack.enter_context(serve(served_model))
    found, num_parameters = opened("method=off_policy_kd", f"teacher.urls=[{server.url}]")
    assert found == ("ServerEngine", "ServerScorer", 0) and num_parameters > 500_000


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method=off_policy_kd"], ("ServerEngine", "LocalScorer", 1)),
        (["method=off_policy_kd", "teacher_process=true"], ("ServerEngine", "ProcessScorer", 0)),
        (["method=on_policy_kd"], ("TransformersEngine", "LocalScorer", 1)),  # nobody asks the endpoint
        (["method=zppo"], ("ServerEngine", None, 0)),
    ],
)
def test_a_served_teacher_may_leave_the_scoring_to_a_copy(opened, served_model, stack, overrides, expected):
    server = stack.enter_context(serve(served_model))
    assert opened(*overrides, "server.score=false", f"teacher.urls=[{server.url}]")[0] == expected
