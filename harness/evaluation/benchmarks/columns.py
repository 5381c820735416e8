"""The 31 columns of the paper's tables and the suites over them: `columns.csv` is the table, this reads it.

Imports nothing heavy, so that a listing or a report costs nothing.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast, get_args

from harness.config.evaluation import suites

Family = Literal["LLM", "VLM", "Video"]
Scoring = Literal["det", "rule_judge", "exact_judge", "bench_judge"]
"""App. B.2: an official metric; a parser, then the shared judge; the box, then the shared judge; an official
judge for every row."""

OPTION_COLUMNS = {
    "charxiv": ("charxiv",),
    "dynamath": ("dynamath",),
    "hle": ("hle",),
    "mmlu_redux": ("mmlu_redux",),
    "wemath": ("wemath",),
    "vlmsareblind": ("vlmsareblind",),
    "ceval": ("ceval",),
    "ocrbench_v2": ("ocrbench_v2_en", "ocrbench_v2_zh"),
    "multichallenge": ("multichallenge",),
    "gpqa_seed": ("gpqa_diamond",),
    "videomme_subtitles": ("videomme_sub",),
    "aime_repeats": ("aime25", "aime26"),
}
"""The columns that an option of `BenchmarkOptions` concerns."""

TABLE = Path(__file__).with_name("columns.csv")
ALL_CONFIGS = "*"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a results table, and where its rows come from."""

    name: str
    label: str
    """Its heading in the paper."""
    family: Family
    library: Literal["lm_eval", "lmms_eval"]
    upstream: str
    """The library's own task file, under its `tasks` folder; empty where it has none. Tests compare wording with it."""
    dataset: str
    """Owner and name on the hub, then `@revision` where that is not `main`."""
    configs: tuple[str, ...]
    """Empty: the only one; `*`: all that the data set has."""
    splits: tuple[str, ...]
    num_rows: int
    """Rows of the complete benchmark; for HLE with the questions that show a picture."""
    scoring: Scoring

    @property
    def repository(self) -> str:
        return self.dataset.partition("@")[0]

    @property
    def revision(self) -> str | None:
        return self.dataset.partition("@")[2] or None


@cache
def columns() -> dict[str, Column]:
    """The columns by name, in the order of the paper's tables."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        return {row["name"]: _column(row) for row in csv.DictReader(file)}


def _column(row: dict[str, str]) -> Column:
    assert row["family"] in get_args(Family) and row["scoring"] in get_args(Scoring), row
    return Column(
        name=row["name"],
        label=row["label"],
        family=cast(Family, row["family"]),
        library=cast(Literal["lm_eval", "lmms_eval"], row["library"]),
        upstream=row["upstream"],
        dataset=row["dataset"],
        configs=tuple(filter(None, row["configs"].split("|"))),
        splits=tuple(row["splits"].split("|")),
        num_rows=int(row["num_rows"]),
        scoring=cast(Scoring, row["scoring"]),
    )


def options_of(column: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The `options` (fields of `BenchmarkOptions`) that concern a column."""
    return {name: value for name, value in options.items() if column in OPTION_COLUMNS[name]}


def suite_columns() -> dict[str, list[Column]]:
    """Our suites that are made of columns."""
    return {suite: [columns()[name] for name in names] for suite, names in suites().items()}
