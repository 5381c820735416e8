"""Loopback endpoints: what a served teacher answers with, and judges with clients that do not wait long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from harness.rewards.judge.client import JudgeClient
    from harness.testing.http_server import LoopbackServer, Plan
    from harness.testing.model_server import ServedModel

Start = Callable[..., "tuple[LoopbackServer, JudgeClient]"]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def served_model() -> ServedModel:
    """What the loopback server answers with."""
    from harness.config.schema import ModelConfig
    from harness.testing.model_server import ServedModel

    return ServedModel(ModelConfig(name="teacher", path="tiny:teacher", dtype="float32"))


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(plan, retries=..., ...)`: a server that follows the plan, and a client of it with this configuration."""
    from harness.config.evaluation import JudgeConfig
    from harness.rewards.judge.client import JudgeClient
    from harness.testing.judge_server import serve

    with ExitStack() as stack:

        def start(plan: Plan | None = None, **config: Any) -> tuple[LoopbackServer, JudgeClient]:
            server = stack.enter_context(serve(plan=plan))
            settings = JudgeConfig(**{"url": server.url, "timeout": 10.0, "retries": 2, "concurrency": 4, **config})
            return server, JudgeClient(settings, backoff=0.01)

        yield start
