"""Cells of a study under one of Hydra's launchers (submitit, Ray): `zppo sweep NAME hydra/launcher=zppo_slurm`.

`launch` writes the cells that are to be run into a plan, and starts this module as a Hydra application whose
jobs are numbers of cells. A job starts `zppo train` as a child, so that a crash of the run is not one of the job. What
the batch system says to a job reaches the child as SIGTERM, which has time to write a checkpoint. The job is then
requeued by the launcher that knows how (submitit), or its cell started again in place. Imports no torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig
from rich.console import Console

from harness.config.compose import compose_launcher, group_options
from harness.errors import UserError, did_you_mean
from harness.records.lock import owner_of
from harness.study.cells import Cell
from harness.study.scheduler import COMMAND, Outcome, exit_code, outcome_of, read_record, settled, stop_seconds, summary
from reports.runs.text import printable_lines

REQUEUE_SIGNAL = signal.SIGUSR2
"""submitit's word to a job that its time is over; its handler puts the job back into the queue."""
POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1


@dataclass
class LaunchConfig:
    """The options of a job (`conf/launch.yaml`)."""

    plan: str = MISSING
    """File with the cells: a list of {"name": ..., "command": [...], "grace": seconds}."""
    cell: int = MISSING
    """Which of them."""
    restarts: int = 3
    """How often a cell that was interrupted from within is started again where nobody requeues the job."""
    pause: float = 30.0
    """Seconds before that."""


ConfigStore.instance().store(name="launch_defaults", node=LaunchConfig)


class CellFailed(Exception):
    """A cell ended otherwise than done; the launcher goes on with the others."""


# --- in the launcher ---


def launch(
    cells: Sequence[Cell], hydra_overrides: Sequence[str], *, config_dir: str | None = None, force: bool = False
) -> int:
    """Give the cells that are not done, and that nobody runs, to Hydra's launcher. Returns the exit code of the sweep.

    `hydra_overrides` are those of the command line that are the launcher's. Waits as long as the launcher does.
    Raises UserError with `force`.
    """
    check_launcher(hydra_overrides)
    if force:
        raise UserError("--force removes folders from under jobs that may be queued: remove them by hand")
    command = [*COMMAND, *(() if config_dir is None else ("--config-dir", config_dir))]
    before = {cell.run_dir: settled(cell) for cell in cells}
    missing = [cell for cell in cells if before[cell.run_dir] is None and owner_of(cell.run_dir) is None]
    if missing:
        plan = [
            {"name": cell.name, "command": [*command, *cell.overrides], "grace": stop_seconds(cell)} for cell in missing
        ]
        _run_hydra(_write_plan(missing[0].study_dir / "launcher", plan), len(plan), hydra_overrides)
    outcomes = [before[cell.run_dir] or _outcome(cell) for cell in cells]
    Console().print(printable_lines(summary(outcomes)), markup=False, highlight=False, soft_wrap=True)
    return exit_code(outcomes)


def check_launcher(hydra_overrides: Sequence[str]) -> None:
    """Raises UserError for a launcher that Hydra does not find, or whose batch system is not on this machine."""
    chosen = [line.partition("=")[2] for line in hydra_overrides if line.lstrip("+").startswith("hydra/launcher=")]
    name = chosen[-1] if chosen else "basic"
    known = [*group_options("hydra/launcher"), "basic"]
    try:
        target = compose_launcher(hydra_overrides)
    except UserError as error:
        if name in known:
            what = f"hydra/launcher={name} is not installed: pip install -e '.[launchers]' in the checkout"
            raise UserError(what if "launcher/" in str(error) else f"hydra/launcher={name}: {error}") from error
        raise UserError(f"no launcher '{name}'.{did_you_mean(name, known)}") from error
    if target.endswith("SlurmLauncher") and shutil.which("srun") is None:
        raise UserError(f"hydra/launcher={name} needs Slurm, and there is no srun: launch on a node of the cluster")


def _outcome(cell: Cell) -> Outcome:
    """How a cell stands now, read off its folder."""
    record, owner = read_record(cell.run_dir), owner_of(cell.run_dir)
    if owner is not None:
        return outcome_of(cell, "elsewhere", str(owner))
    if (outcome := settled(cell)) is not None:
        return replace(outcome, state="done") if outcome.ok else outcome
    is_interrupted = record.get("status") in ("running", "interrupted")
    error = record.get("error") or f"see {cell.study_dir / 'launcher'}"
    return outcome_of(cell, "interrupted" if is_interrupted else "failed", error)


def _write_plan(folder: Path, plan: list[dict[str, Any]]) -> Path:
    """Named after its content: jobs of an earlier launch, which may still be queued, keep their numbers."""
    text = json.dumps(plan, indent=1) + "\n"
    file = folder.resolve() / f"plan-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def _run_hydra(plan: Path, num_cells: int, hydra_overrides: Sequence[str]) -> None:
    sweep_dir = plan.with_suffix("")
    command = [
        sys.executable, "-m", "harness.study.launchers", "--multirun", f"hydra.sweep.dir={_quoted(sweep_dir)}",
        *hydra_overrides, f"plan={_quoted(plan)}", f"cell={','.join(map(str, range(num_cells)))}",
    ]  # fmt: skip
    subprocess.run(command, check=False)  # how the cells fared is read off their folders


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "\\'") + "'"


# --- in a job ---


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="launch")
def main(cfg: DictConfig) -> None:
    """One job: the cell `cfg.cell` of the plan."""
    entry = json.loads(Path(cfg.plan).read_text(encoding="utf-8"))[cfg.cell]
    run_cell(entry["command"], grace=entry["grace"], restarts=cfg.restarts, pause=cfg.pause)


def run_cell(command: Sequence[str], *, grace: float, restarts: int, pause: float) -> None:
    """Run a command to its end; raises CellFailed where that is not 0.

    SIGUSR1, SIGUSR2 and SIGTERM stop it with SIGTERM, and SIGKILL after `grace` seconds; then the handler that was
    there before does its work, which for submitit's is to requeue. So it is when the command ends with 75 (EX_TEMPFAIL)
    by itself; without such a handler it is started again, `restarts` times, after `pause` seconds each.
    """
    for attempt in range(restarts + 1):
        child = _Child(command, grace)
        try:
            code = child.wait()
        finally:
            child.close()
        if code == 0:
            return
        if code != os.EX_TEMPFAIL:
            raise CellFailed(f"ended with {code}: {' '.join(command)}")
        if child.told is not None:
            break
        if callable(signal.getsignal(REQUEUE_SIGNAL)):
            signal.raise_signal(REQUEUE_SIGNAL)
        if attempt < restarts:
            time.sleep(pause)
    raise CellFailed(f"interrupted: {' '.join(command)}")


class _Child:
    """A process that gets SIGTERM when this one is signalled or dies, and the time to follow it."""

    def __init__(self, command: Sequence[str], grace: float) -> None:
        self.told: signal.Signals | None = None
        self._grace = grace
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_prepare)
        numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
        self._before = {number: signal.signal(number, self._note) for number in numbers}

    def wait(self) -> int:
        """The exit code, after the handler of a signal that came meanwhile has done its work."""
        while self._process.poll() is None and self.told is None:
            time.sleep(POLL_SECONDS)
        self._end()
        if self.told is not None and callable(before := self._before[self.told]):
            before(self.told, None)
        return self._process.returncode

    def close(self) -> None:
        """Put the handlers back, and end what still runs."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._end()

    def _note(self, number: int, frame: FrameType | None) -> None:
        """No more than that: what waits for a process may be in the middle of it."""
        self.told = signal.Signals(number)

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(self._grace)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _prepare() -> None:
    """In the child, before it runs: Slurm's signals go to every process of a step, and this one is only for the job."""
    signal.signal(REQUEUE_SIGNAL, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


if __name__ == "__main__":
    main()
