"""SIGTERM and SIGUSR1: the state is written, the code says that the run goes on, and it ends as the unbroken one."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.records.folder import RunFolder
from tests.support.faults import Fault, Launcher, Tally, random_faults, survive

GRPO = ["method=grpo", "method.updates_per_step=3", "method.group_size=4", "update.old_logprobs=recompute"]


def checkpoints(folder: Path) -> set[str]:
    return {p.name for p in (folder / "checkpoints").glob("*")}


PLACES = [
    ("sampled-student", 4, "step-000003"),  # in the fourth step: the third is saved, though only every second is due
    ("update-1", 3, "step-000002.1"),  # between two updates of the third step
    ("update-2", 1, "step-000000.2"),  # of the first, before there is a checkpoint
    ("buffer-records", 3, "step-000003"),  # a step's records are finished
]
FAST = {(PLACES[0], signal.SIGUSR1)}
"""At a complete step without a checkpoint; the tests below send SIGTERM, in the middle of a step."""


@pytest.mark.parametrize(
    ("place", "number_of_signal"),
    [
        pytest.param(*pair, marks=[] if pair in FAST else [pytest.mark.slow])
        for pair in itertools.product(PLACES, (signal.SIGTERM, signal.SIGUSR1))
    ],
)
def test_the_state_is_written_and_the_run_goes_on_from_there(broken, place, number_of_signal):
    point, number, left = place
    run = broken(*GRPO)
    assert run.launcher.launch(Fault(point=point, number=number, signal=number_of_signal)) == os.EX_TEMPFAIL
    assert left in checkpoints(run.folder)
    info = RunFolder.read_info(run.folder)
    assert info["status"] == "interrupted" and number_of_signal.name in info["error"]
    survive(run.launcher, [], run.folder, run.whole)


def test_an_update_that_was_made_is_not_made_again(broken):
    """What is left to do behind the second of three updates is the third."""
    run = broken(*GRPO)
    assert run.launcher.launch(Fault(point="update-2", number=2, signal=signal.SIGTERM)) == os.EX_TEMPFAIL
    assert run.launcher.launch(Fault(point="update-3", number=1)) == -signal.SIGKILL
    assert "step-000001.2" in checkpoints(run.folder)
    assert run.launcher.launch(Fault(point="update-1", number=1)) == -signal.SIGKILL  # the next step's
    survive(run.launcher, [], run.folder, run.whole)


@pytest.mark.slow
def test_what_takes_longer_than_the_grace_is_left_as_it_is(broken):
    """A step's records are never left half written by choice; here they take a minute. The stored step counts."""
    run = broken(*GRPO)  # the other run is that of the tests above: the grace changes none that nobody ends
    launcher = Launcher([*run.launcher.overrides, "preempt_grace=0.5"])
    started = time.monotonic()
    fault = Fault(point="rollout-records", number=3, signal=signal.SIGTERM, hold=60)
    assert launcher.launch(fault) == os.EX_TEMPFAIL
    assert time.monotonic() - started < 30
    info = RunFolder.read_info(run.folder)
    assert info["status"] == "interrupted" and "preempt_grace was over" in info["error"]
    assert checkpoints(run.folder) == {"step-000002"}
    survive(launcher, [], run.folder, run.whole)


@pytest.mark.slow
def test_a_run_is_left_in_an_evaluation(broken):
    """It is behind a step that no checkpoint is due after; the next launch makes up for the evaluation."""
    options = ["method=sft", "eval=mini", "eval.num_questions=40", "eval.every=3"]
    run = broken(*options)
    launcher, folder = run.launcher, run.folder / "eval" / "mini"
    process = launcher.start()
    end = time.monotonic() + 60
    while not (folder / "step-000003" / "responses.jsonl").exists():
        assert time.monotonic() < end and process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    assert launcher.wait(process) == os.EX_TEMPFAIL
    assert "step-000003" in checkpoints(run.folder) and not (folder / "step-000003" / "scores.csv").exists()
    survive(launcher, [], run.folder, run.whole)


@pytest.mark.slow
def test_the_command_ends_with_75(tmp_path, broken):
    """`zppo train` itself, told to end while it samples; launched again it says where it goes on."""
    run = broken(*GRPO)
    command = [sys.executable, "-m", "harness.app", "train", *run.launcher.overrides]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    metrics = run.folder / "metrics.jsonl"
    while not metrics.exists():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=60)
    assert process.returncode == os.EX_TEMPFAIL, text
    assert text.splitlines()[-1] == "error: SIGTERM has ended the run: launched again it goes on"
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True)
    assert "resumed from " in done.stderr
    survive(run.launcher, [], run.folder, run.whole)
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "zppo", "on_policy_kd", "off_policy_kd"])
def test_every_boundary_and_random_times(broken, method):
    options = [f"method={method}", "method.updates_per_step=2"]
    total = Tally()
    for point in dict.fromkeys(broken(*options).points):
        run = broken(*options)
        signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM)
        faults = [Fault(point=point, number=number, signal=s) for number, s in enumerate(signals, 1)]
        total += survive(run.launcher, faults, run.folder, run.whole)
    print(f"\n{method}: {total} at boundaries")
    total = Tally()
    for seed in range(5):
        run = broken(*options)
        faults = random_faults(10, 2.5, seed, [signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL])
        total += survive(run.launcher, faults, run.folder, run.whole)
    print(f"{method}: {total} at random times, SIGKILL among them")
