"""A run of two steps that `zppo eval` is shown, made once by a process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.app import main

FIXTURES = Path(__file__).parents[2] / "fixtures" / "benchmarks"
SMALL = ["eval.mini_tasks=[arithmetic]", "eval.levels=[1,2]", "eval.num_questions=6"]


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with one run, of two steps."""
    outputs = tmp_path_factory.mktemp("outputs")
    options = ["method=grpo", "student=tiny_xs", "steps=2", "data.batch_size=4", "method.group_size=2", "study=one"]
    assert main(["train", *options, *SMALL, f"outputs={outputs}"]) == 0
    return outputs / "one"


@pytest.fixture
def run(study: Path, tmp_path: Path) -> Path:
    """A copy of its run."""
    return Path(shutil.copytree(study, tmp_path / "one")) / "grpo" / "tiny_xs" / "seed0"
