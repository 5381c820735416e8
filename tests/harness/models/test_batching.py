"""Micro-batches, and the literal tensors of a padded batch."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.models.batching import micro_batches, one_pass, pad, pad_for_teacher, tokens_between
from harness.types import Rollout, TrainingSample


def sample(uid: str, length: int = 3) -> TrainingSample:
    return TrainingSample(uid=uid, token_ids=list(range(length)), loss_mask=[0] + [1] * (length - 1))


def test_micro_batches_are_cut_by_padded_tokens():
    """Budget 10: 6 alone (2 x 6 > 10), 5 and 4 (2 x 5), 3, 2 and 2 (3 x 3); 12 is over the budget and alone."""
    samples = [sample(str(n), n) for n in (3, 5, 2, 12, 4, 6, 2)]
    found = micro_batches(samples, 10)
    assert [[len(s.token_ids) for s in m.samples] for m in found] == [[12], [6], [5, 4], [3, 2, 2]]
    assert [m.num_padded for m in found] == [12, 6, 10, 9] and [m.num_tokens for m in found] == [12, 6, 9, 7]


def group(uid: str, prompt: list[int], *completions: list[int]) -> list[TrainingSample]:
    return [
        TrainingSample(uid=uid, token_ids=[*prompt, *c], loss_mask=[0] * len(prompt) + [1] * len(c))
        for c in completions
    ]


def test_shared_prompts_literal():
    """The last token of a prompt predicts the first of a completion, so it is read with each of them."""
    samples = [*group("a", [1, 2, 3], [7, 8], [9]), *group("b", [4, 5], [6], [6, 6])]
    (micro,) = micro_batches(samples, 100, share=True)
    assert micro.num_given == [2, 2, 1, 1] and micro.prompts == [(1, 2), (4,)]
    assert micro.num_tokens == 2 + 1 + 3 + 2 + 3 + 2 and micro.num_padded == 2 * 2 + 4 * 3
    batch = pad(micro, torch.device("cpu"))
    assert batch.prompts.ids_PT.tolist() == [[1, 2], [0, 4]] and batch.prompts.mask_PT.tolist() == [[1, 1], [0, 1]]
    assert batch.prompts.rows_B.tolist() == [0, 0, 1, 1]
    assert batch.ids_BT.tolist() == [[3, 7, 8], [3, 9, 0], [5, 6, 6], [5, 6, 0]]
    assert batch.mask_BT.tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 0]]
    assert batch.rows_N.tolist() == [0, 0, 1, 2, 2, 3] and batch.columns_N.tolist() == [0, 1, 0, 0, 1, 0]
    assert batch.tokens.ids_N.tolist() == [7, 8, 9, 6, 6, 6]


def test_prompts_are_shared_only_where_it_saves_a_tenth():
    long = [*group("a", [1, 2], [7] * 40, [8] * 40)]  # 84 tokens, 83 when shared
    assert micro_batches(long, 1000, share=True)[0].num_given is None
    bare = group("a", [1], [7], [8])  # nothing stands before the token that predicts the first one
    assert micro_batches(bare, 1000, share=True)[0].num_given is None
    pair = group("a", [1, 2, 3, 4], [7], [8])
    assert micro_batches(pair, 1000)[0].num_given is None
    assert micro_batches(pair, 1000, share=True)[0].num_given == [3, 3]


def test_what_all_prompts_begin_with_literal():
    """Single rollouts on prompts that differ in their last two tokens: 3 tokens once and 4 x 4, not 4 x 7."""
    samples = [s for i in range(4) for s in group(str(i), [1, 2, 3, 10 + i, 4], [7, 8])]
    (micro,) = micro_batches(samples, 100, share=True)
    assert micro.num_given == [3] * 4 and micro.prompts == [(1, 2, 3)] and micro.num_padded == 3 + 4 * 4
    batch = pad(micro, torch.device("cpu"))
    assert batch.prompts.ids_PT.tolist() == [[1, 2, 3]] and batch.prompts.rows_B.tolist() == [0] * 4
    assert batch.ids_BT.tolist() == [[10 + i, 4, 7, 8] for i in range(4)]
    assert batch.columns_N.tolist() == [1, 2] * 4
    # Of a prompt that ends inside the common beginning, the last token is still read with its completion.
    short = [*samples, *group("short", [1, 2, 3], [10, 9])]
    assert micro_batches(short, 100, share=True)[0].num_given == [2] * 5


def test_one_pass_keeps_the_order():
    """Padded: 3 x 6 tokens, or prompts of 2 x 3 and then 3 x 3."""
    samples = [*group("b", [5, 6, 7], [9]), *group("a", [1, 2, 3, 4], [7], [8, 8])]
    assert one_pass(samples).samples == samples and one_pass(samples).num_given is None
    micro = one_pass(samples, share=True)
    assert micro.samples == samples and micro.num_given == [2, 3, 3] and micro.num_padded == 15


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(2, 9), st.integers(1, 20)), min_size=1, max_size=12),
    budget=st.integers(1, 80),
    share=st.booleans(),
)
def test_cuts_are_complete_and_within_the_budget(lengths, budget, share):
    samples = [s for i, (p, c) in enumerate(lengths) for s in group(str(i), [i] * p, [7] * c, [8] * c)]
    found = micro_batches(samples, budget, share=share)
    assert sorted(map(id, samples)) == sorted(id(s) for m in found for s in m.samples)
    assert all(m.num_padded <= budget or len(m.samples) == 1 for m in found)
    for m in found:
        batch = pad(m, torch.device("cpu"))
        read = int(batch.mask_BT.sum()) + (0 if batch.prompts is None else int(batch.prompts.mask_PT.sum()))
        size = batch.mask_BT.numel() + (0 if batch.prompts is None else batch.prompts.mask_PT.numel())
        assert (read, size) == (m.num_tokens, m.num_padded)


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
