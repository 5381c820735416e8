"""Ranks that are killed, that raise, that hang: the run ends in time, in a line that names the rank, and goes on."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.distributed.bodies import slow_start
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.dist

GRPO = ["method=grpo", "method.updates_per_step=2", "method.group_size=4", "eval=none", "steps=8"]
TIMEOUT = "cluster.collective_timeout=10"
DEADLINE = 10 + 10 + 15
"""Seconds: the time-out, that in which rank 0 may end by itself, and what a busy machine takes."""

BROKEN = '''
import torch.distributed as dist
from methods.base import PolicyGradientMethod


class Broken(PolicyGradientMethod):
    """Its loss raises on rank 1."""

    def loss(self, logits_NV, batch, teacher):
        if dist.get_rank() == 1:
            raise RuntimeError("broken on purpose")
        return super().loss(logits_NV, batch, teacher)
'''


def wait_for(run, started, num_steps):
    end = time.monotonic() + 100
    while len(run.rows) < num_steps:
        assert time.monotonic() < end and all(p.is_alive() for p in started.processes), started.text
        time.sleep(0.02)


@pytest.fixture
def started(make_run):
    """A run of two ranks behind its third step, and the checkpoint of its second."""
    run = make_run(*GRPO, TIMEOUT)
    ranks = run.start(2)
    wait_for(run, ranks, 3)
    return run, ranks


def goes_on(run):
    """On one rank: any number will do."""
    assert "resumed from" in run.launch(1)
    assert run.info["status"] == "done"
    assert [row["step"] for row in run.rows] == list(range(1, 9))


def test_a_rank_that_is_killed(started):
    run, ranks = started
    ranks.send(1, signal.SIGKILL)
    assert ranks.wait(DEADLINE) == [os.EX_TEMPFAIL, -signal.SIGKILL]
    assert run.info["status"] == "interrupted" and "rank 1" in run.info["error"]
    assert run.info["error"].startswith("step ")
    assert f"error: {run.info['error']}" in ranks.text.splitlines()
    goes_on(run)


def test_ranks_wait_for_a_slow_one_outside_collectives(tmp_path):
    """A collective ends after cluster.collective_timeout and 20 s: 23. The start takes 28 s, and as many again."""
    options = ["student=tiny_xs", "method=on_policy_kd", "teacher=tiny_teacher", "cluster.collective_timeout=3"]
    assert run_ranks(2, slow_start, options, str(tmp_path), 28.0) == [2, 2]


def test_a_rank_that_hangs(started):
    run, ranks = started
    ranks.send(1, signal.SIGSTOP)
    assert ranks.wait(DEADLINE, without=[1])[0] == os.EX_TEMPFAIL
    assert run.info["status"] == "interrupted"
    assert "rank 1" in run.info["error"] and "has not answered in cluster.collective_timeout=10 s" in run.info["error"]


def test_rank_0_that_is_killed_or_hangs(started):
    """Nobody is left to write run.json, as when a single process is killed: the next launch goes on."""
    run, ranks = started
    ranks.send(0, signal.SIGKILL)
    assert ranks.wait(DEADLINE) == [-signal.SIGKILL, os.EX_TEMPFAIL]
    assert "error: rank 0 has ended" in ranks.text
    again = run.start(2)
    wait_for(run, again, len(run.rows) + 1)
    again.send(0, signal.SIGSTOP)
    assert again.wait(DEADLINE, without=[0])[1] == os.EX_TEMPFAIL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_any_rank_writes_the_state(started, number):
    run, ranks = started
    ranks.send(1, number)
    assert ranks.wait(DEADLINE) == [os.EX_TEMPFAIL] * 2
    assert run.info["status"] == "interrupted" and number.name in run.info["error"]
    assert any((run.folder / "checkpoints").glob("step-*/shards.json"))
    goes_on(run)


def test_a_rank_that_raises(make_run, tmp_path, monkeypatch):
    (tmp_path / "broken_on_one.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    run = make_run("method._target_=broken_on_one:Broken", "method.name=broken", "eval=none", "steps=2")
    ranks = run.start(2)
    assert ranks.wait(DEADLINE + 60) == [1, 1]
    assert run.info["status"] == "failed"
    assert "rank 1" in run.info["error"] and "RuntimeError: broken on purpose" in run.info["error"]
    assert 'raise RuntimeError("broken on purpose")' in ranks.text
