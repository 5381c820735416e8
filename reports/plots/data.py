"""What the figures are drawn from: training metrics, buffer events, and macro averages by run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reports.runs.cards import BLOCK, comparable
from reports.runs.collect import Run

RUN_KEYS = ("label", "student", "seed")
EVENTS = {"admit": "admitted", "graduate": "graduated", "evict": "evicted"}


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Every complete line of a `.jsonl` file: a run that is writing right now may have half a last one.

    Empty where there is no file. Raises ValueError, one line, where a complete line is no JSON.
    """
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} line {number} is broken: remove that line, or copy the file again") from error
    return rows


def load_metrics(runs: Sequence[Run]) -> pd.DataFrame:
    """All `metrics.jsonl` below one another: label, student, seed, step and the metrics' own columns."""
    tables = []
    for run in runs:
        file = run.folder / "metrics.jsonl"
        if file.exists():
            table = _metrics(file, file.stat().st_size, file.stat().st_mtime_ns)
            if not table.empty:
                tables.append(table.assign(**{key: run.info[key] for key in RUN_KEYS}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


@lru_cache(maxsize=256)
def _metrics(file: Path, size: int, mtime_ns: int) -> pd.DataFrame:
    """The lines of a file in this state: a report asks for them several times."""
    return pd.DataFrame(read_lines(file))


def load_events(runs: Sequence[Run]) -> pd.DataFrame:
    """Admissions, graduations and evictions of all `buffer.jsonl`.

    Columns: step, event, entry_accuracy, label, student, seed.
    """
    names = ("step", "event", "entry_accuracy")
    tables = []
    for run in runs:
        rows = [
            {name: row[name] for name in names}
            for row in read_lines(run.folder / "buffer.jsonl")
            if row["event"] in EVENTS
        ]
        if rows:
            tables.append(_with_keys(run, rows))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*names, *RUN_KEYS])


def cumulative_events(events: pd.DataFrame, num_steps: int, bins: Sequence[float]) -> dict[str, pd.DataFrame]:
    """Counts of one run: admitted, graduated, evicted and held (what is in the buffer after the step), counts so far.

    Each is a table with a row a step from 1 to `num_steps` and a column a bin of accuracy at admission.
    `bins` ascend and hold every accuracy of `events`.
    """
    steps = pd.RangeIndex(1, num_steps + 1, name="step")
    counts = {}
    for event, name in EVENTS.items():
        rows = events[events["event"] == event]
        table = np.zeros((num_steps, len(bins)))
        np.add.at(table, (rows["step"].to_numpy(int) - 1, np.searchsorted(bins, rows["entry_accuracy"])), 1)
        counts[name] = pd.DataFrame(table.cumsum(axis=0), index=steps, columns=list(bins))
    return counts | {"held": counts["admitted"] - counts["graduated"] - counts["evicted"]}


def macro_averages(scores: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Macro average of each run on each student, suite and family, and a line for each that has none.

    Columns: student, suite, family, label, method, teacher, seed, macro (percent). A macro average is the plain mean
    over all benchmarks that any run of the block has a row for. It is refused where a score is missing, and where the
    evaluation card is not the one that most runs used: other cards are other questions or other rules.
    """
    scores = scores.assign(family=scores["family"].fillna(""))
    kept, others = comparable(scores)
    refused = [f"{_run_name(row)} (evaluated by another protocol)" for row in others.to_dict("records")]
    rows: list[dict[str, Any]] = []
    for _, table in kept.groupby(BLOCK, sort=False):
        benchmarks = set(table["benchmark"])
        for _, run in table.groupby(["label", "seed"], sort=False, dropna=False):
            first = run.iloc[0].to_dict()
            held = run.dropna(subset=["score"])
            if set(held["benchmark"]) != benchmarks:
                refused.append(f"{_run_name(first)} (scores missing)")
            else:
                named = {name: first[name] for name in (*BLOCK, "label", "seed", "method", "teacher")}
                rows.append(named | {"macro": float(held["score"].mean())})
    return pd.DataFrame(rows, columns=[*BLOCK, "label", "seed", "method", "teacher", "macro"]), refused


def _run_name(row: Mapping[Any, Any]) -> str:
    return f"{row['label']} {row['student']} seed{row['seed']} {row['family']}".rstrip()


def split_label(label: str) -> tuple[str, dict[str, str]]:
    """A label's method and its options. Example: `zppo,updates_per_step=8` gives zppo and {updates_per_step: 8}."""
    name, *parts = label.split(",")
    options: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if equals:
            options[key] = value
        elif options:  # a value that holds a comma itself
            options[list(options)[-1]] += f",{part}"
    return name, options


def listing(names: Sequence[str], most: int = 4) -> str:
    """Names in a row; from the fifth on only their number."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _with_keys(run: Run, rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows).assign(**{key: run.info[key] for key in RUN_KEYS})
