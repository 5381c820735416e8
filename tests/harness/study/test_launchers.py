"""Cells as jobs of Hydra's launchers: signals and exit codes with its own basic launcher; submitit and Ray where they
are installed (`pip install -e '.[launchers]'`)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from harness.app import main
from harness.errors import UserError
from harness.study import launchers
from harness.study.launchers import CellFailed, run_cell
from harness.study.status import run_states

ROOT = Path(__file__).parents[3]
SMALL = [
    "student=tiny_xs", "eval=none", "data.batch_size=2", "data.pool_size=8", "data.num_questions=16", "data.levels=[1]",
    "method=grpo", "method.group_size=2", "rollout.max_response_tokens=8", "steps=1", "study=s", "device=cpu",
]  # fmt: skip

# Says when it starts; ends with the code that is in the file of its name, or waits for SIGTERM and then ends with 75.
WORK = """
import os, signal, sys, time
from pathlib import Path
file = Path(sys.argv[1])
def stop(number, frame):
    with file.with_suffix(".log").open("a") as log: log.write("stopped\\n")
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
with file.with_suffix(".log").open("a") as log: log.write(f"start {os.getpid()}\\n")
words = file.read_text().split()
if words[0] == "wait":
    time.sleep(60)
if len(words) > 1:
    file.write_text(" ".join(words[1:]))
sys.exit(int(words[0]))
"""


@pytest.fixture
def work(tmp_path):
    """`work("a", "75 0")` is the command of a cell that ends with 75 and, started again, with 0."""
    (tmp_path / "work.py").write_text(WORK)

    def make(name: str, words: str) -> list[str]:
        (tmp_path / name).write_text(words)
        return [sys.executable, str(tmp_path / "work.py"), str(tmp_path / name)]

    return make


def log(tmp_path: Path, name: str) -> list[str]:
    file = tmp_path / f"{name}.log"
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("words", "restarts", "starts", "error"),
    [
        ("0", 3, 1, None),
        ("75 75 0", 2, 3, None),
        ("75 75 0", 1, 2, "interrupted"),
        ("2", 3, 1, "ended with 2"),
        ("-9", 3, 1, "ended with"),
    ],
)
def test_what_was_interrupted_is_started_again_and_no_failure_is(work, tmp_path, words, restarts, starts, error):
    command = work("a", words)
    if error is None:
        run_cell(command, grace=5, restarts=restarts, pause=0.01)
    else:
        with pytest.raises(CellFailed, match=error):
            run_cell(command, grace=5, restarts=restarts, pause=0.01)
    assert log(tmp_path, "a") == ["start"] * starts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_reaches_the_child_before_the_job_is_requeued(work, tmp_path, number):
    seen = []

    def requeue(*_: object) -> None:
        seen.append(log(tmp_path, "a"))

    command, before = work("a", "wait"), signal.signal(number, requeue)
    main_thread = threading.main_thread().ident
    assert main_thread is not None

    def tell() -> None:
        wait_for(lambda: log(tmp_path, "a") == ["start"])
        signal.pthread_kill(main_thread, number)

    threading.Thread(target=tell).start()
    try:
        with pytest.raises(CellFailed, match="interrupted"):
            run_cell(command, grace=5, restarts=3, pause=0)
        assert signal.getsignal(number) is requeue
    finally:
        signal.signal(number, before)
    assert seen == [["start", "stopped"]]


def test_a_cell_that_is_interrupted_from_within_is_requeued_where_somebody_can(work, tmp_path):
    def requeue(*_: object) -> None:
        raise SystemExit(144)

    command, before = work("a", "75 0"), signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(SystemExit):
            run_cell(command, grace=5, restarts=3, pause=0)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert log(tmp_path, "a") == ["start"]


def test_a_child_that_does_not_stop_is_killed_and_one_whose_job_dies_is_stopped(work, tmp_path):
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    code = (
        "import sys, threading, signal, time; from harness.study.launchers import run_cell\n"
        "threading.Timer(1, signal.raise_signal, [signal.SIGUSR1]).start()\n"
        f"run_cell([sys.executable, '-c', {deaf!r}], grace=0.3, restarts=0, pause=0)"
    )
    job = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert "CellFailed: ended with -9" in job.stderr
    command = work("a", "wait")
    call = "run_cell(sys.argv[1:], grace=60, restarts=0, pause=0)"
    code = f"import sys; from harness.study.launchers import run_cell; {call}"
    other = subprocess.Popen([sys.executable, "-c", code, *command], cwd=ROOT)
    wait_for(lambda: log(tmp_path, "a") == ["start"])
    other.kill()
    other.wait()
    wait_for(lambda: log(tmp_path, "a") == ["start", "stopped"])


def plan_of(tmp_path: Path, commands: list[list[str]]) -> Path:
    plan = [{"name": str(i), "command": command, "grace": 5} for i, command in enumerate(commands)]
    return launchers._write_plan(tmp_path / "it's a, study=x" / "launcher", plan)


def test_the_basic_launcher_runs_every_cell_past_a_failure(work, tmp_path, capfd):
    plan = plan_of(tmp_path, [work("a", "0"), work("b", "2"), work("c", "75 0")])
    launchers._run_hydra(plan, 3, ["hydra/launcher=basic", "pause=0.01"])
    assert [log(tmp_path, name) for name in "abc"] == [["start"], ["start"], ["start"] * 2]
    assert "CellFailed: ended with 2" in capfd.readouterr().err


@pytest.mark.slow
def test_real_cells_under_the_basic_launcher(tmp_path, monkeypatch, capfd):
    """Two cells, one of which is done; a second launch has nothing to do. `-m` takes the launcher's options."""
    monkeypatch.chdir(ROOT)
    overrides = [*SMALL, f"outputs={tmp_path}"]
    assert main(["train", *overrides]) == 0
    assert main(["train", "-m", "seed=0,1", "hydra/launcher=basic", *overrides]) == 0
    assert "2 cells: 1 done, 1 skipped" in capfd.readouterr().out
    assert [run.state for run in run_states(tmp_path / "s")] == ["done", "done"]
    (plan,) = (tmp_path / "s" / "launcher").glob("plan-*.json")
    assert [cell["name"] for cell in json.loads(plan.read_text())] == ["grpo tiny_xs seed1"]
    assert main(["train", "-m", "seed=0,1", "hydra/launcher=basic", *overrides]) == 0
    assert "2 cells: 2 skipped" in capfd.readouterr().out


def test_force_is_refused(tmp_path):
    with pytest.raises(UserError, match="--force removes folders from under jobs"):
        launchers.launch([], ["hydra/launcher=basic"], force=True)


# --- where they are installed ---


def test_submitit_on_this_machine_requeues_what_is_preempted(work, tmp_path):
    """The job of cell b is told that its time is over; submitit's local executor starts it again."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    plan = plan_of(tmp_path, [work("a", "0"), work("b", "wait"), work("c", "75 0")])
    thread = threading.Thread(target=launchers._run_hydra, args=(plan, 3, ["hydra/launcher=submitit_local"]))
    thread.start()
    wait_for(lambda: log(tmp_path, "b") == ["start"])
    (tmp_path / "b").write_text("0")
    child = int((tmp_path / "b.log").read_text().split()[1])
    job = int(re.search(r"PPid:\s+(\d+)", Path(f"/proc/{child}/status").read_text())[1])
    os.kill(job, signal.SIGUSR2)
    thread.join(timeout=120)
    assert not thread.is_alive()
    assert [log(tmp_path, name) for name in "abc"] == [["start"], ["start", "stopped", "start"], ["start"] * 2]


ONE_GPU = {"--gpus-per-node=1", "--nodes=1", "--cpus-per-task=8", "--mem=64GB"}
NODES = {"--gpus-per-node=8", "--nodes=8", "--exclusive", "--mem=0"}


@pytest.mark.parametrize(("preset", "wanted"), [("zppo_slurm", ONE_GPU), ("zppo_slurm_nodes", NODES)])
def test_what_goes_to_slurm(work, tmp_path, monkeypatch, preset, wanted):
    """No Slurm here: programs of its names write down what they are given. A job of several nodes has all of them: six
    ranks, a teacher and graders want more than the memory of a single GPU's share."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    for name, text in {"srun": "", "sbatch": f'cat "$1" > {tmp_path}/batch; echo no partition >&2; exit 1'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    plan = plan_of(tmp_path, [work("a", "0"), work("b", "0")])
    nodes = ["hydra.launcher.nodes=8"] if preset == "zppo_slurm_nodes" else []
    launchers._run_hydra(plan, 2, [f"hydra/launcher={preset}", "hydra.launcher.partition=gpu", *nodes])
    lines = (tmp_path / "batch").read_text().splitlines()
    options = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    assert options >= {"--array=0-1%2", "--partition=gpu", "--requeue", "--signal=USR2@180", "--time=1440", *wanted}
    assert {
        option for option in options if option.startswith(("--mem", "--cpus", "--gpus", "--excl", "--nodes"))
    } == wanted
    assert ("export SRUN_CPUS_PER_TASK=$SLURM_CPUS_ON_NODE" in lines) == (preset == "zppo_slurm_nodes")


def test_a_local_ray_runs_every_cell_and_again_that_of_a_worker_that_dies(work, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    plan = plan_of(tmp_path, [work("a", "0"), work("b", "wait"), work("c", "75 0"), work("d", "2")])
    options = ["hydra/launcher=zppo_ray", "+hydra.launcher.ray.init.num_cpus=4", "pause=0.01"]
    thread = threading.Thread(target=launchers._run_hydra, args=(plan, 4, options))
    thread.start()
    wait_for(lambda: log(tmp_path, "b") == ["start"] or not thread.is_alive(), seconds=120)
    (tmp_path / "b").write_text("0")
    child = int((tmp_path / "b.log").read_text().split()[1])
    worker = int(re.search(r"PPid:\s+(\d+)", Path(f"/proc/{child}/status").read_text())[1])
    os.kill(worker, signal.SIGKILL)
    thread.join(timeout=180)
    assert not thread.is_alive()
    assert log(tmp_path, "b") in (["start", "stopped", "start"], ["start", "start", "stopped"])
    assert [log(tmp_path, name) for name in "acd"] == [["start"], ["start"] * 2, ["start"]]
