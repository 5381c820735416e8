"""Whole runs over ranks are those of one process, and their checkpoints go on with another number of ranks."""

from __future__ import annotations

import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.dist

ZPPO = ["method=zppo", "method.updates_per_step=2", "method.group_size=4", "method.teacher_group_size=2"]
KD = ["method=on_policy_kd", "method.group_size=4", "data.tasks=[arithmetic,bar_chart]"]
OF_RANKS = ("transfer/",)
"""Probed where the engine has weights of its own."""
UNLIKE = ("time/", "busy/", "memory/", "train/padding_frac", *OF_RANKS)
"""Clocks, and padding, which depends on what lies beside each other in a micro-batch."""
ROUNDING = ("mismatch/",)
"""Differences that are rounding themselves."""


def assert_same_metrics(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        names = {name for name in a.keys() | b.keys() if not name.startswith(UNLIKE)}
        for name in sorted(names):
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-5), f"step {a['step']}: {name}"


def tokens(run):
    files = sorted((run.folder / "rollouts").glob("*.parquet"))
    return [pq.read_table(file, columns=["uid", "sampler", "index", "response_text"]).to_pylist() for file in files]


def assert_same_model(a, b, tolerance):
    ours, theirs = (load_file(run.folder / "model" / "model.safetensors") for run in (a, b))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.allclose(ours[name].float(), theirs[name].float(), atol=tolerance), name


@pytest.mark.parametrize(("method", "num_ranks"), [(ZPPO, 2), (KD, 2)], ids=["zppo", "on_policy_kd"])
def test_a_run_of_two_ranks_is_that_of_one(make_run, method, num_ranks):
    """Tokens are the same too: a rollout's draws do not depend on where it is sampled."""
    one, more = make_run(*method, "steps=3"), make_run(*method, "steps=3")
    one.launch(1)
    text = more.launch(num_ranks)
    assert text.count("step 3/3") == 1  # one rank speaks
    assert_same_metrics(one.rows, more.rows)
    assert tokens(one) == tokens(more)
    # AdamW divides by the root of a tiny second moment, so that rounding of a gradient moves a weight by up to a step.
    assert_same_model(one, more, tolerance=2e-3)


def test_a_checkpoint_of_four_ranks_goes_on_with_one_and_with_two(make_run):
    whole = make_run(*KD, "steps=3")
    whole.launch(1)
    for num_ranks in (1, 2):
        run = make_run(*KD)
        run.launch(4, "steps=2")
        shards = sorted(p.name for p in (run.folder / "checkpoints" / "step-000002").glob("model-*"))
        assert shards == [f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)]
        assert "resumed from" in run.launch(num_ranks, "steps=3")
        assert_same_metrics(whole.rows, run.rows)


def test_the_command_starts_its_ranks(make_run):
    """`zppo train` with two student GPUs a node, without torchrun; and what cannot be is refused before that."""
    run = make_run(*KD, "steps=1")
    command = [sys.executable, "-m", "harness.app", "train", *run.overrides, "device=cpu", "cluster.student_gpus=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(run.folder)]  # one rank prints
    assert run.info["status"] == "done" and [row["step"] for row in run.rows] == [1]
    refused = subprocess.run([*command, "update.optimizer=adamw_8bit"], capture_output=True, text=True, timeout=100)
    assert refused.returncode == 2 and refused.stderr.startswith("error: update.optimizer=adamw_8bit")
    environment = {**os.environ, "WORLD_SIZE": "2"}
    half = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert half.returncode == 2 and half.stderr.startswith("error: WORLD_SIZE=2 without RANK")
