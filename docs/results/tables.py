"""Write the tables of docs/results/tiny.md anew from the runs of `zppo sweep tiny_methods`.

`python docs/results/tables.py outputs/tiny_methods` replaces what stands between the markers of each table. The text
around them says what the tables show, and is written by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from reports.tables import markdown_table

PAGE = Path(__file__).with_name("tiny.md")
FAMILIES = ("LLM", "VLM", "Video")
GUIDED = ("bcq", "ncq", "hint", "prefix", "extra")
"""Kinds of prompts that are not plain."""
FIRST, LAST = slice(0, 5), slice(-5, None)


@dataclass(frozen=True)
class Run:
    """What a table needs of one finished run: its scores by benchmark, and its metrics by step."""

    label: str
    seed: int
    scores: pd.DataFrame
    metrics: pd.DataFrame

    def family(self, name: str) -> float:
        return float(self.scores.loc[self.scores["family"] == name, "score"].mean())

    def level(self, number: int) -> float:
        return float(self.scores.loc[self.scores["benchmark"].str.endswith(f"_l{number}"), "score"].mean())

    def macro(self) -> float:
        return sum(map(self.family, FAMILIES)) / len(FAMILIES)

    def total(self, name: str) -> float | None:
        return float(self.metrics[name].sum()) if name in self.metrics else None

    def sum_of(self, prefix: str) -> float:
        return float(self.metrics[[name for name in map(str, self.metrics) if name.startswith(prefix)]].sum().sum())

    def last(self, name: str) -> float | None:
        """The last value of what is counted from the run's start; None where nothing was."""
        return float(self.metrics[name].iloc[-1]) or None if name in self.metrics else None

    def mean(self, name: str, steps: slice) -> float | None:
        return float(self.metrics[name].iloc[steps].mean()) if name in self.metrics else None


def read(study: Path) -> dict[str, list[Run]]:
    """Runs by label, seeds in order. Raises ValueError for one that is not done."""
    runs: dict[str, list[Run]] = {}
    for file in sorted(study.glob("*/*/seed*/run.json")):
        if json.loads(file.read_text())["status"] != "done":
            raise ValueError(f"{file} is not of a finished run")
        lines = file.with_name("metrics.jsonl")
        metrics = pd.DataFrame(map(json.loads, lines.read_text().splitlines() if lines.exists() else ()))
        scores = pd.read_csv(file.parent / "eval" / "mini" / "scores.csv")
        label, seed = file.parts[-4], int(file.parts[-2].removeprefix("seed"))
        runs.setdefault(label, []).append(Run(label, seed, scores, metrics))
    return dict(sorted(runs.items(), key=lambda item: (item[0] != "base", item[0])))


def seeds(runs: Sequence[Run], value: Callable[[Run], float | None], form: str) -> str:
    """The values of the seeds, such as `94.9 / 94.8`; empty where the runs have none."""
    found = [number for run in runs if (number := value(run)) is not None]
    return " / ".join(format(number, form) for number in found)


def score_rows(runs: Mapping[str, Sequence[Run]]) -> Iterator[list[str]]:
    for label, found in runs.items():
        row = [label, *(seeds(found, partial(Run.family, name=name), ".1f") for name in FAMILIES)]
        row += [seeds(found, partial(Run.level, number=level), ".1f") for level in (1, 4)]
        yield [*row, seeds(found, Run.macro, ".1f"), *_costs(found)]


def _costs(runs: Sequence[Run]) -> Iterator[str]:
    """Means over the seeds: student's and teacher's tokens, FLOPs."""
    for name in ("tokens/student_generated", "tokens/teacher_generated"):
        totals = [total for run in runs if (total := run.total(name))]
        yield f"{sum(totals) / len(totals) / 1000:.0f}k" if totals else ""
    flops = sum(run.sum_of("flops/") for run in runs) / len(runs)
    yield f"{flops / 1e9:.0f}G" if flops else ""


def training_rows(runs: Mapping[str, Sequence[Run]]) -> Iterator[list[str]]:
    for label, found in runs.items():
        if label == "base":
            continue
        yield [
            label,
            seeds(found, partial(Run.mean, name="rollout/accuracy", steps=FIRST), ".2f"),
            seeds(found, partial(Run.mean, name="rollout/accuracy", steps=LAST), ".2f"),
            seeds(found, partial(Run.mean, name="rollout/entropy", steps=LAST), ".2f"),
            seeds(found, partial(Run.last, name="buffer/admitted"), ".0f"),
            seeds(found, partial(Run.last, name="buffer/graduated"), ".0f"),
            seeds(found, partial(Run.last, name="buffer/graduated_by_chance"), ".0f"),
            "; ".join(_guided(found)),
        ]


def _guided(runs: Sequence[Run]) -> Iterator[str]:
    """Accuracy of each further kind of prompt in the first five steps."""
    for kind in GUIDED:
        if found := seeds(runs, partial(Run.mean, name=f"{kind}/accuracy", steps=FIRST), ".2f"):
            yield f"{kind} {found}"


TABLES = {
    "scores": (
        ["method", *FAMILIES, "L1", "L4", "mean of families", "student tokens", "teacher tokens", "FLOPs"],
        score_rows,
    ),
    "training": (
        [
            "method", "rollout accuracy, first steps", "last steps", "rollout entropy, last steps", "admitted",
            "graduated", "by chance", "candidate accuracy, first steps",
        ],
        training_rows,
    ),
}  # fmt: skip


def _between(marks: re.Match[str], table: str) -> str:
    return f"{marks[1]}{table}\n{marks[2]}"


def main(study: Path) -> None:
    runs, page = read(study), PAGE.read_text(encoding="utf-8")
    for name, (header, rows) in TABLES.items():
        table = markdown_table(header, list(rows(runs)))
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        page, number = re.subn(pattern, partial(_between, table=table), page, flags=re.S)
        if number != 1:
            raise ValueError(f"{PAGE} has {number} places for the table of {name}")
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
