"""One thread a process: models this small gain nothing from more, and the suite runs one process a core."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

import tests.support.gc_off  # noqa: F401 (before the modules of tests import the libraries)
from tests.core_seconds import pytest_addoption, pytest_configure  # noqa: F401 (hooks)

if TYPE_CHECKING:
    from harness.rewards.workers import Grader

os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in each run: a failure is of this change. New ones: `pytest --hypothesis-profile=default`.
hypothesis.settings.register_profile("fixed", derandomize=True, max_examples=30)
hypothesis.settings.load_profile("fixed")

METHOD = """
from methods.base import PolicyGradientMethod


class Demo(PolicyGradientMethod):
    '''A method for tests. Second sentence.'''
"""


@pytest.fixture
def install(tmp_path, monkeypatch) -> Iterator[Callable[..., Path]]:
    """`install("zppo-demo", {"demo": "demo_pkg:Demo"})` puts a distribution on `sys.path`, as pip would.

    `files` are its files by path, contents by default those of a working method of that name. Returns the folder.
    """

    def make(
        distribution: str,
        methods: dict[str, str],
        files: dict[str, str] | None = None,
        version: str = "1.0",
        group: str = "zppo.methods",
    ) -> Path:
        site = tmp_path / f"site-{distribution}"
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        if files is None:
            name, value = next(iter(methods.items()))
            package = value.partition(":")[0]
            files = {
                f"{package}/__init__.py": METHOD,
                f"{package}/conf/method/{name}.yaml": f"name: {name}\nclass: {name}\n",
            }
        entries = "".join(f"{name} = {value}\n" for name, value in methods.items())
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        texts = {info / "METADATA": metadata, info / "entry_points.txt": f"[{group}]\n{entries}"}
        for path, text in (texts | {site / path: text for path, text in files.items()}).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(site)
        return site

    before = set(sys.modules)
    yield make
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(scope="session")
def grader() -> Iterator[Grader]:
    """With the default limits. A worker takes more than a second of a core to start."""
    from harness.config.schema import RewardConfig
    from harness.rewards.workers import Grader

    with Grader(RewardConfig()) as grader:
        yield grader


@pytest.fixture(scope="session")
def fork_server() -> ForkServerContext:
    """Its processes have the libraries loaded. It starts before the first test, so that no test pays for that."""
    from tests.support import fork_server

    return fork_server.fork_server()


def pytest_collection_finish(session: pytest.Session) -> None:
    import tests.support.gc_frozen  # noqa: F401

    if not session.config.option.collectonly and any("fork_server" in item.fixturenames for item in session.items):
        from tests.support.fork_server import fork_server

        first = fork_server().Process(target=int)
        first.start()
        first.join()


@pytest.fixture(scope="module")
def forked(fork_server: ForkServerContext) -> Iterator[None]:
    """What a run spawns is a fork. A fresh process imports its libraries for seconds."""
    from torch import multiprocessing as of_torch

    get_context = multiprocessing.get_context
    with pytest.MonkeyPatch.context() as patch:
        for module in (multiprocessing, of_torch):
            patch.setattr(
                module, "get_context", lambda kind=None: get_context("forkserver" if kind == "spawn" else kind)
            )
        yield
