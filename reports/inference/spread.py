"""How much the runs of a finished study differ by themselves: what a plan of the next one can take for granted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from reports.runs.answers import Answers


@dataclass(frozen=True)
class Spread:
    """Standard deviations in percentage points, and the degrees of freedom of the first."""

    run_sd: float
    """Of a run's accuracy over seeds, without what single responses bring into it."""
    response_sd: float
    """Of one response about its question's own accuracy."""
    df: int


def run_spread(answers: Iterable[Answers]) -> Spread | None:
    """Pooled over benchmarks and labels, each weighing by its runs but one. None where no label has two runs."""
    of_runs, of_responses, weights = [], [], []
    for found in answers:
        for label in dict.fromkeys(label for label, _ in found.runs):
            rows = [row for row, (owner, _) in enumerate(found.runs) if owner == label]
            scores_RI = found.scores_RI[rows][:, ~np.isnan(found.scores_RI[rows]).any(axis=0)]
            if len(rows) < 2 or scores_RI.shape[1] < 2:
                continue
            residuals = scores_RI - scores_RI.mean(axis=1, keepdims=True) - scores_RI.mean(axis=0) + scores_RI.mean()
            one = len(rows) - 1
            noise = float((residuals**2).sum()) / one / (scores_RI.shape[1] - 1)
            of_runs.append(float(scores_RI.mean(axis=1).var(ddof=1)) - noise / scores_RI.shape[1])
            of_responses.append(noise)
            weights.append(one)
    if not weights:
        return None
    run, response = (100 * max(0.0, np.average(values, weights=weights)) ** 0.5 for values in (of_runs, of_responses))
    return Spread(float(run), float(response), sum(weights))
