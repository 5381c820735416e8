"""The paper's cluster bootstrap: by how much a method leads another over benchmarks, and how sure that is (F.6).

The benchmarks are what is resampled: an interval covers the choice of benchmarks, neither training seeds nor questions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from reports.runs.cards import comparable

BEST = "best"
"""`baseline` of the row against the strongest other method; the column `is` names it."""
COLUMNS = ("student", "family", "baseline", "delta", "lo", "hi", "wins", "n", "is", "table", "suite", "study")
SUBJECT = "zppo"
NUM_RESAMPLES = 10_000
INTERVAL = (0.025, 0.975)
DECIMALS = 9
"""Decimals of a benchmark's delta: means over seeds that are equal must not win by their last bit."""
_BLOCK = ["study", "suite", "student", "family"]


def cluster_bootstrap(
    scores: pd.DataFrame,
    subject: str,
    baselines: Sequence[str],
    *,
    rivals: Sequence[str] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """A row for each baseline and one for `best`: baseline, delta, lo, hi, wins, n, is.

    `scores` has a row a label and a column a benchmark, in percent, of one family and student; NaN is a hole.

    - `delta`: the mean over benchmarks of subject minus baseline; `lo` and `hi`: its 95 % percentile interval.
    - `wins`: the number of benchmarks with a delta above zero.
    - `n`: the number of benchmarks that both rows have; others are left out. Where it is 0, delta, lo and hi are NaN.

    Comparisons over equally many benchmarks share one resample. Over one benchmark the interval is the delta.

    `best` is the row of `rivals` (default: the baselines) with the highest mean over the benchmarks of the subject (at
    a tie the first). A row with a hole there cannot be `best`; where all have one, `best` has n 0 and `is` is empty.
    Without baselines there is no row. Raises ValueError for a label without scores.
    """
    if missing := [label for label in (subject, *baselines, *(rivals or ())) if label not in scores.index]:
        raise ValueError(f"no scores of {', '.join(missing)}; labels here: {', '.join(map(str, scores.index))}")
    draws: dict[int, np.ndarray] = {}
    rows = [_compare(scores, subject, label, label, draws, num_resamples, seed) for label in baselines]
    if baselines:
        best = _best(scores, subject, baselines if rivals is None else rivals)
        rows.append(_compare(scores, subject, best, BEST, draws, num_resamples, seed))
    return pd.DataFrame(rows, columns=["baseline", "delta", "lo", "hi", "wins", "n", "is"])


def bootstrap_table(long: pd.DataFrame, subject: str = SUBJECT) -> pd.DataFrame:
    """`cluster_bootstrap` of each student and family of a long table (`reports.runs.collect`), columns `COLUMNS`.

    Blocks are kept apart by study and suite too where the long table has these. Blocks and baselines are in its order.
    A label's score on a benchmark is the mean over the seeds that have it. Runs of another protocol are left out
    (`reports.runs.cards`). Labels of the
    subject's own method (an ablation of it) are baselines, but never `best`. Where labels carry a `table` (names with
    a space between), the subject is compared with those that share one, and each of its tables has a `best`. A block
    without the subject, or with it only, has no rows.
    """
    optional = ("study", "suite", "table", "family")
    long = long.assign(**{name: long[name].fillna("") if name in long else "" for name in optional})
    long, _ = comparable(long)
    long = long[long["score"].notna()]
    blocks = [
        table.assign(**{name: block[name].iloc[0] for name in _BLOCK})
        for _, block in long.groupby(_BLOCK, sort=False)
        for table in _block(block, subject)
    ]
    if not blocks:
        return pd.DataFrame(columns=list(COLUMNS))
    return pd.concat(blocks, ignore_index=True)[list(COLUMNS)]


def _compare(
    scores: pd.DataFrame,
    subject: str,
    label: str | None,
    name: str,
    draws: dict[int, np.ndarray],
    num_resamples: int,
    seed: int,
) -> tuple[object, ...]:
    if label is None:
        return (name, np.nan, np.nan, np.nan, 0, 0, "")
    deltas = (scores.loc[subject] - scores.loc[label]).dropna().to_numpy(dtype=float).round(DECIMALS)
    num_benchmarks = len(deltas)
    if num_benchmarks == 0:
        return (name, np.nan, np.nan, np.nan, 0, 0, label)
    if num_benchmarks not in draws:
        draws[num_benchmarks] = np.random.default_rng(seed).integers(
            num_benchmarks, size=(num_resamples, num_benchmarks)
        )
    lo, hi = np.quantile(deltas[draws[num_benchmarks]].mean(axis=1), INTERVAL)
    return (name, deltas.mean(), lo, hi, int((deltas > 0).sum()), num_benchmarks, label)


def _best(scores: pd.DataFrame, subject: str, rivals: Sequence[str]) -> str | None:
    benchmarks = scores.loc[:, scores.loc[subject].notna()]
    macro = benchmarks.loc[list(rivals)].mean(axis=1, skipna=False).round(DECIMALS).dropna()
    return None if macro.empty else str(macro.idxmax())


def _block(block: pd.DataFrame, subject: str) -> list[pd.DataFrame]:
    """The rows of one block: a row for each baseline, then the best of each table of the subject."""
    first = block.drop_duplicates("label").set_index("label")
    if subject not in first.index:
        return []
    # Sorted, so that the resample does not depend on the order of the runs.
    scores = block.groupby(["label", "benchmark"])["score"].mean().unstack()
    tables = {str(label): str(names).split() or [""] for label, names in first["table"].items()}
    methods = {str(label): str(method) for label, method in first["method"].items()}
    others = [label for label in tables if label != subject and set(tables[label]) & set(tables[subject])]
    parts = []
    for number, name in enumerate(tables[subject]):
        rivals = [label for label in others if name in tables[label] and methods[label] != methods[subject]]
        rows = cluster_bootstrap(scores, subject, others, rivals=rivals)
        best = rows["baseline"] == BEST
        parts.append(rows[best].assign(table=name))
        if number == 0:
            parts.insert(0, rows[~best].assign(table=[" ".join(tables[label]) for label in others]))
    return parts
