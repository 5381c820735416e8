"""`<study>/refused.jsonl`: launches that were refused before their run began, which leave its folder as it is.

A line has the cell (label, student, seed), the process, the time, the message and the exit code. Imports no torch.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "refused.jsonl"


@dataclass(frozen=True)
class Refusal:
    label: str
    student: str
    seed: int
    pid: int
    time: str
    error: str
    exit_code: int

    @property
    def cell(self) -> tuple[str, str, int]:
        return self.label, self.student, self.seed


def refuse(run_dir: Path, error: str, exit_code: int) -> None:
    """Add a line for the cell of a run folder. A study that cannot be written has none: the message is printed too."""
    label, student, seed = _cell(run_dir)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    line = Refusal(label, student, seed, os.getpid(), now, error, exit_code)
    with contextlib.suppress(OSError), (run_dir.parents[2] / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(line)) + "\n")  # one write: several cells may be refused at a time


def refusals(study_dir: Path) -> list[Refusal]:
    """The newest of each cell, in the order of their first lines. Damaged lines are passed over."""
    newest: dict[tuple[str, str, int], Refusal] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (study_dir / FILE).read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError):
                found = Refusal(**json.loads(line))
                newest[found.cell] = found
    return list(newest.values())


def refused_cells(study_dir: Path) -> list[Refusal]:
    """The cells that have been refused and have no run."""
    return [
        found
        for found in refusals(study_dir)
        if not (study_dir / found.label / found.student / f"seed{found.seed}" / "run.json").exists()
    ]


def refusal_of(run_dir: Path, pid: int) -> Refusal | None:
    """How a process was refused at a cell; None where it was not."""
    cell = _cell(run_dir)
    return next((r for r in refusals(run_dir.parents[2]) if (r.cell, r.pid) == (cell, pid)), None)


def _cell(run_dir: Path) -> tuple[str, str, int]:
    label, student, seed = run_dir.parts[-3:]
    digits = seed.removeprefix("seed")
    return label, student, int(digits) if digits.lstrip("-").isdecimal() else -1
