"""How a study stands, read from its run folders: `zppo status`, and what the scheduler shows. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.errors import UserError, did_you_mean, first_line
from harness.records.folder import RunFolder
from harness.records.lock import owner_of
from harness.records.read import Damaged
from harness.records.refusals import Refusal, refused_cells
from harness.study.cells import BASE
from reports.runs.text import printable

TAIL_BYTES = 65_536
SHOWN = ("status", "num_steps", "label", "method", "student", "seed", "started", "finished")
MAY_BE_NULL = ("num_steps", "finished")


def format_seconds(seconds: float) -> str:
    """`42 s`, `12.5 min` or `3.1 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def last_metrics(run_dir: Path) -> dict[str, Any]:
    """The last complete line of `metrics.jsonl`; empty before the first step."""
    try:
        lines = tail(run_dir / "metrics.jsonl").split("\n")[:-1]
        row = json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def reward_of(metrics: dict[str, Any]) -> float | None:
    """Mean reward of the step's student rollouts: rewards are 0 or 1, so this is their accuracy."""
    return metrics.get("rollout/accuracy")


def step_of(metrics: dict[str, Any]) -> int:
    return metrics["step"] if metrics else 0


def seconds_left(metrics: dict[str, Any], num_steps: int | None) -> float | None:
    """Seconds of the training's remaining steps at the pace of the last one. None before the first."""
    return (num_steps - step_of(metrics)) * metrics["time/step"] if num_steps and "time/step" in metrics else None


@dataclass(frozen=True)
class RunState:
    """One row of `zppo status`."""

    label: str
    method: str
    student: str
    seed: int
    state: str
    step: int
    num_steps: int | None
    reward: float | None
    seconds: float | None
    seconds_left: float | None
    note: str = ""
    """Why it was refused, or how going on from a run that is done has failed."""


def run_states(study_dir: Path) -> list[RunState]:
    """Every run of a study, base first. Raises UserError where there is no study or no run in it."""
    if not study_dir.is_dir():
        siblings = [entry.name for entry in study_dir.parent.glob("*") if entry.is_dir()]
        raise UserError(f"no study '{study_dir.name}' in {study_dir.parent}.{did_you_mean(study_dir.name, siblings)}")
    states = [_run_state(file.parent) for file in study_dir.glob("*/*/seed*/run.json")]
    states += [
        _without_record(file.parent, "starting")
        for file in study_dir.glob("*/*/seed*/.lock.json")
        if not (file.parent / "run.json").exists() and owner_of(file.parent) is not None
    ]
    states += [
        _without_record(file.parent, "damaged", "run.json is missing: copy it, or launch the run again")
        for file in study_dir.glob("*/*/seed*/config.yaml")
        if not (file.parent / "run.json").exists() and owner_of(file.parent) is None
    ]
    known = {(run.label, run.student, run.seed) for run in states}
    states += [_refused(study_dir, refusal) for refusal in refused_cells(study_dir) if refusal.cell not in known]
    if not states:
        raise UserError(f"{study_dir} has no runs yet: start them with zppo sweep or zppo train")
    return sorted(states, key=lambda run: (run.method != BASE, run.student, run.label, run.seed))


def _run_state(run_dir: Path) -> RunState:
    metrics = last_metrics(run_dir)
    try:
        record = RunFolder.read_info(run_dir)
        missing = [name for name in SHOWN if name not in record or (record[name] is None and name not in MAY_BE_NULL)]
        if missing:
            raise Damaged(run_dir / "run.json", f"it has no {missing[0]}")
    except Damaged as error:
        return _without_record(run_dir, "damaged", str(error))
    state, num_steps, left = record["status"], record["num_steps"], None
    owner = owner_of(run_dir)
    if owner is not None:
        state = owner.phase
    elif state == "running":
        state = "interrupted"
    if state == "running":
        left = seconds_left(metrics, num_steps)
    return RunState(
        record["label"], record["method"], record["student"], record["seed"], state,
        step_of(metrics), num_steps, reward_of(metrics), _seconds(record, run_dir), left,
        note=f"not prolonged: {record['last_error']}" if record.get("last_error") else "",
    )  # fmt: skip


def _without_record(run_dir: Path, state: str, note: str = "") -> RunState:
    """A cell whose run.json says nothing, by its folder's name."""
    label, student, seed = run_dir.parts[-3:]
    digits = seed.removeprefix("seed")
    number = int(digits) if digits.isdecimal() else -1
    return RunState(label, label.partition(",")[0], student, number, state, 0, None, None, None, None, note)


def _refused(study_dir: Path, refusal: Refusal) -> RunState:
    """A launch that left no run."""
    run_dir = study_dir / refusal.label / refusal.student / f"seed{refusal.seed}"
    return _without_record(run_dir, "refused", first_line(UserError(refusal.error)))


def _seconds(record: dict[str, Any], run_dir: Path) -> float | None:
    """Seconds that the run ran. Of a run that an earlier version wrote, those from its first start to its end."""
    if "seconds" in record:
        return float(record["seconds"])
    finished = record["finished"]
    end = datetime.fromisoformat(finished).timestamp() if finished else (run_dir / "run.json").stat().st_mtime
    return max(0.0, end - datetime.fromisoformat(record["started"]).timestamp())


def status(study_dir: str | Path) -> str:
    """What `zppo status` prints: runs, state, step, reward, time and time left. Raises UserError as `run_states`."""
    table = Table(box=None, pad_edge=False)
    for name in ("run", "student", "seed", "state", "step", "reward", "time", "left"):
        table.add_column(name, justify="left" if name in ("run", "student", "state") else "right", no_wrap=True)
    runs = run_states(Path(study_dir))
    for run in runs:
        times = ["" if seconds is None else format_seconds(seconds) for seconds in (run.seconds, run.seconds_left)]
        step = f"{run.step}/{run.num_steps}" if run.num_steps else ""
        reward = "" if run.reward is None else f"{run.reward:.2f}"
        names = (Text(printable(str(name))) for name in (run.label, run.student, run.seed, run.state))
        table.add_row(*names, step, reward, *times)
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    lines += [f"{run.state}: {run.label} {run.student} seed{run.seed}: {run.note}" for run in runs if run.note]
    return "\n".join(lines)


def tail(file: Path) -> str:
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - TAIL_BYTES))
        return stream.read().decode("utf-8", errors="replace")
