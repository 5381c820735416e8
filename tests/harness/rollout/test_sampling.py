from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from harness.rollout.base import Sampling
from harness.rollout.sampling import BLOCK, RowStreams, SeenTokens, adjust, draw, draw_by_block, has_penalties

CPU = torch.device("cpu")


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 5, 50, 500]),
    top_p=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.9]),
)
def test_warpers_are_those_of_transformers(seed, temperature, top_k, top_p, min_p):
    logits_RV = 3 * torch.randn(4, 50, generator=torch.Generator().manual_seed(seed))
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    before = logits_RV.clone()
    torch.testing.assert_close(adjust(logits_RV, sampling), warpers(None, logits_RV), rtol=0, atol=0)
    assert torch.equal(logits_RV, before)


def test_repetition_penalty_is_that_of_transformers():
    logits_RV = torch.randn(2, 10, generator=torch.Generator().manual_seed(0))
    seen = SeenTokens([[1, 2], [3, 3]], 10, CPU)
    seen.add(torch.tensor([5, 6]))
    ids_RT = torch.tensor([[1, 2, 5], [3, 3, 6]])
    expected = RepetitionPenaltyLogitsProcessor(1.3)(ids_RT, logits_RV)
    sampling = Sampling(temperature=0.0, repetition_penalty=1.3)
    torch.testing.assert_close(adjust(logits_RV, sampling, seen), expected, rtol=0, atol=0)


def test_penalties_by_hand():
    seen = SeenTokens([[0]], 4, CPU)
    for token in (1, 1, 2):
        seen.add(torch.tensor([token]))
    logits_RV = torch.tensor([[2.0, 2.0, -2.0, 2.0]])
    # Presence: once for 1 and 2 (sampled), not for 0 (prompt). Repetition 2: 2 -> 1 and -2 -> -4 for 0, 1 and 2.
    presence = adjust(logits_RV, Sampling(presence_penalty=1.5, temperature=0.0), seen)
    both = adjust(logits_RV, Sampling(presence_penalty=1.5, repetition_penalty=2.0, temperature=0.5), seen)
    assert presence.tolist() == [[2.0, 0.5, -3.5, 2.0]]
    assert both.tolist() == [[2.0, -1.0, -11.0, 4.0]]


def test_seen_tokens_follow_their_rows():
    seen = SeenTokens([[0], [1], [2]], 4, CPU)
    seen.add(torch.tensor([3, 3, 0]))
    seen.keep(torch.tensor([2, 0]))
    assert seen.sampled_RV.int().tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
    assert seen.all_RV.int().tolist() == [[1, 0, 1, 0], [1, 0, 0, 1]]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, False), ({"presence_penalty": 1.5}, True), ({"repetition_penalty": 1.1}, True), ({"top_k": 5}, False)],
)
def test_has_penalties(changes, expected):
    assert has_penalties(Sampling(**changes)) is expected


def test_draw_inverts_the_cumulative_distribution():
    # Probabilities 0, 1/4, 0, 3/4, 0: cumulative 0, 1/4, 1/4, 1, 1.
    probs = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0])
    uniforms = np.array([0.0, 0.2499, 0.2501, 0.5, 1 - 2**-53])
    assert draw(probs.log().expand(5, -1), uniforms).tolist() == [1, 1, 3, 3, 3]


def test_draw_is_greedy_without_uniforms():
    assert draw(torch.tensor([[0.0, 3.0, 1.0], [-1.0, -3.0, -2.0]]), None).tolist() == [1, 0]


def test_draw_never_takes_a_token_of_probability_zero():
    logits_RV = torch.full((1000, 300), -1e9)
    logits_RV[:, 7::50] = torch.randn(1000, 6, generator=torch.Generator().manual_seed(0))
    ids_R = draw(logits_RV, np.linspace(0, 1 - 2**-53, 1000))
    assert set(ids_R.tolist()) == {7, 57, 107, 157, 207, 257}


def test_draws_have_the_distribution_of_the_logits():
    probs = [0.4, 0.3, 0.15, 0.1, 0.04, 0.01]
    streams = RowStreams(Sampling(seed=3), "student", [(f"q{i}", 0) for i in range(200)])
    logits_RV = torch.tensor(probs).log().expand(200, -1)
    ids = torch.cat([draw(logits_RV, streams.next()) for _ in range(100)])
    counts = torch.bincount(ids, minlength=6)
    chi_square = sum((c - 20_000 * p) ** 2 / (20_000 * p) for c, p in zip(counts.tolist(), probs, strict=True))
    assert chi_square < 20.5  # 0.1% of the chi-square distribution with 5 degrees of freedom lie above


def test_streams_depend_on_each_part_of_their_key_and_on_nothing_else():
    def first(seed=0, step=0, sampler="student", uid="q", index=0):
        return RowStreams(Sampling(seed=seed, step=step), sampler, [(uid, index)]).next()[0]

    numbers = [first(), first(seed=1), first(step=1), first(sampler="teacher"), first(uid="r"), first(index=1)]
    assert len(set(numbers)) == 6
    assert first() == numbers[0]
    alone = RowStreams(Sampling(), "student", [("q", 1)])
    among = RowStreams(Sampling(), "student", [("p", 0), ("q", 0), ("q", 1)])
    expected = [alone.next()[0] for _ in range(150)]
    drawn = [among.next()[2] for _ in range(70)]
    among.keep([2])
    drawn += [among.next()[0] for _ in range(80)]
    assert drawn == expected


def test_streams_are_uniform():
    streams = RowStreams(Sampling(), "student", [("q", i) for i in range(100)])
    numbers = np.stack([streams.next() for _ in range(130)])
    assert numbers.min() >= 0.0 and numbers.max() < 1.0
    # Mean of 13,000 uniforms: standard error 1 / sqrt(12 * 13,000) = 0.0025.
    assert math.isclose(numbers.mean(), 0.5, abs_tol=0.01)
    assert len(np.unique(numbers)) == numbers.size


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_ids=st.sampled_from([1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 17]),
    temperature=st.sampled_from([0.2, 1.0, 5.0]),
)
def test_draw_by_block_is_draw(seed, num_ids, temperature):
    """Up to rounding: a draw within 1e-6 of the border of two tokens may fall on either."""
    generator = torch.Generator().manual_seed(seed)
    logits_RV = 4 * torch.randn(6, num_ids, generator=generator)
    logits_RV[:, ::5] = -1e9  # banned
    logits_RV[:, num_ids // 2] = 1.0
    uniforms_R = np.random.default_rng(seed).random(6)
    uniforms_R[:2] = 0.0, 1 - 2**-53
    ids_R, logprobs_R = draw_by_block(logits_RV.clone(), temperature, uniforms_R)
    scaled_RV = logits_RV / temperature
    expected_R = scaled_RV.double().log_softmax(-1).gather(1, ids_R.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(logprobs_R.double(), expected_R, atol=1e-5, rtol=1e-6)
    sums_RV = scaled_RV.double().softmax(-1).cumsum(-1)
    for row, token_id in enumerate(ids_R.tolist()):
        assert logits_RV[row, token_id] > -1e9
        below = sums_RV[row, token_id - 1].item() if token_id else 0.0
        assert below - 1e-6 <= uniforms_R[row] <= sums_RV[row, token_id].item() + 1e-6
