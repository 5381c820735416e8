"""Labels over all runs and benchmarks of a table: IQM, optimality gap, improvement, profiles, ranks, their agreement.

Intervals are percentile bootstraps over runs. With few runs they are too narrow, and a label with one run has none: a
verdict is `reports.significance`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from reports.inference import aggregates as agg
from reports.runs.cards import BLOCK, comparable
from reports.runs.collect import BASE

COLUMNS = (
    "student", "family", "label", "num_runs", "num_benchmarks", "mean", "iqm", "iqm_lo", "iqm_hi", "optimality_gap",
    "optimality_gap_lo", "optimality_gap_hi", "improvement", "improvement_lo", "improvement_hi", "rank", "rank_lo",
    "rank_hi", "suite",
)  # fmt: skip
PROFILE_COLUMNS = ("student", "family", "label", "threshold", "share", "lo", "hi", "suite")
SCALE_COLUMNS = ("family", "student", "other", "num_labels", "tau", "lo", "hi", "note", "suite")
THRESHOLDS = np.arange(0, 100, 5) / 100


def aggregate_table(scores: pd.DataFrame, baseline: str | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row a student, suite, family and label (`COLUMNS`), and the performance profiles (`PROFILE_COLUMNS`).

    Percent and points, but ranks. Runs that lack a benchmark of their table are left out. `improvement` is the
    probability, in percent, that a run of the label is above one of `baseline` on a benchmark. `rank` is that of the
    macro average, 1 the highest.
    """
    rows: list[dict[str, Any]] = []
    profiles: list[dict[str, Any]] = []
    for named, labels in _tables(scores):
        means = np.array([runs_RB.mean() for runs_RB in labels.values()])
        drawn = [runs_RB[agg.resamples(len(runs_RB), place)] for place, runs_RB in enumerate(labels.values())]
        ranks = agg.ranks(means)
        rank_bounds = np.quantile(
            agg.ranks(np.stack([d.mean(axis=(1, 2)) for d in drawn], axis=-1)), agg.INTERVAL, axis=0
        )
        is_one_run = min(len(runs_RB) for label, runs_RB in labels.items() if label != BASE or len(labels) == 1) < 2
        for place, (label, runs_RB) in enumerate(labels.items()):
            row = named | {"label": label, "num_runs": len(runs_RB), "num_benchmarks": runs_RB.shape[1]}
            row |= {"mean": 100 * runs_RB.mean(), "rank": ranks[place]}
            for name, statistic in (("iqm", agg.iqm), ("optimality_gap", agg.optimality_gap)):
                row |= _with_bounds(name, 100 * statistic(runs_RB), 100 * agg.interval(statistic, runs_RB))
            if baseline in labels and label != baseline:
                both = runs_RB, labels[baseline]
                found = 100 * agg.improvement(*both), 100 * agg.interval(agg.improvement, *both)
                row |= _with_bounds("improvement", *found)
            if not is_one_run:
                row |= {"rank_lo": rank_bounds[0, place], "rank_hi": rank_bounds[1, place]}
            rows.append(row)
            shares = agg.profile(runs_RB, THRESHOLDS)
            bounds = agg.interval(lambda drawn_RB: agg.profile(drawn_RB, THRESHOLDS), runs_RB)
            for threshold, share, lo, hi in zip(THRESHOLDS, shares, *bounds, strict=True):
                profiles.append(
                    named
                    | {
                        "label": label,
                        "threshold": 100 * threshold,
                        "share": 100 * share,
                        "lo": 100 * lo,
                        "hi": 100 * hi,
                    }
                )
    return pd.DataFrame(rows, columns=list(COLUMNS)), pd.DataFrame(profiles, columns=list(PROFILE_COLUMNS))


def scale_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Whether two students order the labels alike: Kendall's tau of their macro averages, columns `SCALE_COLUMNS`.

    A row a suite, family and pair of students with two labels or more in common. The interval resamples runs; there is
    none where a trained label has one run.
    """
    tables = list(_tables(scores))
    rows = []
    for (named, ours), (other, theirs) in combinations(tables, 2):
        shared = [label for label in ours if label in theirs]
        if (named["suite"], named["family"]) != (other["suite"], other["family"]) or len(shared) < 2:
            continue
        sides = [[labels[label] for label in shared] for labels in (ours, theirs)]
        lone = [name for name, x, y in zip(shared, *sides, strict=True) if name != BASE and min(len(x), len(y)) < 2]
        tau = agg.kendall(*(np.array([runs_RB.mean() for runs_RB in side]) for side in sides))
        lo, hi, note = np.nan, np.nan, f"one run of {', '.join(lone)}"
        if not lone:
            drawn = [
                np.stack(
                    [runs[agg.resamples(len(runs), place)].mean(axis=(1, 2)) for place, runs in enumerate(side, start)],
                    -1,
                )
                for start, side in zip((0, len(shared)), sides, strict=True)
            ]
            (lo, hi), note = np.nanquantile(agg.kendall(*drawn), agg.INTERVAL), ""
        rows.append(
            {"suite": named["suite"], "family": named["family"], "student": named["student"], "other": other["student"],
             "num_labels": len(shared), "tau": float(tau), "lo": lo, "hi": hi, "note": note}
        )  # fmt: skip
    return pd.DataFrame(rows, columns=list(SCALE_COLUMNS))


def _tables(scores: pd.DataFrame) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Each student, suite and family with the scores of its labels' complete runs, 0 to 1, a column a benchmark."""
    scores, _ = comparable(scores.assign(family=scores["family"].fillna("")))
    for key, table in scores.groupby(BLOCK, sort=False):
        benchmarks = list(dict.fromkeys(table["benchmark"]))
        wide = table.pivot(index=["label", "seed"], columns="benchmark", values="score")[benchmarks].dropna()
        labels = {
            str(label): wide.xs(label, level="label").to_numpy(float) / 100
            for label in dict.fromkeys(table["label"])
            if label in wide.index.get_level_values("label")
        }
        if labels:
            yield dict(zip(BLOCK, key, strict=True)), labels


def _with_bounds(name: str, value: Any, bounds: np.ndarray) -> dict[str, float]:
    return {name: float(value), f"{name}_lo": float(bounds[0]), f"{name}_hi": float(bounds[1])}
