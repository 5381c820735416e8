"""A loopback judge, and clients of it that do not wait long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from harness.config.evaluation import JudgeConfig
from harness.rewards.judge.client import JudgeClient
from harness.testing.http_server import LoopbackServer, Plan
from harness.testing.judge_server import serve

Start = Callable[..., tuple[LoopbackServer, JudgeClient]]


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(plan, retries=..., ...)`: a server that follows the plan, and a client of it with this configuration."""
    with ExitStack() as stack:

        def start(plan: Plan | None = None, **config: Any) -> tuple[LoopbackServer, JudgeClient]:
            server = stack.enter_context(serve(plan=plan))
            settings = JudgeConfig(**{"url": server.url, "timeout": 10.0, "retries": 2, "concurrency": 4, **config})
            return server, JudgeClient(settings, backoff=0.01)

        yield start
