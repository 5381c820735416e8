"""Which groups of a step each of its mini-batches has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.types import TrainingSample

Dealt = list[list[str]]
"""Uids of the groups of each mini-batch of a step."""


def deal(uids: Sequence[str], *, num_batches: int, rng: np.random.Generator) -> Dealt:
    """Deal groups to mini-batches: permuted by `rng`, sizes differ by at most one.

    A batch may be empty when there are fewer groups than batches.
    """
    order = rng.permutation(len(uids))
    return [[uids[i] for i in part] for part in np.array_split(order, num_batches)]


def mini_batches(samples: Sequence[TrainingSample], dealt: Dealt) -> list[list[TrainingSample]]:
    """The samples of each mini-batch, in the order in which their groups were dealt."""
    by_group: dict[str, list[TrainingSample]] = {}
    for sample in samples:
        by_group.setdefault(sample.uid, []).append(sample)
    return [[sample for uid in part for sample in by_group.get(uid, ())] for part in dealt]
