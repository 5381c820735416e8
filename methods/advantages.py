"""Advantages of the rollouts of one step (paper Eqs. 1-6): rewards in, numbers out, no tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

Normalization = Literal["nontrivial", "all", "none", "group"]
NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)
EPS = 1e-6
TOLERANCE = 1e-9
"""Rewards that differ by less are equal, relative to the largest one above 1: sums of parts are rounded differently,
in the 16th digit. Of smaller differences `EPS` would leave nothing."""


def group_advantages(groups: Sequence[Sequence[float]], normalization: Normalization) -> list[list[float]]:
    """Advantage of every rollout from the rewards of all groups of a step.

    Step 1 centres each group on its own mean: A' = r - mean(r). Step 2 is A = (A' - mu_S) / (sigma_S + 1e-6) with the
    population statistics of A' over all rollouts of a set S of groups (Eqs. 3-6):

    - `nontrivial`: S = groups whose rewards differ (the paper's default);
    - `all`: S = every group, so that the zeros of trivial groups shrink sigma;
    - `none`: A = A';
    - `group`: each group is its own S, the textbook GRPO form (Eq. 1).

    A trivial group (`is_trivial`: all rewards equal) has advantages of exactly 0 in every setting; an empty group gives
    an empty list. Raises ValueError for another `normalization`.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, got {normalization!r}")
    trivial = [is_trivial(rewards) for rewards in groups]
    centred = [[0.0] * len(r) if zero else _centre(r) for r, zero in zip(groups, trivial, strict=True)]
    if normalization == "none":
        return centred
    if normalization == "group":
        return [a if zero else _standardize(a, a) for a, zero in zip(centred, trivial, strict=True)]
    pool = [
        value
        for group, zero in zip(centred, trivial, strict=True)
        for value in group
        if not zero or normalization == "all"
    ]
    return [a if zero else _standardize(a, pool) for a, zero in zip(centred, trivial, strict=True)]


def is_trivial(rewards: Sequence[float]) -> bool:
    """Whether the rewards of a group are all equal but for rounding.

    Example: [0.1 + 0.2, 0.3] is trivial, although the two differ by 6e-17; [0.3, 0.3001] is not.
    """
    if not rewards:
        return True
    return max(rewards) - min(rewards) <= TOLERANCE * max(1.0, *map(abs, rewards))


def _centre(rewards: Sequence[float]) -> list[float]:
    mean = math.fsum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def _standardize(values: Sequence[float], pool: Sequence[float]) -> list[float]:
    mean = math.fsum(pool) / len(pool)
    sigma = math.sqrt(math.fsum((value - mean) ** 2 for value in pool) / len(pool))
    return [(value - mean) / (sigma + EPS) for value in values]
