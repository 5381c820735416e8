"""Runs the cells of a study, each in a process of its own.

Each cell has its own process: a crash or a leak of one cannot reach the next, and device memory is given back. Without
GPUs it is a fork of a server that has the libraries imported (`harness.process.warm`). The lock
of the run folder (`harness.records.lock`) decides who runs a cell, so several launchers may work on one study. A
launcher waits for what a killed one left running. Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console

from harness.errors import UserError
from harness.process.devices import has_gpus, num_cores
from harness.process.preemption import handling
from harness.process.warm import WarmProcess, WarmServer, is_possible
from harness.records.folder import RunFolder, is_done, log_prefix, other_configuration
from harness.records.lock import Owner, Watch
from harness.records.read import Damaged
from harness.records.refusals import refusal_of
from harness.study.cells import Cell
from harness.study.progress import Progress, Row
from harness.study.slots import Slots
from harness.study.status import last_metrics, reward_of, seconds_left, step_of, tail

COMMAND = (sys.executable, "-m", "harness.app", "train")
WARM = (sys.executable, "-m", "harness.run.warm")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
POLL_SECONDS = 0.2
PREEMPT_GRACE = 60.0
STOP_MARGIN = 15.0
"""How long a cell may take to end after SIGTERM, before SIGKILL: its `preempt_grace`, and this for the checkpoint."""
EXIT_CODES = {signal.SIGTERM: os.EX_TEMPFAIL, signal.SIGUSR1: os.EX_TEMPFAIL, signal.SIGHUP: 128 + signal.SIGHUP}
"""Signals that stop a sweep: batch systems send the first two, and may requeue on EX_TEMPFAIL (75)."""


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: `done`, `skipped` (done before), `failed`, `interrupted` (goes on when launched again)
    or `refused` (its folder holds another configuration). Under Hydra's launchers also `elsewhere` (another process
    runs it)."""

    cell: Cell
    state: str
    seconds: float | None
    reward: float | None
    error: str | None
    log: Path

    @property
    def ok(self) -> bool:
        return self.state in ("done", "skipped")


def run_cells(
    cells: Sequence[Cell],
    *,
    jobs: int | None = None,
    force: bool = False,
    config_dir: str | None = None,
    command: Sequence[str] = COMMAND,
    console: Console | None = None,
) -> list[Outcome]:
    """Run the cells, `jobs` at a time, on past failures; outcomes are in the order of the cells.

    `jobs` is by default one a GPU share (`Slots`), without GPUs one a core. A cell that is done with the same
    configuration is skipped; with another configuration it is refused. One that another process runs is waited for,
    and tried when that ended without finishing it. `force` removes run folders first. `command` plus a cell's overrides
    is what is started. Prints progress and a summary. Ctrl-C and the signals of `EXIT_CODES` stop the running cells and
    raise SystemExit(130, or the signal's code).
    """
    slots = Slots(cell.config for cell in cells)
    if jobs is None:
        jobs = len(slots.shares) or max(1, min(len(cells), num_cores()))
    if jobs < 1:
        raise UserError(f"jobs must be at least 1, got {jobs}")
    if config_dir is not None:
        command = (*command, "--config-dir", config_dir)
    launch = _Launch(cells, jobs, force, command, slots, Progress(console or Console(), total=len(cells)))
    try:
        with _signals_exit(), launch.progress.live(launch.rows):
            launch.run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        launch.stop()
        launch.starter.close()
    outcomes = [launch.outcomes[cell.run_dir] for cell in cells]
    launch.progress.say(summary(outcomes))
    return outcomes


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 where every cell is done, 75 (EX_TEMPFAIL) where the others may end by themselves or go on, else 1."""
    states = {outcome.state for outcome in outcomes if not outcome.ok}
    return 0 if not states else os.EX_TEMPFAIL if states <= {"interrupted", "elsewhere"} else 1


def summary(outcomes: Sequence[Outcome]) -> str:
    """Counts, then for each cell that is not done its name, last error line and log."""
    counts = [f"{n} {state}" for state in ("done", "skipped", "elsewhere", "interrupted", "failed", "refused")
              if (n := sum(outcome.state == state for outcome in outcomes))]  # fmt: skip
    lines = [f"{len(outcomes)} cells: {', '.join(counts) or 'nothing to do'}"]
    for outcome in outcomes:
        if not outcome.ok:
            lines.append(f"{outcome.state}: {outcome.cell.name}: {outcome.error}")
            if outcome.state == "failed":
                lines.append(f"    log: {outcome.log}")
    return "\n".join(lines)


def log_path(cell: Cell) -> Path:
    prefix = log_prefix(cell.config, cell.label)
    return prefix.with_name(f"{prefix.name}.log")


def settled(cell: Cell) -> Outcome | None:
    """The outcome of a cell that nobody runs and that is not to be started, or None."""
    try:
        record = RunFolder.read_info(cell.run_dir)
        if record.get("status") != "done":
            return None  # a run that is not done goes on, or refuses by itself what is not its own
        problem = other_configuration(cell.run_dir, cell.config)
    except Damaged as error:
        return outcome_of(cell, "failed", str(error))
    if problem:
        return outcome_of(cell, "refused", problem)
    return outcome_of(cell, "skipped", None) if is_done(record, cell.config.steps) else None


def _is_done(cell: Cell) -> bool:
    outcome = settled(cell)
    return outcome is not None and outcome.ok


# --- all cells ---


class _Launch:
    """Every cell is in one of `waiting`, `running`, `elsewhere` and `outcomes`."""

    def __init__(
        self,
        cells: Sequence[Cell],
        jobs: int,
        force: bool,
        command: Sequence[str],
        slots: Slots,
        progress: Progress,
    ) -> None:
        self.cells, self.jobs, self.command, self.slots, self.progress = cells, jobs, command, slots, progress
        self.starter = _Starter(num_threads=max(1, num_cores() // jobs))
        self.waiting: deque[Cell] = deque()
        self.running: dict[Path, _Job] = {}
        self.elsewhere: dict[Path, tuple[Cell, Owner]] = {}
        self.outcomes: dict[Path, Outcome] = {}
        self._watches = {cell.run_dir: Watch(cell.run_dir) for cell in cells}
        # What `force` removes is what was there at the start, not what another launcher has finished since.
        self._outdated = {cell.run_dir: _written(cell.run_dir) for cell in cells} if force else {}

    def run(self) -> None:
        for cell in self.cells:
            if not self._is_elsewhere(cell) and not self._is_settled(cell, "skipped"):
                self.waiting.append(cell)
        while self.waiting or self.running or self.elsewhere:
            self._look_elsewhere()
            self._start_waiting()
            time.sleep(POLL_SECONDS)
            for path in [path for path, job in self.running.items() if job.process.poll() is not None]:
                self._end(self.running[path])
                del self.running[path]

    def stop(self) -> None:
        """SIGTERM to the running cells, and SIGKILL when their time is over, or at once at a second Ctrl-C."""
        jobs = list(self.running.values())
        if not jobs:
            return
        self.progress.say(f"stopping {len(jobs)} running cells; the same command goes on from here")
        for job in jobs:  # to the process alone: it needs its helpers to come to an end
            job.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + max(stop_seconds(job.cell) for job in jobs)
        with contextlib.suppress(KeyboardInterrupt):
            while time.monotonic() < end and any(job.process.poll() is None for job in jobs):
                time.sleep(POLL_SECONDS)
        for job in jobs:
            job.kill()

    def rows(self) -> list[Row]:
        """The cells as they stand; called by another thread than `run`."""
        return [self._row(cell) for cell in self.cells]

    def _row(self, cell: Cell) -> Row:
        path = cell.run_dir
        if (outcome := self.outcomes.get(path)) is not None:
            return _row_of(outcome)
        job, (_, owner) = self.running.get(path), self.elsewhere.get(path, (cell, None))
        if job is None and owner is None:
            return Row(cell.name, "waiting")
        metrics, record = last_metrics(path), read_record(path) if job is None else job.record()
        num_steps = record.get("num_steps")
        state, seconds = ("running", job.seconds) if job else ("elsewhere", owner.seconds if owner else None)
        note = str(owner) if job is None else f"GPU {','.join(job.gpus)}" if job.gpus else ""
        left = seconds_left(metrics, num_steps)
        return Row(cell.name, state, step_of(metrics), num_steps, reward_of(metrics), seconds, left, note)

    def _finished(self, outcome: Outcome) -> None:
        self.outcomes[outcome.cell.run_dir] = outcome
        self.progress.finished(_row_of(outcome))

    def _is_settled(self, cell: Cell, done: str) -> bool:
        """Whether there is nothing to do for a cell; `done` is the state of one that is done already."""
        outcome = None if self._is_outdated(cell) else settled(cell)
        if outcome is None:
            return False
        self._finished(outcome_of(cell, done, None) if outcome.ok else outcome)
        return True

    def _is_outdated(self, cell: Cell) -> bool:
        return cell.run_dir in self._outdated and self._outdated[cell.run_dir] == _written(cell.run_dir)

    def _is_elsewhere(self, cell: Cell) -> bool:
        """Whether another process runs a cell, which then is waited for."""
        owner = self._watches[cell.run_dir].owner()
        if owner is None:
            return False
        is_new = cell.run_dir not in self.elsewhere
        self.elsewhere[cell.run_dir] = (cell, owner)
        if is_new:
            self.progress.changed(Row(cell.name, "elsewhere", note=str(owner)))
        return True

    def _look_elsewhere(self) -> None:
        for cell, _ in list(self.elsewhere.values()):
            if not self._is_elsewhere(cell):
                if not self._is_settled(cell, "done"):
                    self.waiting.appendleft(cell)
                del self.elsewhere[cell.run_dir]

    def _start_waiting(self) -> None:
        while self.waiting and len(self.running) < self.jobs:
            used = [job.gpus for job in self.running.values()]
            used += [tuple((owner.devices or "").split(",")) for _, owner in self.elsewhere.values() if owner.here]
            gpus = self.slots.choose(used, self.jobs)
            if gpus is None:
                return
            cell = self.waiting.popleft()
            if self._is_elsewhere(cell) or self._is_settled(cell, "done"):
                continue
            anew = ("--force",) if self._is_outdated(cell) else ()
            self._outdated.pop(cell.run_dir, None)
            command = (*self.command, *anew)
            job = self.starter.start(cell, command, gpus)
            self.running[cell.run_dir] = job
            self.progress.changed(Row(cell.name, "start", note=f"log {job.log}"))

    def _end(self, job: _Job) -> None:
        job.kill()  # helpers that a crashed cell left
        cell, code, record = job.cell, job.process.returncode, job.record()
        refusal = refusal_of(cell.run_dir, job.process.pid)
        if refusal is not None:
            state = "interrupted" if refusal.exit_code == os.EX_TEMPFAIL else "failed"
            self._finished(outcome_of(cell, state, refusal.error.splitlines()[-1], job.seconds))
        elif code == 0 and (record.get("status") == "done" or _is_done(cell)):  # by this process, or by a faster one
            self._finished(outcome_of(cell, "done", None, job.seconds))
        elif code == os.EX_TEMPFAIL and not record:  # another process has the lock
            self.waiting.append(cell)
        else:
            is_interrupted = code == os.EX_TEMPFAIL or record.get("status") == "interrupted"
            error = record.get("last_error") or record.get("error")
            words = str(error).splitlines()[-1] if error else _last_words(job)
            self._finished(outcome_of(cell, "interrupted" if is_interrupted else "failed", words, job.seconds))


def _row_of(outcome: Outcome) -> Row:
    return Row(
        outcome.cell.name, outcome.state, reward=outcome.reward, seconds=outcome.seconds, note=outcome.error or ""
    )


# --- one cell ---


@dataclass
class _Job:
    cell: Cell
    process: subprocess.Popen[bytes] | WarmProcess
    log: Path
    gpus: tuple[str, ...]
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def record(self) -> dict[str, Any]:
        """`run.json` as this process wrote it; empty while the folder has none, or an earlier attempt's."""
        record = read_record(self.cell.run_dir)
        return record if record.get("pid") == self.process.pid else {}

    def kill(self) -> None:
        """The process and what it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class _Starter:
    """Starts cells, as forks of one server where that is safe: CUDA is not, and GPUs are for runs of hours."""

    def __init__(self, num_threads: int) -> None:
        self._environment = dict.fromkeys(THREAD_VARIABLES, str(num_threads)) | {"PYTHONUNBUFFERED": "1"}
        self._server: WarmServer | None = None

    def start(self, cell: Cell, command: Sequence[str], gpus: tuple[str, ...]) -> _Job:
        log = log_path(cell)
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | self._environment
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        line = [*command, *cell.overrides]
        with log.open("ab") as stream:
            stream.write(f"=== {datetime.now().isoformat(timespec='seconds')} {' '.join(line)}\n".encode())
            stream.flush()
            process = self._fork(line, environment, stream) or self._fresh(line, environment, stream)
        return _Job(cell, process, log, gpus)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def _fork(self, line: Sequence[str], environment: dict[str, str], stream: BinaryIO) -> WarmProcess | None:
        """None where a fork is not safe, or the server has gone."""
        if tuple(line[:2]) != COMMAND[:2] or not is_possible() or has_gpus():
            return None
        if self._server is None:
            self._server = WarmServer(WARM, environment)
        return self._server.start(line[2:], environment, stream)

    def _fresh(self, line: Sequence[str], environment: dict[str, str], stream: BinaryIO) -> subprocess.Popen[bytes]:
        """A session of its own: Ctrl-C reaches the scheduler only, and the cell's helpers are stopped with it."""
        return subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment, start_new_session=True
        )


def read_record(run_dir: Path) -> dict[str, Any]:
    """`run.json`, to be shown; empty where it is missing or damaged."""
    try:
        return RunFolder.read_info(run_dir)
    except Damaged:
        return {}


def _written(run_dir: Path) -> bytes | None:
    """`run.json` as it stands, damaged or not."""
    try:
        return (run_dir / "run.json").read_bytes()
    except FileNotFoundError:
        return None


def _last_words(job: _Job) -> str:
    code = job.process.wait()
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = [line for line in tail(job.log).splitlines() if line.strip() and not line.startswith("=== ")]
    return lines[-1].strip() if lines else f"ended with code {code} without a word"


def outcome_of(cell: Cell, state: str, error: str | None, seconds: float | None = None) -> Outcome:
    return Outcome(cell, state, seconds, reward_of(last_metrics(cell.run_dir)), error, log_path(cell))


# --- stopping ---


def stop_seconds(cell: Cell) -> float:
    """How long a cell may take to end after SIGTERM."""
    return float(getattr(cell.config, "preempt_grace", PREEMPT_GRACE)) + STOP_MARGIN


@contextlib.contextmanager
def _signals_exit() -> Iterator[None]:
    """The signals of `EXIT_CODES` raise SystemExit in here, so that cells are stopped."""

    def leave(number: int, _: Any) -> None:
        raise SystemExit(EXIT_CODES[signal.Signals(number)])

    with handling(EXIT_CODES, leave):
        yield
