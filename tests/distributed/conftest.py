"""Runs of one process, to compare with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.records.folder import RunFolder
from tests.support.ranks import RankedRun

SMALL = [
    "student=tiny_xs", "data.batch_size=4", "data.pool_size=16", "data.num_questions=32", "data.epochs=3",
    "data.levels=[1,2]", "rollout.max_response_tokens=24", "checkpoint.every=2", "update.share_prompts=false",
]  # fmt: skip


class Run:
    """One run folder, launched on any number of ranks, as often as a test likes."""

    def __init__(self, folder: Path, overrides: list[str]) -> None:
        self._outputs = folder
        self.overrides = [*SMALL, *overrides, f"outputs={folder}"]

    def start(self, num_ranks: int, *more: str) -> RankedRun:
        return RankedRun(num_ranks, [*self.overrides, *more], self._outputs)

    def launch(self, num_ranks: int, *more: str) -> str:
        """To its end; returns what it said."""
        run = self.start(num_ranks, *more)
        codes = run.wait()
        assert codes == [0] * num_ranks, run.text
        return run.text

    @property
    def folder(self) -> Path:
        return next(self._outputs.rglob("run.json")).parent

    @property
    def info(self) -> dict[str, Any]:
        return dict(RunFolder.read_info(self.folder))

    @property
    def rows(self) -> list[dict[str, float]]:
        try:
            text = (self.folder / "metrics.jsonl").read_text(encoding="utf-8")
        except (StopIteration, FileNotFoundError):
            return []
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="session")
def make_run(tmp_path_factory) -> Callable[..., Run]:
    return lambda *overrides: Run(tmp_path_factory.mktemp("run"), list(overrides))
