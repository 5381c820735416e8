"""Is a label better than a baseline? `reports.inference.contrast` on every benchmark and on their macro average."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from reports.inference.contrast import PAIRED_SHARE, Contrast, Runs, contrast, verdicts
from reports.inference.power import detectable
from reports.runs.answers import Answers, Benchmark
from reports.runs.cards import BLOCK, comparable
from reports.runs.collect import BASE
from reports.tables import MACRO

COLUMNS = (
    "student", "family", "benchmark", "label", "baseline", "delta", "lo", "hi", "p", "p_holm", "verdict", "detectable",
    "test", "p_questions", "num_questions", "seeds", "note", "suite",
)  # fmt: skip


@dataclass(frozen=True)
class _Cell:
    """A label and the baseline on one benchmark: both with all responses known, or why they cannot be compared."""

    label: Runs | None = None
    baseline: Runs | None = None
    questions_I: np.ndarray | None = None
    notes: tuple[str, ...] = ()


def significance_table(scores: pd.DataFrame, answers: Mapping[Benchmark, Answers], baseline: str) -> pd.DataFrame:
    """Each label against `baseline`, a row a student, suite, family, label and benchmark; columns `COLUMNS`.

    `scores` is the long table (`reports.runs.collect`), `answers` what its runs answered. A label with several
    benchmarks has a row `macro avg` as well. Compared are the responses that all runs of both labels gave, of runs that
    were evaluated by the protocol of their table; `note` says what is missing.

    - `delta`: label minus baseline, percentage points. It is not the difference of two scores where responses are
      missing, or where the benchmark weighs its questions.
    - `lo`, `hi`, `p`: over seeds and questions (`reports.inference.contrast`). Not corrected. Empty for one run.
    - `p_holm`: corrected by Holm over all labels and benchmarks of the table.
    - `verdict`: `better` or `worse` where `p_holm` is below 0.05, `not distinguishable` elsewhere. `one run` where one
      of the two has a single seed, `not compared` where responses are missing; `note` has why.
    - `detectable`: the lead that these runs would have called with probability 0.8, after the correction.
    - `p_questions`: an exact test on the questions of these runs (`test`); how other runs would come out is not in it.

    Raises ValueError where no run of the study is labelled `baseline`.
    """
    if baseline not in set(scores["label"]):
        known = ", ".join(dict.fromkeys(map(str, scores["label"])))
        raise ValueError(f"no run is labelled {baseline!r}; labels here: {known}")
    scores = scores.assign(family=scores["family"].fillna(""))
    kept, _ = comparable(scores)
    compared = dict(iter(kept[kept["score"].notna()].groupby(BLOCK, sort=False)))
    tables = []
    for key, block in scores.groupby(BLOCK, sort=False):
        rows = _rows(key, block, compared.get(key, block[:0]), answers, baseline)
        if rows:
            tables.append(_with_verdicts(rows))
    if not tables:
        return pd.DataFrame(columns=list(COLUMNS))
    numbers = dict.fromkeys(("delta", "lo", "hi", "p", "p_questions"), float)
    return pd.concat(tables, ignore_index=True).astype(numbers).fillna({"test": ""})


Row = tuple[Contrast | None, dict[str, object]]
"""A contrast, None where nothing can be compared, and its columns."""


def _rows(
    key: tuple[Any, ...],
    scores: pd.DataFrame,
    compared: pd.DataFrame,
    answers: Mapping[Benchmark, Answers],
    baseline: str,
) -> list[Row]:
    """Every contrast of one table. `compared` are those of its scores that may be compared."""
    student, suite, _ = key
    seeds: dict[Any, frozenset[int]] = {
        name: frozenset(group) for name, group in compared.groupby(["label", "benchmark"])["seed"]
    }
    benchmarks = list(dict.fromkeys(scores["benchmark"]))
    untrained = set(scores.loc[scores["method"] == BASE, "label"])
    rows = []
    for label in (name for name in dict.fromkeys(scores["label"]) if name != baseline):
        named = dict(zip(BLOCK, key, strict=True)) | {"label": label, "baseline": baseline}
        cells = [
            _cell(answers.get((student, suite, name)), seeds, name, (label, baseline), untrained) for name in benchmarks
        ]
        for cell, name in zip(cells, benchmarks, strict=True):
            found, columns = _compared([cell], [name], (label, baseline))
            rows.append((found, named | {"benchmark": name} | columns))
        if len(benchmarks) > 1:
            found, columns = _compared(cells, benchmarks, (label, baseline))
            rows.append((found, named | {"benchmark": MACRO} | columns))
    return rows


def _with_verdicts(rows: Sequence[Row]) -> pd.DataFrame:
    said = verdicts([found for found, _ in rows], [columns["benchmark"] == MACRO for _, columns in rows])
    return pd.DataFrame([columns for _, columns in rows], columns=list(COLUMNS)).assign(
        p_holm=[verdict.p_holm for verdict in said],
        verdict=[verdict.word for verdict in said],
        detectable=[
            float("nan") if found is None else detectable(found.se, found.df, verdict.alpha * (1 - PAIRED_SHARE))
            for (found, _), verdict in zip(rows, said, strict=True)
        ],
    )


def _cell(
    answers: Answers | None,
    seeds: Mapping[tuple[str, str], frozenset[int]],
    benchmark: str,
    labels: tuple[str, str],
    untrained: Collection[str],
) -> _Cell:
    """The responses of both labels to a benchmark; `seeds` of a label's runs that may be compared on one."""
    sides, notes = [], []
    for label in labels:
        wanted = seeds.get((label, benchmark), frozenset())
        if not wanted:
            return _Cell(notes=(f"{label} has no score of this protocol",))
        owners = enumerate(answers.runs if answers else ())
        rows = [place for place, (owner, seed) in owners if owner == label and seed in wanted]
        if not rows:
            return _Cell(notes=(f"{label} has no rows",))
        if len(rows) < len(wanted):
            notes.append(f"{len(wanted) - len(rows)} of {len(wanted)} runs of {label} have no rows")
        sides.append(rows)
    assert answers is not None
    known = ~np.isnan(answers.scores_RI[sides[0] + sides[1]])
    answered = known.all(axis=0)
    if not answered.any():
        return _Cell(notes=("no question in common",))
    if answered.sum() < (num_given := known.any(axis=0).sum()):
        notes.append(f"{answered.sum()} of {num_given} responses in common")
    _, questions_I = np.unique(answers.questions_I[answered], return_inverse=True)
    runs = [
        Runs(
            tuple(answers.runs[row][1] for row in rows),
            answers.scores_RI[np.ix_(rows, answered)],
            is_trained=label not in untrained,
        )
        for label, rows in zip(labels, sides, strict=True)
    ]
    return _Cell(runs[0], runs[1], questions_I, tuple(notes))


def _compared(cells: Sequence[_Cell], names: Sequence[str], labels: tuple[str, str]) -> Row:
    """The contrast of two labels over the benchmarks of some cells, and its columns."""
    missing = [name for name, cell in zip(names, cells, strict=True) if cell.questions_I is None]
    notes = [note for cell in cells for note in cell.notes]
    if missing:
        return _without("; ".join(notes) if len(cells) == 1 else f"not compared on {', '.join(missing)}")
    both = [[side for side in sides if side] for sides in ([c.label for c in cells], [c.baseline for c in cells])]
    seeds = [sorted(set.intersection(*(set(runs.seeds) for runs in sides))) for sides in both]
    if not all(seeds):
        return _without("no seed has all benchmarks")
    ours, theirs = ([_only(runs, wanted) for runs in sides] for sides, wanted in zip(both, seeds, strict=True))
    questions = [cell.questions_I for cell in cells if cell.questions_I is not None]
    found = contrast(ours, theirs, questions)
    texts = [" ".join(map(str, side)) for side in seeds]
    is_trained = [runs[0].is_trained for runs in both]
    said = [f"{label} has one run" for label, runs in zip(labels, (ours, theirs), strict=True) if not runs[0].is_enough]
    said += ["seeds are not shared: unpaired"] if texts[0] != texts[1] and all(is_trained) else []
    return found, {
        "delta": found.delta, "lo": found.lo, "hi": found.hi, "p": found.p, "p_questions": found.p_questions,
        "test": found.test, "num_questions": sum(int(asked.max()) + 1 for asked in questions),
        "seeds": " against ".join(dict.fromkeys(texts)), "note": "; ".join(dict.fromkeys([*said, *notes])),
    }  # fmt: skip


def _without(note: str) -> Row:
    return None, {"num_questions": 0, "seeds": "", "note": note}


def _only(runs: Runs, seeds: Sequence[int]) -> Runs:
    """The runs of some seeds, in their order."""
    rows = [runs.seeds.index(seed) for seed in seeds]
    return replace(runs, seeds=tuple(seeds), scores_RI=runs.scores_RI[rows])
