"""A sweep of real runs in which cells raise, crash and run out of memory and the launcher is killed: launched again, it
ends complete, each cell trained once to the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from harness.records.lock import owner_of

ROOT = Path(__file__).parents[2]
SMALL = [
    "student=tiny_xs", "eval=none", "data.batch_size=2", "data.pool_size=8", "data.num_questions=16", "data.levels=[1]",
    "method.group_size=2", "rollout.max_response_tokens=8", "steps=2", "checkpoint.every=1", "study=s", "device=cpu",
]  # fmt: skip

FAULTS = '''
import ctypes, os, sys, time
from pathlib import Path
from methods.base import PolicyGradientMethod


class Faulty(PolicyGradientMethod):
    """GRPO; the second step of seed K does what the file faultK beside this one says, once every K has one."""

    def collect(self, batch, actors, rng):
        file = Path(__file__).with_name("fault" + next(word for word in sys.argv if word.startswith("seed="))[5:])
        if batch.step == 2 and file.exists():
            getattr(self, file.read_text().split()[0])(file)
        return super().collect(batch, actors, rng)

    def exception(self, file):
        raise RuntimeError("a cell that raises")

    def segfault(self, file):
        ctypes.string_at(0)

    def memory(self, file):
        """Join a group with a memory limit, and use more."""
        (Path(file.read_text().split()[1]) / "cgroup.procs").write_text(str(os.getpid()))
        kept = []
        while True:
            kept.append(bytearray(b"1" * 2**20))

    def hold(self, file):
        while file.exists():
            time.sleep(0.05)
'''


@pytest.fixture
def memory_group():
    """A control group in which 32 MiB may be used, of version 1 or 2; what a process brings along does not count."""
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    name = f"zppo-test-{os.getpid()}"
    group, limits = (v1 / name, ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"])
    if not v1.is_dir():
        group, limits = (v2 / name, ["memory.max"])
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here ({error}), and without one there is no OOM kill of one process")
    try:
        for limit in limits:
            (group / limit).write_text(str(32 * 2**20))
    except OSError as error:
        group.rmdir()
        pytest.skip(f"memory cannot be limited here ({error})")
    yield group
    end = time.monotonic() + 5
    while (group / "cgroup.procs").read_text() and time.monotonic() < end:
        time.sleep(0.05)
    group.rmdir()


class Sweep:
    def __init__(self, folder: Path, num_cells: int) -> None:
        self.folder, self.num_cells = folder, num_cells
        self.launchers: list[subprocess.Popen[bytes]] = []
        (folder / "faults.py").write_text(FAULTS)

    def fault(self, seed: int, words: str) -> None:
        (self.folder / f"fault{seed}").write_text(words)

    def mend(self) -> None:
        for file in self.folder.glob("fault[0-9]*"):
            file.unlink()

    def launch(self, name: str) -> subprocess.Popen[bytes]:
        seeds = ",".join(map(str, range(self.num_cells)))
        overrides = ["method._target_=faults:Faulty", f"seed={seeds}", f"outputs={self.folder}", *SMALL]
        command = [sys.executable, "-m", "harness.app", "train", "-m", "--jobs", "2", *overrides]
        environment = os.environ | {"PYTHONPATH": str(self.folder), "COLUMNS": "200"}
        with (self.folder / name).open("wb") as screen:
            launcher = subprocess.Popen(command, stdout=screen, stderr=screen, cwd=ROOT, env=environment)
        self.launchers.append(launcher)
        return launcher

    def close(self) -> None:
        """Leave no process behind, of a test that failed either."""
        for launcher in self.launchers:
            launcher.kill()
            launcher.wait()
        for seed in range(self.num_cells):
            if (owner := owner_of(self.run_dir(seed))) is not None:
                os.kill(owner.pid, signal.SIGKILL)

    def run_dir(self, seed: int) -> Path:
        return self.folder / "s" / "faulty" / "tiny_xs" / f"seed{seed}"

    def info(self, seed: int) -> dict[str, object]:
        file = self.run_dir(seed) / "run.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def until(self, launcher: subprocess.Popen[bytes], name: str, *words: str, seconds: float = 90) -> str:
        """What the launcher has printed once all the words are in it."""
        end = time.monotonic() + seconds
        while not all(word in (text := (self.folder / name).read_text()) for word in words):
            assert time.monotonic() < end and launcher.poll() is None, text
            time.sleep(0.05)
        return text

    def starts(self, seed: int) -> int:
        log = self.folder / "s" / "logs" / f"faulty-tiny_xs-seed{seed}.log"
        return log.read_text().count("=== ")

    def check_complete(self) -> None:
        for seed in range(self.num_cells):
            assert self.info(seed)["status"] == "done"
            rows = [json.loads(line) for line in (self.run_dir(seed) / "metrics.jsonl").read_text().splitlines()]
            assert [row["step"] for row in rows] == [1, 2]
            assert len(list((self.run_dir(seed) / "rollouts").glob("*.parquet"))) == 2


@pytest.fixture
def make_sweep(tmp_path, memory_group):
    sweeps = []

    def make(num_cells: int) -> Sweep:
        sweeps.append(Sweep(tmp_path, num_cells))
        return sweeps[-1]

    yield make
    for sweep in sweeps:
        sweep.close()


@pytest.mark.slow
def test_killed_with_a_cell_that_raises_one_that_crashes_and_one_out_of_memory(tmp_path, memory_group, make_sweep):
    """The fourth cell is in its second step when the launcher is killed; it goes on, and the second launch waits."""
    sweep = make_sweep(4)
    sweep.fault(0, "exception")
    sweep.fault(1, "segfault")
    sweep.fault(2, f"memory {memory_group}")
    sweep.fault(3, "hold")
    first = sweep.launch("first")
    text = sweep.until(first, "first", "[1/4]", "[2/4]", "[3/4]")
    assert "failed  faulty tiny_xs seed0" in text and "RuntimeError: a cell that raises" in text
    assert any("seed1" in line and "killed by SIGSEGV" in line for line in text.splitlines())
    assert any("seed2" in line and "killed by SIGKILL" in line for line in text.splitlines())
    assert "oom_kill 1" in kills(memory_group)
    first.kill()
    first.wait()
    orphan = owner_of(sweep.run_dir(3))
    assert orphan is not None and psutil.pid_exists(orphan.pid)
    second = sweep.launch("second")
    sweep.until(second, "second", f"elsewhere faulty tiny_xs seed3  process {orphan.pid} on ")
    sweep.mend()
    assert second.wait(timeout=120) == 0, (tmp_path / "second").read_text()
    assert "4 cells: 4 done\n" in (tmp_path / "second").read_text()
    sweep.check_complete()
    assert [sweep.starts(seed) for seed in range(4)] == [2, 2, 2, 1]


@pytest.mark.slow
def test_twelve_cells_killed_halfway_end_complete_under_two_launchers(tmp_path, memory_group, make_sweep):
    sweep = make_sweep(12)
    sweep.fault(1, "exception")
    sweep.fault(2, f"memory {memory_group}")
    sweep.fault(3, "segfault")
    first = sweep.launch("first")
    sweep.until(first, "first", "[ 6/12]", seconds=300)
    first.kill()
    first.wait()
    halfway = sum(sweep.info(seed).get("status") == "done" for seed in range(12))
    assert 3 <= halfway <= 5
    sweep.mend()
    launchers = [sweep.launch("second"), sweep.launch("third")]
    assert [launcher.wait(timeout=600) for launcher in launchers] == [0, 0]
    sweep.check_complete()
    print((tmp_path / "first").read_text(), (tmp_path / "second").read_text(), (tmp_path / "third").read_text())
    # Each step 2 was taken once, whoever took it: the logs tell of starts that found nothing to do, too.
    logs = [(tmp_path / "s" / "logs" / f"faulty-tiny_xs-seed{seed}.log").read_text() for seed in range(12)]
    assert [log.count("step 2/2") for log in logs] == [1] * 12


def kills(group: Path) -> str:
    return "".join(
        file.read_text() for file in (group / "memory.oom_control", group / "memory.events") if file.exists()
    )
