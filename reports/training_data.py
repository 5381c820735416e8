"""What each label was trained on, as far as the metrics of its runs say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from reports.plots.data import load_metrics
from reports.runs.collect import Run

COLUMNS = (
    "student", "label", "num_runs", "questions", "all_right", "all_wrong", "trained_samples", "trained_tokens",
    "teacher_tokens",
)  # fmt: skip


def training_data(runs: Sequence[Run]) -> pd.DataFrame:
    """A row a student and label of the trained runs that are done: means over them, columns `COLUMNS`.

    - `questions`: plain groups that were sampled, a question as often as it was met.
    - `all_right`, `all_wrong`: percent of the student's groups in which every reply was right, or none was. Without a
      difference in reward they train nothing in a policy gradient. Earlier versions did not count them.
    - `trained_samples`, `trained_tokens`: of all updates. `teacher_tokens`: sampled by the teacher.
    """
    rows = []
    for run in runs:
        metrics = load_metrics([run]) if run.info["status"] == "done" else pd.DataFrame()
        if metrics.empty:
            continue
        groups = _column(metrics, "group/num_student")
        shares = {
            name: 100 * (groups * _column(metrics, f"group/{name}_frac")).sum(skipna=False) / groups.sum(skipna=False)
            for name in ("all_right", "all_wrong")
        }
        rows.append(
            {"student": run.info["student"], "label": run.info["label"], **shares}
            | {
                "questions": _column(metrics, "group/num_plain").sum(skipna=False),
                "trained_samples": _column(metrics, "train/num_samples").sum(skipna=False),
                "trained_tokens": _column(metrics, "train/num_tokens").sum(skipna=False),
                "teacher_tokens": metrics.get("tokens/teacher_generated", pd.Series([0.0])).sum(),
            }
        )
    if not rows:
        return pd.DataFrame(columns=list(COLUMNS))
    by_label = pd.DataFrame(rows).groupby(["student", "label"], sort=False)
    means = by_label.agg(_mean)
    means["num_runs"] = by_label.size()
    return means.reset_index()[list(COLUMNS)]


def _mean(column: pd.Series) -> float:
    """NaN where one run does not say."""
    return float(column.mean(skipna=False))


def _column(metrics: pd.DataFrame, name: str) -> pd.Series:
    return metrics.get(name, pd.Series(np.nan, index=metrics.index))
