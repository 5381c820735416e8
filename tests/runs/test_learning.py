"""What the methods have to achieve on the tiny family: plumbing that runs but teaches nothing is broken."""

import csv
import json
from pathlib import Path

import pytest

from harness.config.compose import compose
from harness.config.schema import from_hydra
from harness.run.run import run


def start(outputs: Path, *overrides: str) -> Path:
    return run(from_hydra(compose([f"outputs={outputs}", *overrides])))


def scores(folder: Path) -> dict[str, float]:
    with (folder / "eval" / "mini" / "scores.csv").open() as file:
        return {row["benchmark"]: float(row["score"]) for row in csv.DictReader(file)}


@pytest.mark.slow
def test_on_policy_kd_closes_half_of_the_gap_on_a_level_it_is_trained_on(tmp_path):
    level = ["data.levels=[3]", "eval.levels=[3]", "eval.num_questions=100"]
    student = scores(start(tmp_path, "method=base", *level))["arithmetic_l3"]
    as_student = ["student=hf", "student.path=tiny:teacher", "student.dtype=float32", "recipe=tiny"]
    teacher = scores(start(tmp_path, "method=base", *as_student, *level))["arithmetic_l3"]
    trained = scores(start(tmp_path, "method=on_policy_kd", "steps=25", *level))["arithmetic_l3"]
    assert teacher - student > 20
    assert trained - student >= (teacher - student) / 2


@pytest.mark.slow
def test_grpo_raises_its_training_reward(tmp_path):
    folder = start(tmp_path, "method=grpo", "steps=20", "data.levels=[2]", "eval=none")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first = sum(row["rollout/accuracy"] for row in rows[:3]) / 3
    last = sum(row["rollout/accuracy"] for row in rows[-3:]) / 3
    assert 0.2 <= first <= 0.6
    assert last > first + 0.1
