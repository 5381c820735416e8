"""One small run, unbroken, and a launcher for the same run in another folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.faults import Launcher

SMALL = [
    "student=tiny_xs", "eval=none", "data.batch_size=4", "data.pool_size=16", "data.num_questions=32",
    "data.epochs=2", "data.levels=[1,2]", "rollout.max_response_tokens=24", "num_threads=1", "device=cpu",
    "checkpoint.every=2", "steps=5",
]  # fmt: skip
"""The first step is behind no checkpoint, the third and the fifth are in the middle between two."""


class Broken:
    """A run that is to be broken, beside the same one unbroken."""

    def __init__(self, folder: Path, whole: Path, overrides: list[str], points: list[str]) -> None:
        self.whole, self.points = whole, points
        self.launcher = Launcher([*overrides, f"outputs={folder}"])
        self.folder = folder / whole.relative_to(whole.parents[3])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, fork_server) -> Callable[..., tuple[Path, list[str]]]:
    made: dict[tuple[str, ...], tuple[Path, list[str]]] = {}

    def make(*overrides: str) -> tuple[Path, list[str]]:
        if overrides not in made:
            outputs = tmp_path_factory.mktemp("whole")
            points = Launcher([*SMALL, *overrides, f"outputs={outputs}"]).points()
            made[overrides] = (next(outputs.rglob("run.json")).parent, points)
        return made[overrides]

    return make


@pytest.fixture
def broken(tmp_path_factory, unbroken) -> Callable[..., Broken]:
    def make(*overrides: str) -> Broken:
        whole, points = unbroken(*overrides)
        return Broken(tmp_path_factory.mktemp("broken"), whole, [*SMALL, *overrides], points)

    return make
