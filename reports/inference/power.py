"""Power of a comparison of two labels over runs, by formula: what can be seen before anything is run.

R runs a label on N questions give the lead the standard error sqrt(2 (s^2 + n^2 / N) / R). A run's accuracy has the
standard deviation s, and a response n about its question's own accuracy. The test is
Welch's, whose degrees of freedom come from two estimated variances. With v = R - 1 each, the ratio of the expectations
of their numerator and denominator is 2 v (v + 1) / (v + 2). Under a true lead d the statistic is noncentral t, d / se.
"""

from __future__ import annotations

import numpy as np
from scipy.special import nctdtr, nctdtrinc, ndtr, ndtri, stdtrit

from reports.inference.contrast import ALPHA, PAIRED_SHARE

POWER = 0.8
"""The probability with which the minimum detectable lead is called."""
LARGE = 1e5
"""From so many degrees of freedom on t is normal."""


def standard_error(num_seeds: int, num_questions: float, run_sd: float, response_sd: float) -> tuple[float, float]:
    """Standard error of a lead between two labels of `num_seeds` runs each, percentage points, and its df.

    `run_sd`: of a run's true accuracy over seeds, points. `response_sd`: of one response about its question's own
    accuracy, points (50 at most).
    """
    variance = run_sd**2 + response_sd**2 / num_questions
    one = num_seeds - 1
    return (2 * variance / num_seeds) ** 0.5, 2.0 * one * (one + 1) / (one + 2)


def power(lead: float, se: float, df: float, alpha: float = ALPHA) -> float:
    """Probability that a true lead of so many points is called, with its sign, by the test at `alpha`."""
    if df >= LARGE:
        return float(ndtr(lead / se - ndtri(1 - alpha / 2)))
    return float(1 - nctdtr(df, lead / se, stdtrit(df, 1 - alpha / 2)))


def detectable(se: float, df: float, alpha: float = ALPHA) -> float:
    """The smallest true lead, in points, that is called with probability `POWER`; NaN where there is no test."""
    if np.isnan(se) or df < 1:
        return float("nan")
    if df >= LARGE:
        return float(se * (ndtri(1 - alpha / 2) + ndtri(POWER)))
    return float(se * nctdtrinc(df, 1 - POWER, stdtrit(df, 1 - alpha / 2)))


def planned_alpha(num_labels: int, num_benchmarks: int, *, macro: bool = False) -> float:
    """The alpha of Holm's first step where so many labels are compared with a baseline (`verdicts`).

    Of one benchmark, or with `macro` of the macro average.
    """
    num_kinds = 2 if num_benchmarks > 1 else 1
    return ALPHA * (1 - PAIRED_SHARE) / (num_kinds * num_labels * (1 if macro else num_benchmarks))
