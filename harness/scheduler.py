"""Runs the cells of a study, each in a process of its own.

A process a cell: a crash or a leak of one cannot reach the next, and device memory is given back. Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.errors import UserError
from harness.run_folder import RunFolder, other_configuration
from harness.status import format_seconds, is_alive, last_metrics, reward_of, step_of, tail
from harness.sweep import Cell

COMMAND = (sys.executable, "-m", "harness.app", "train")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
POLL_SECONDS = 0.2
STOP_SECONDS = 10.0
"""How long a cell may take to end after SIGTERM, before SIGKILL."""


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: `done`, `skipped` (done before), `failed`, or `refused` (its folder is taken)."""

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
    jobs: int,
    force: bool = False,
    config_dir: str | None = None,
    command: Sequence[str] = COMMAND,
    console: Console | None = None,
) -> list[Outcome]:
    """Run the cells, `jobs` at a time, on past failures; outcomes are in the order of the cells.

    A cell that is done with the same configuration is skipped; with another configuration it is refused. `force`
    removes the run folder first. `command` plus a cell's overrides is what is started. Prints progress and a summary.
    Ctrl-C, SIGTERM and SIGHUP stop the running cells and raise SystemExit(130, 143 or 129).
    """
    if jobs < 1:
        raise UserError(f"jobs must be at least 1, got {jobs}")
    if config_dir is not None:
        command = (*command, "--config-dir", config_dir)
    progress = _Progress(console or Console(), total=len(cells))
    outcomes: dict[Path, Outcome] = {}
    waiting: deque[Cell] = deque()
    running: list[_Job] = []
    for cell in cells:
        outcome = _settled(cell, force)
        if outcome is None:
            waiting.append(cell)
        else:
            outcomes[cell.run_dir] = outcome
            progress.finished(outcome)
    try:
        with _signals_exit(), progress.live(running):
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(
                        _start(waiting.popleft(), command, num_threads=max(1, num_cores() // jobs), force=force)
                    )
                    progress.started(running[-1])
                time.sleep(POLL_SECONDS)
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    outcomes[job.cell.run_dir] = _finish(job)
                    progress.finished(outcomes[job.cell.run_dir])
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        if running:
            progress.console.print(f"stopping {len(running)} running cells; the same command goes on from here")
            _stop(running)
    ordered = [outcomes[cell.run_dir] for cell in cells]
    progress.console.print(summary(ordered), markup=False, highlight=False, soft_wrap=True)
    return ordered


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 where every cell is done, else 1."""
    return 0 if all(outcome.ok for outcome in outcomes) else 1


def summary(outcomes: Sequence[Outcome]) -> str:
    """Counts, then for each cell that is not done its name, last error line and log."""
    counts = [f"{n} {state}" for state in ("done", "skipped", "failed", "refused")
              if (n := sum(outcome.state == state for outcome in outcomes))]  # fmt: skip
    lines = [f"{len(outcomes)} cells: {', '.join(counts) or 'nothing to do'}"]
    for outcome in outcomes:
        if not outcome.ok:
            lines.append(f"{outcome.state}: {outcome.cell.name}: {outcome.error}")
            if outcome.state == "failed":
                lines.append(f"    log: {outcome.log}")
    return "\n".join(lines)


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def log_path(cell: Cell) -> Path:
    return cell.study_dir / "logs" / f"{cell.label}-{cell.student}-seed{cell.seed}.log"


# --- one cell ---


@dataclass
class _Job:
    cell: Cell
    process: subprocess.Popen[bytes]
    log: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def record(self) -> dict[str, Any]:
        """`run.json` as this process wrote it; empty while the folder has none, or an earlier attempt's."""
        record = RunFolder.read_info(self.cell.run_dir)
        return record if record and record["pid"] == self.process.pid else {}


def _settled(cell: Cell, force: bool) -> Outcome | None:
    """The outcome of a cell that is not to be started, or None."""
    record = RunFolder.read_info(cell.run_dir)
    if is_alive(cell.run_dir):
        return _outcome(cell, "refused", f"process {record['pid']} is running it: wait for it, or stop it")
    if force or not record or record["status"] != "done":
        return None  # a run that is not done goes on, or refuses by itself what is not its own
    if problem := other_configuration(cell.run_dir, cell.config):
        return _outcome(cell, "refused", problem)
    prolonged = cell.config.steps is not None and record["num_steps"] not in (None, cell.config.steps)
    return None if prolonged else _outcome(cell, "skipped", None)


def _start(cell: Cell, command: Sequence[str], *, num_threads: int, force: bool) -> _Job:
    if force and any((cell.run_dir / name).exists() for name in ("run.json", "config.yaml")):
        shutil.rmtree(cell.run_dir)
    log = log_path(cell)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(num_threads)) | {"PYTHONUNBUFFERED": "1"}
    line = [*command, *cell.overrides]
    with log.open("ab") as stream:
        stream.write(f"=== {datetime.now().isoformat(timespec='seconds')} {' '.join(line)}\n".encode())
        stream.flush()
        # A session of its own: Ctrl-C reaches the scheduler only, and the cell's helpers are stopped with it.
        process = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment, start_new_session=True
        )
    return _Job(cell, process, log)


def _finish(job: _Job) -> Outcome:
    _signal_group(job, signal.SIGKILL)  # helpers that a crashed cell left behind
    record = job.record()
    if record and record["status"] == "done" and job.process.returncode == 0:
        return _outcome(job.cell, "done", None, seconds=job.seconds)
    error = record["error"] if record and record["status"] == "failed" else None
    return _outcome(job.cell, "failed", str(error).splitlines()[-1] if error else _last_words(job), seconds=job.seconds)


def _last_words(job: _Job) -> str:
    code = job.process.returncode
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = [line for line in tail(job.log).splitlines() if line.strip() and not line.startswith("=== ")]
    return lines[-1].strip() if lines else f"ended with code {code} without a word"


def _outcome(cell: Cell, state: str, error: str | None, seconds: float | None = None) -> Outcome:
    return Outcome(cell, state, seconds, reward_of(last_metrics(cell.run_dir)), error, log_path(cell))


# --- stopping ---


@contextlib.contextmanager
def _signals_exit() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit in here, so that cells are stopped. Only the main thread may set handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(jobs: Sequence[_Job]) -> None:
    """SIGTERM, then SIGKILL after a while, or at once at a second Ctrl-C."""
    for job in jobs:
        _signal_group(job, signal.SIGTERM)
    end = time.monotonic() + STOP_SECONDS
    with contextlib.suppress(KeyboardInterrupt):
        while time.monotonic() < end and any(job.process.poll() is None for job in jobs):
            time.sleep(POLL_SECONDS)
    for job in jobs:
        _signal_group(job, signal.SIGKILL)
        job.process.wait()


def _signal_group(job: _Job, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(job.process.pid, number)


# --- progress ---


class _Progress:
    """A line for every cell that ends; on a terminal also a live table of the running ones."""

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total, self.num_finished = console, total, 0

    def live(self, running: list[_Job]) -> contextlib.AbstractContextManager[Any]:
        if not self.console.is_terminal:
            return contextlib.nullcontext()
        return Live(get_renderable=lambda: self.table(running), console=self.console, transient=True)

    def table(self, running: list[_Job]) -> Table:
        table = Table.grid(padding=(0, 2))
        for job in running:
            metrics, record = last_metrics(job.cell.run_dir), job.record()
            step, num_steps = step_of(metrics), record["num_steps"] if record else None
            bar = ProgressBar(total=num_steps or 1, completed=step if num_steps else 0, width=24)
            table.add_row(
                Text(job.cell.name),
                bar,
                f"{step}/{num_steps or '?'}",
                format_seconds(job.seconds),
                _reward_text(metrics),
            )
        return table

    def started(self, job: _Job) -> None:
        if not self.console.is_terminal:
            self._print(f"{'':{2 * len(str(self.total)) + 3}} start   {job.cell.name}  log {job.log}")

    def finished(self, outcome: Outcome) -> None:
        self.num_finished += 1
        parts = [f"{outcome.state:<7} {outcome.cell.name}"]
        if outcome.seconds is not None:
            parts.append(format_seconds(outcome.seconds))
        if outcome.reward is not None:
            parts.append(f"reward {outcome.reward:.2f}")
        if outcome.error is not None:
            parts.append(outcome.error)
        self._print(f"[{self.num_finished:>{len(str(self.total))}}/{self.total}] {'  '.join(parts)}")

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _reward_text(metrics: dict[str, Any]) -> str:
    reward = reward_of(metrics)
    return "" if reward is None else f"reward {reward:.2f}"
