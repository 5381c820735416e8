"""Aggregates over runs and benchmarks as rliable defines them (Agarwal et al. 2021), and rank agreement.

Scores are shares, 0 to 1, in arrays whose last two axes are runs (R) and benchmarks (B). Leading axes are resamples.
Runs are resampled as they are, with all their benchmarks: a run's scores belong together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

NUM_RESAMPLES = 1000
INTERVAL = (0.025, 0.975)


def iqm(scores_RB: np.ndarray) -> np.ndarray:
    """Interquartile mean: the mean over runs and benchmarks without the lowest and the highest quarter."""
    values = np.sort(scores_RB.reshape(*scores_RB.shape[:-2], -1), axis=-1)
    cut = int(0.25 * values.shape[-1])
    return values[..., cut : values.shape[-1] - cut].mean(axis=-1)


def optimality_gap(scores_RB: np.ndarray) -> np.ndarray:
    """By how much scores fall short of 1 on average."""
    return 1.0 - np.minimum(scores_RB, 1.0).mean(axis=(-2, -1))


def improvement(x_RB: np.ndarray, y_RB: np.ndarray) -> np.ndarray:
    """Probability that a run of x is above a run of y on a benchmark, ties half, averaged over benchmarks."""
    differences = x_RB[..., :, None, :] - y_RB[..., None, :, :]
    return ((differences > 0) + 0.5 * (differences == 0)).mean(axis=(-3, -2, -1))


def profile(scores_RB: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of runs and benchmarks above each threshold, along a new last axis."""
    return (scores_RB[..., None] > thresholds).mean(axis=(-3, -2))


def resamples(num_runs: int, seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> np.ndarray:
    """Rows to draw, with replacement: a line a resample."""
    return np.random.default_rng(seed).integers(num_runs, size=(num_resamples, num_runs))


def interval(statistic: Callable[..., np.ndarray], *scores: np.ndarray, seed: int = 0) -> np.ndarray:
    """95 % percentile bootstrap of a statistic over the runs of each array; NaN where one array has one run."""
    if min(map(len, scores)) < 2:
        value = statistic(*scores)
        return np.full((2, *np.shape(value)), np.nan)
    drawn = [array[resamples(len(array), seed + place)] for place, array in enumerate(scores)]
    return np.quantile(statistic(*drawn), INTERVAL, axis=0)


def ranks(means: np.ndarray) -> np.ndarray:
    """Rank of each label along the last axis, the highest mean first; equals share the mean of their ranks."""
    above = means[..., None, :] > means[..., :, None]
    equal = means[..., None, :] == means[..., :, None]
    return above.sum(axis=-1) + 0.5 * (equal.sum(axis=-1) + 1)


def kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b along the last axis; NaN where all values of one are equal."""
    signs = [np.sign(values[..., :, None] - values[..., None, :]) for values in (x, y)]
    agree, of_x, of_y = ((a * b).sum(axis=(-2, -1)) for a, b in (signs, (signs[0],) * 2, (signs[1],) * 2))
    with np.errstate(invalid="ignore"):
        return agree / np.sqrt(of_x * of_y)
