"""Whole runs on both engines, each in a process of its own."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm
VLLM = [
    "rollout=vllm",
    "rollout.vllm.enforce_eager=true",
    "rollout.vllm.cache_gib=0.25",
    "rollout.vllm.max_model_len=2048",
]


def train(outputs: Path, *overrides: str) -> tuple[list[dict], dict]:
    """Metrics of every step, and run.json."""
    command = [sys.executable, "-m", "harness.app", "train", "eval=none", f"outputs={outputs}", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = Path(done.stdout.strip().splitlines()[-1])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return rows, json.loads((folder / "run.json").read_text())


def test_rewards_of_ten_steps_do_not_depend_on_the_engine(tmp_path):
    """Paired t-test over the steps: both engines are asked the same questions, and their weights stay close.

    With 9 degrees of freedom |t| > 3.25 has p < 0.01. Engines that differ by 3 points of accuracy on 384 rollouts a
    step (standard error of a step's difference about 3.5 points, of ten 1.1) would give t = 2.7, by 5 points 4.5.
    """
    options = ["method=grpo", "student=tiny_s", "steps=10", "method.updates_per_step=1"]
    own, _ = train(tmp_path / "transformers", *options)
    theirs, _ = train(tmp_path / "vllm", *options, *VLLM)
    differences = [a["rollout/accuracy"] - b["rollout/accuracy"] for a, b in zip(own, theirs, strict=True)]
    t = statistics.mean(differences) / (statistics.stdev(differences) / math.sqrt(len(differences)))
    print(f"mean difference {statistics.mean(differences):+.4f}, t = {t:+.2f}")
    assert abs(t) < 3.25
    assert all(row["transfer/probe_gap"] < 1e-3 for row in theirs)
    assert all(row["mismatch/max"] < 1e-2 for row in theirs)


def test_zppo_with_a_teacher_on_vllm_beside_the_student(tmp_path):
    rows, info = train(
        tmp_path, "method=zppo", "student=tiny_xs", "teacher=tiny_teacher", "num_threads=2", "steps=2", *VLLM
    )
    assert info["status"] == "done" and [row["step"] for row in rows] == [1, 2]
    assert all(row["bcq/prompts"] > 0 and row["tokens/teacher_generated"] > 0 for row in rows)
