"""Runs in processes of their own that end where or when a test says, and the comparison with the uninterrupted run.

They come from the fork server, so that a kill costs no more than the run itself.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from harness.process import preemption
from harness.testing.checks import assert_same_run
from tests.support.fork_server import fork_server

SECONDS = 300
"""After which a run is stuck. Time does not count while somebody has stopped the process (SIGSTOP)."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A signal to the run itself: at the `number`-th time that it comes by the boundary `point`, else after `seconds`
    of running."""

    point: str | None = None
    number: int = 1
    seconds: float = 0.0
    signal: int = signal.SIGKILL
    hold: float = 0.0
    """Seconds that the run stands still at the point, after the signal."""


class Launcher:
    """Launches one run again and again."""

    def __init__(self, overrides: Sequence[str]) -> None:
        self.overrides = list(overrides)
        self._context = fork_server()
        self._stacks = tempfile.NamedTemporaryFile(prefix="stacks-")  # noqa: SIM115

    def launch(self, fault: Fault | None = None) -> int:
        """Run until it ends; returns its exit code, the negative number of the signal where it was killed."""
        process = self.start(fault)
        if fault is not None and fault.point is None:
            process.join(fault.seconds)
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, fault.signal)
        return self.wait(process)

    def start(self, fault: Fault | None = None) -> BaseProcess:
        process = self._context.Process(target=_run, args=(self.overrides, fault, self._stacks.name))
        process.start()
        return process

    def wait(self, process: BaseProcess) -> int:
        """Raises AssertionError, with the stacks of all threads, for a run that does not end."""
        waited = 0
        while process.is_alive() and waited < SECONDS:
            process.join(1)
            waited += not _is_stopped(process)
        if process.exitcode is None and process.pid is not None:
            os.kill(process.pid, signal.SIGUSR2)
            process.join(2)
            process.kill()
            raise AssertionError(f"the run is stuck after {SECONDS} s:\n{Path(self._stacks.name).read_text()}")
        assert process.exitcode is not None
        return process.exitcode

    def points(self) -> list[str]:
        """The boundaries that an uninterrupted run comes by, in order, repeated ones too."""
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_record, args=(self.overrides, sender))
        process.start()
        sender.close()
        found: list[str] = receiver.recv()
        process.join()
        return found


@dataclass
class Tally:
    """How many faults there were, and how many ended the run rather than coming too late."""

    kills: int = 0
    late: int = 0
    seconds: float = 0.0

    def add(self, code: int) -> None:
        self.kills += code != 0
        self.late += code == 0

    def __iadd__(self, other: Tally) -> Tally:
        return Tally(self.kills + other.kills, self.late + other.late, self.seconds + other.seconds)

    def __str__(self) -> str:
        return f"{self.kills} interruptions ({self.late} came too late), no difference, {self.seconds:.0f} s"


def survive(launcher: Launcher, faults: Sequence[Fault], folder: Path, whole: Path) -> Tally:
    """Launch with one fault after another, then without; the end has to be that of the uninterrupted run `whole`."""
    started, tally = time.monotonic(), Tally()
    for fault in faults:
        code = launcher.launch(fault)
        assert code in (0, -fault.signal, os.EX_TEMPFAIL), f"{fault}: exit code {code}"
        tally.add(code)
        if code == 0:  # the run is done, and later ones would find nothing to do
            break
    assert launcher.launch() == 0, f"{folder}: the run does not go on behind {faults}"
    assert_same_end(whole, folder)
    tally.seconds = time.monotonic() - started
    return tally


def assert_same_end(a: Path, b: Path) -> None:
    """Besides what `assert_same_run` compares: every tensor of the checkpoints to the bit, and no file more or less."""
    assert_same_run(a, b)
    assert _files(a) == _files(b), "one folder has files that the other has not"
    for path in sorted((a / "checkpoints").glob("*/SHA256SUMS")):
        other = b / path.relative_to(a)
        assert _tensors(path) == _tensors(other), f"{path.parent} and {other.parent} differ"
    for path in sorted((a / "eval").rglob("*.csv")):
        assert path.read_text() == (b / path.relative_to(a)).read_text(), f"{path} differs"


def random_faults(num_faults: int, seconds: float, seed: int, signals: Sequence[int]) -> list[Fault]:
    """At times drawn evenly up to `seconds`."""
    rng = random.Random(seed)
    return [Fault(seconds=rng.uniform(0, seconds), signal=rng.choice(signals)) for _ in range(num_faults)]


def _files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.name not in ("run.log", ".lock.json")}


def _tensors(sums: Path) -> list[str]:
    return [line for line in sums.read_text().splitlines() if line.endswith(".safetensors")]


def _is_stopped(process: BaseProcess) -> bool:
    try:
        return psutil.Process(process.pid).status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


def _run(overrides: Sequence[str], fault: Fault | None, stacks: str) -> None:
    from harness.config.compose import compose
    from harness.config.schema import from_hydra
    from harness.run.run import run

    passed: list[str] = []

    def strike(name: str) -> None:
        passed.append(name)
        if fault is not None and name == fault.point and passed.count(name) == fault.number:
            os.kill(os.getpid(), fault.signal)
            time.sleep(fault.hold)

    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    faulthandler.register(signal.SIGUSR2, file=open(stacks, "w"), all_threads=True)  # noqa: SIM115
    preemption.watch(strike)
    try:
        run(from_hydra(compose(list(overrides))))
    except preemption.Stopped as error:
        os._exit(error.exit_code)  # as the command does
    finally:
        preemption.watch(None)


def _record(overrides: Sequence[str], sender: object) -> None:
    from harness.config.compose import compose
    from harness.config.schema import from_hydra
    from harness.run.run import run

    passed: list[str] = []
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    preemption.watch(passed.append)
    run(from_hydra(compose(list(overrides))))
    sender.send(passed)  # type: ignore[attr-defined]
