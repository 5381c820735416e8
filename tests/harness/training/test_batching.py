"""Mini-batches of whole groups, micro-batches, and the literal tensors of a padded batch."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.training.batching import micro_batches, mini_batches, pad, pad_for_teacher, tokens_between
from harness.types import Rollout, TrainingSample


def sample(uid: str, length: int = 3) -> TrainingSample:
    return TrainingSample(uid=uid, token_ids=list(range(length)), loss_mask=[0] + [1] * (length - 1))


@settings(max_examples=50, deadline=None)
@given(num_groups=st.integers(0, 20), num_batches=st.integers(1, 6), seed=st.integers(0, 99))
def test_groups_stay_whole_and_sizes_differ_by_one(num_groups, num_batches, seed):
    samples = [sample(f"g{i}") for i in range(num_groups) for _ in range(3)]
    parts = mini_batches(samples, num_batches=num_batches, rng=np.random.default_rng(seed))
    assert len(parts) == num_batches
    uids = [[s.uid for s in part] for part in parts]
    groups = [set(part) for part in uids]
    assert sum(map(len, groups)) == num_groups and len(set().union(*groups)) == num_groups
    assert all(part.count(uid) == 3 for part in uids for uid in part)
    assert max(map(len, groups)) - min(map(len, groups)) <= 1


def test_the_split_depends_on_the_generator_only():
    samples = [sample(f"g{i}") for i in range(8)]
    split = [
        [[s.uid for s in part] for part in mini_batches(samples, num_batches=4, rng=np.random.default_rng(seed))]
        for seed in (1, 1, 2)
    ]
    assert split[0] == split[1] != split[2]


def test_micro_batches_are_sorted_by_length_and_complete():
    samples = [sample(str(n), n) for n in (3, 5, 2, 4, 6)]
    assert [[len(s.token_ids) for s in m] for m in micro_batches(samples, 2)] == [[6, 5], [4, 3], [2]]


def test_padded_batch_literal():
    first = TrainingSample(
        uid="a", token_ids=[5, 6, 7, 8, 2], loss_mask=[0, 0, 0, 1, 1], advantages=[0, 0, 0, 1.5, 1.5],
        rollout_logprobs=[0, 0, 0, -0.1, -0.2], old_logprobs=[0, 0, 0, -0.3, -0.4],
    )  # fmt: skip
    second = TrainingSample(uid="b", token_ids=[9, 3], loss_mask=[0, 1], weights=[0, 0.5])
    batch = pad([first, second], torch.device("cpu"))
    assert batch.ids_BT.tolist() == [[5, 6, 7, 8, 2], [9, 3, 0, 0, 0]]
    assert batch.mask_BT.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    # Token 8 at position 3 is predicted by the hidden state at position 2.
    assert (batch.rows_N.tolist(), batch.columns_N.tolist()) == ([0, 0, 1], [2, 3, 0])
    assert batch.tokens.ids_N.tolist() == [8, 2, 3]
    assert batch.tokens.advantages_N.tolist() == [1.5, 1.5, 0.0]
    assert torch.equal(batch.tokens.old_logprobs_N, torch.tensor([-0.3, -0.4, 0.0]))
    assert torch.equal(batch.tokens.rollout_logprobs_N, torch.tensor([-0.1, -0.2, 0.0]))
    assert batch.weights_N.tolist() == [1.0, 1.0, 0.5]
    assert tokens_between(batch.tokens, 1, 3).ids_N.tolist() == [2, 3]


def test_the_teacher_may_see_another_prompt():
    rollout = Rollout(
        sampler="student", index=0, prompt_ids=[5, 6], completion_ids=[7, 8], rollout_logprobs=[0, 0], text="",
        finish_reason="stop",
    )  # fmt: skip
    own = TrainingSample(
        uid="a", token_ids=[5, 6, 7, 8], loss_mask=[0, 0, 0, 1], teacher_prompt_ids=[1, 2, 3], rollout=rollout
    )
    batch = pad_for_teacher([own], torch.device("cpu"))
    assert batch.ids_BT.tolist() == [[1, 2, 3, 7, 8]]
    assert (batch.tokens.ids_N.tolist(), batch.columns_N.tolist()) == ([8], [3])
