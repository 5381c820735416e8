"""Mini-batches of groups that are kept together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.training.dealing import deal, mini_batches
from harness.types import TrainingSample


def sample(uid: str) -> TrainingSample:
    return TrainingSample(uid=uid, token_ids=[0, 1, 2], loss_mask=[0, 1, 1])


@pytest.mark.clause("C067", "C068")
@settings(max_examples=25, deadline=None)
@given(num_groups=st.integers(0, 20), num_batches=st.integers(1, 6), seed=st.integers(0, 99))
def test_groups_stay_whole_and_sizes_differ_by_one(num_groups, num_batches, seed):
    samples = [sample(f"g{i}") for i in range(num_groups) for _ in range(3)]
    dealt = deal([f"g{i}" for i in range(num_groups)], num_batches=num_batches, rng=np.random.default_rng(seed))
    parts = mini_batches(samples, dealt)
    assert len(parts) == num_batches
    uids = [[s.uid for s in part] for part in parts]
    groups = [set(part) for part in uids]
    assert sum(map(len, groups)) == num_groups and len(set().union(*groups)) == num_groups
    assert all(part.count(uid) == 3 for part in uids for uid in part)
    assert max(map(len, groups)) - min(map(len, groups)) <= 1


def test_the_split_depends_on_the_generator_only():
    split = [deal([f"g{i}" for i in range(8)], num_batches=4, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert split[0] == split[1] != split[2]
