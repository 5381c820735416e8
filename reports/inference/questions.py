"""Exact tests on the questions of given runs: how another training run would come out is not in them."""

from __future__ import annotations

import numpy as np

NUM_RESAMPLES = 10_000
DECIMALS = 9
"""Decimals of a question's score difference: equal ones must not differ by their last bit."""


def question_p(a_RI: np.ndarray, b_RI: np.ndarray, questions_I: np.ndarray) -> tuple[float, str]:
    """Two-sided p that the labels of two sets of runs are exchangeable, question by question, and how it was found.

    `a_RI` and `b_RI` have a row a run and a column a response, all known; `questions_I` numbers the question that each
    column is of. McNemar's exact test where scores are 0 or 1 and a question has one pair. `McNemar by question` where
    it has several, which change sides together. `sign flips` (random) for other scores.
    """
    num_a, num_b = len(a_RI), len(b_RI)
    scale = np.gcd(num_a, num_b)
    sums_I = a_RI.sum(axis=0) * (num_b // scale) - b_RI.sum(axis=0) * (num_a // scale)
    sums = np.bincount(questions_I, sums_I)
    if not (_is_binary(a_RI) and _is_binary(b_RI)):
        return sign_flips(sums.round(DECIMALS)), "sign flips"
    is_single = num_a == num_b == 1 and len(sums) == len(sums_I)
    return mcnemar(sums), "McNemar" if is_single else "McNemar by question"


def mcnemar(differences: np.ndarray) -> float:
    """Two-sided exact p of integer differences, one a question, when each keeps or changes its sign by a fair coin.

    P(|sum of +-differences| >= |their sum|): for -1, 0 and 1 this is McNemar's exact test.
    """
    sizes, counts = np.unique(np.abs(differences).astype(int), return_counts=True)
    sizes, counts = sizes[sizes > 0], counts[sizes > 0]
    observed, largest = abs(int(differences.sum())), int(sizes @ counts)
    if len(sizes) == 1:
        distribution = np.zeros(2 * largest + 1)
        distribution[:: 2 * sizes[0]] = _fair_binomial(int(counts[0]))
    else:  # the characteristic function of a sum of coins +-s is the product of their cosines
        angles = 2 * np.pi * np.arange(2 * largest + 1) / (2 * largest + 1)
        waves = np.prod([np.cos(size * angles) ** count for size, count in zip(sizes, counts, strict=True)], axis=0)
        distribution = np.roll(np.fft.fft(waves).real / len(angles), largest) if len(sizes) else np.ones(1)
    extreme = np.abs(np.arange(-largest, largest + 1)) >= observed
    return min(1.0, max(0.0, float(distribution[extreme].sum())))


def sign_flips(differences: np.ndarray, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> float:
    """`mcnemar` by random flips, for any differences: (1 + as extreme flips) / (1 + flips)."""
    sizes, counts = np.unique(np.abs(differences), return_counts=True)
    rng = np.random.default_rng(seed)
    kept = rng.binomial(counts, 0.5, size=(num_resamples, len(counts)))
    sums = (2 * kept - counts) @ sizes
    num_extreme = int((np.abs(sums) >= abs(differences.sum()) - 10.0**-DECIMALS).sum())
    return (1 + num_extreme) / (1 + num_resamples)


def _is_binary(scores: np.ndarray) -> bool:
    return bool(((scores == 0) | (scores == 1)).all())


def _fair_binomial(count: int) -> np.ndarray:
    """P(k of `count` fair coins), k = 0 to count."""
    logs = np.concatenate([np.zeros(1), np.cumsum(np.log(np.arange(1, count + 1)))])
    return np.exp(logs[count] - logs - logs[::-1] - count * np.log(2))
