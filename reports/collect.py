"""From run folders to tables: one row a score, one row a run. Reads files only, imports nothing of the harness."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd

BASE = "base"
"""`method` of a run without training."""


@dataclass(frozen=True)
class Column:
    """One column of the long table: its name, the file it comes from, its name there, and whether it may be missing."""

    name: str
    source: Literal["run.json", "scores.csv"]
    field: str
    required: bool = True


COLUMNS = (
    Column("label", "run.json", "label"),
    Column("method", "run.json", "method"),
    Column("student", "run.json", "student"),
    Column("teacher", "run.json", "teacher", required=False),
    Column("seed", "run.json", "seed"),
    Column("benchmark", "scores.csv", "benchmark"),
    Column("family", "scores.csv", "family", required=False),
    Column("score", "scores.csv", "score"),
    Column("stderr", "scores.csv", "stderr", required=False),
    Column("n", "scores.csv", "n"),
    Column("protocol", "scores.csv", "protocol"),
)
"""`score` and `stderr` are in percent; `suite` (the folder's name) is added."""


@dataclass(frozen=True)
class Run:
    """One run folder: its `run.json`, and why it is not in the tables (None where it is)."""

    folder: Path
    info: dict[str, Any]
    incomplete: str | None

    @property
    def name(self) -> str:
        return f"{self.info['label']} {self.info['student']} seed{self.info['seed']}"


def find_runs(study_dir: Path) -> list[Run]:
    """Every run of a study: base first, then by label, student and seed.

    Raises ValueError where the folder does not exist, has no run, or a `run.json` lacks a required field.
    """
    if not study_dir.is_dir():
        raise ValueError(f"no study folder {study_dir}: name one, such as outputs/quickstart")
    runs = [_run(file) for file in sorted(study_dir.glob("*/*/seed*/run.json"))]
    if not runs:
        raise ValueError(f"{study_dir} has no runs: start them with zppo sweep or zppo train")
    return sorted(runs, key=lambda run: (run.info["method"] != BASE, run.info["label"], run.info["student"],
                                         run.info["seed"]))  # fmt: skip


def collect(study_dir: Path) -> pd.DataFrame:
    """The long table of a study: one row for each complete run, suite and benchmark, in the order of `find_runs`.

    Scores of evaluations during training (`eval/<suite>/step-000010/`) are not read. Raises ValueError as `find_runs`,
    and for a score file that lacks a required column.
    """
    tables = [
        _scores(run, file) for run in find_runs(study_dir) if run.incomplete is None for file in score_files(run.folder)
    ]
    names = [*(column.name for column in COLUMNS), "suite"]
    return pd.concat(tables, ignore_index=True)[names] if tables else pd.DataFrame(columns=names)


def score_files(folder: Path) -> list[Path]:
    """`eval/<suite>/scores.csv` of a run."""
    return sorted(folder.glob("eval/*/scores.csv"))


def seconds_of(info: dict[str, Any]) -> float | None:
    """Wall time of a run from its first start to its end, pauses included; None while it has no end."""
    if not info.get("finished"):
        return None
    return (datetime.fromisoformat(info["finished"]) - datetime.fromisoformat(info["started"])).total_seconds()


def _run(file: Path) -> Run:
    info = json.loads(file.read_text(encoding="utf-8"))
    for name in ["status", *(column.field for column in COLUMNS if column.source == "run.json" and column.required)]:
        if info.get(name) is None:
            raise ValueError(f"{file} has no '{name}': it was not written by this harness, move it out of the study")
    incomplete = None
    if info["status"] != "done":
        error = info.get("error")
        incomplete = info["status"] + (f": {str(error).splitlines()[-1]}" if error else "")
    elif not score_files(file.parent):
        incomplete = "done, but not evaluated"
    return Run(file.parent, info, incomplete)


def _scores(run: Run, file: Path) -> pd.DataFrame:
    """The score file with the columns of `COLUMNS` and `suite`."""
    scores = pd.read_csv(file, dtype={"benchmark": str, "family": str, "protocol": str})
    table = pd.DataFrame(index=scores.index)
    for column in COLUMNS:
        if column.source == "run.json":
            table[column.name] = run.info.get(column.field)
        elif column.field in scores:
            table[column.name] = scores[column.field]
        elif column.required:
            raise ValueError(f"{file} has no column '{column.field}': evaluate the run again")
        else:
            table[column.name] = None
    return table.assign(suite=file.parent.name)
