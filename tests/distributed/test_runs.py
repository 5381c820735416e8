"""Whole runs over ranks are those of one process, and their checkpoints go on with another number of ranks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.dist

ZPPO = ["method=zppo", "method.updates_per_step=2", "method.group_size=4", "method.teacher_group_size=2", "eval=none"]
KD = ["method=on_policy_kd", "method.group_size=4", "data.tasks=[arithmetic,bar_chart]", "eval=none"]
UNLIKE = ("time/", "busy/", "memory/", "process/", "train/padding_frac", "transfer/")
"""Clocks, the process itself, padding (what lies beside each other), and the probe of engines with own weights."""


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


@pytest.fixture(scope="module")
def of_one_process(make_run):
    """A run of three steps by its method, made once."""
    made = {}

    def make(method):
        if method[0] not in made:
            made[method[0]] = make_run(*method, "steps=3")
            made[method[0]].launch(1)
        return made[method[0]]

    return make


def assert_same_run(one, more):
    """Tokens are the same too: a rollout's draws do not depend on where it is sampled."""
    assert_same_metrics(one.rows, more.rows)
    assert tokens(one) == tokens(more)
    # AdamW divides by the root of a tiny second moment, so that rounding of a gradient moves a weight by up to a step.
    assert_same_model(one, more, tolerance=2e-3)


@pytest.mark.parametrize("method", [ZPPO, KD], ids=["zppo", "on_policy_kd"])
def test_a_run_of_two_ranks_is_that_of_one(make_run, of_one_process, method):
    run = make_run(*method, "steps=3")
    text = run.launch(2)
    assert text.count("step 3/3") == 1  # one rank speaks
    assert_same_run(of_one_process(method), run)


def test_scores_of_two_ranks_are_those_of_one(make_run):
    """A cell without training; text by lm-eval, pictures and clips by lmms-eval, which must not wait for rank 1."""
    scores = []
    for num_ranks in (1, 2):
        run = make_run("method=base", "eval=mini", "eval.num_questions=3")
        run.launch(num_ranks)
        scores.append((run.folder / "eval" / "mini" / "scores.csv").read_text())
    assert scores[0] == scores[1] and len(scores[0].splitlines()) == 1 + 16


def test_a_checkpoint_of_four_ranks_goes_on_with_one_and_with_two(make_run, of_one_process):
    for num_ranks in (1, 2):
        run = make_run(*KD)
        run.launch(4, "steps=2")
        shards = sorted(p.name for p in (run.folder / "checkpoints" / "step-000002").glob("model-*"))
        assert shards == [f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)]
        assert "resumed from" in run.launch(num_ranks, "steps=3")
        assert_same_metrics(of_one_process(KD).rows, run.rows)


def test_the_command_starts_the_ranks_of_two_nodes(make_run, of_one_process):
    """Both on this machine, with two ranks and a teacher each, and nothing but `zppo train` on either."""
    run = make_run(*ZPPO, "steps=3")
    command = [sys.executable, "-m", "harness.app", "train", *run.overrides, "device=cpu"]
    command += ["cluster.num_nodes=2", "cluster.student_gpus=2"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    nodes = [
        subprocess.Popen(
            command,
            env={**environment, "ZPPO_NODE": str(node)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in (1, 0)
    ]
    (other, silence), (said, errors) = (node.communicate(timeout=300) for node in nodes)
    assert [node.returncode for node in nodes] == [0, 0], silence + errors
    assert said.splitlines() == [str(run.folder)] and other == ""  # one rank prints
    assert silence == "" and errors.count("step 3/3") == 1
    assert_same_run(of_one_process(ZPPO), run)


def test_what_cannot_be_is_refused_before_ranks_are_started(make_run):
    command = [sys.executable, "-m", "harness.app", "train", *make_run(*KD).overrides, "cluster.student_gpus=2"]
    refused = subprocess.run([*command, "update.optimizer=adamw_8bit"], capture_output=True, text=True, timeout=100)
    assert refused.returncode == 2 and refused.stderr.startswith("error: update.optimizer=adamw_8bit")
    assert len(refused.stderr.splitlines()) == 1
