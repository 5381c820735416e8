"""What the figures are drawn from: training metrics, buffer events, and macro averages by run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reports.collect import Run

RUN_KEYS = ("label", "student", "seed")
BLOCK = ["student", "suite", "family"]
"""What a macro average never mixes."""
EVENTS = {"admit": "admitted", "graduate": "graduated", "evict": "evicted"}


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Every whole line of a `.jsonl` file: a run that is writing right now may have half a last one.

    Empty where there is no file. Raises ValueError, one line, where a whole line is no JSON.
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
    tables = [_with_keys(run, rows) for run in runs if (rows := read_lines(run.folder / "metrics.jsonl"))]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


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
    """Of one run: admitted, graduated, evicted and held (what is in the buffer after the step), counts so far.

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
    scores = scores.assign(family=scores["family"].fillna(""), protocol=scores["protocol"].fillna(""))
    rows: list[dict[str, Any]] = []
    refused: list[str] = []
    for block, table in scores.groupby(BLOCK, sort=False):
        cards = {name: _most_common(cards) for name, cards in table.groupby("benchmark", sort=False)["protocol"]}
        for (label, seed), run in table.groupby(["label", "seed"], sort=False, dropna=False):
            name = " ".join([*map(str, (label, block[0])), f"seed{seed}", str(block[2])]).rstrip()
            held = run.dropna(subset=["score"])
            if (held["protocol"] != held["benchmark"].map(cards)).any():
                refused.append(f"{name} (evaluated by another protocol)")
            elif set(held["benchmark"]) != set(cards):
                refused.append(f"{name} (scores missing)")
            else:
                first = run.iloc[0]
                keys = dict(zip(BLOCK, block, strict=True)) | {"label": label, "seed": seed}
                of_run = {name: first[name] for name in ("method", "teacher")}
                rows.append(keys | of_run | {"macro": float(held["score"].mean())})
    return pd.DataFrame(rows, columns=[*BLOCK, "label", "seed", "method", "teacher", "macro"]), refused


def _most_common(values: pd.Series) -> str:
    """At a tie the one that comes first."""
    counts = values.value_counts(sort=False)
    return str(next(name for name in counts.index if counts[name] == counts.max()))


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
