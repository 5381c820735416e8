"""Eqs. 1-6: numbers by hand and the closed form between `all` and `nontrivial`."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.advantages import group_advantages

HALF, QUARTER, RIGHT, WRONG = [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0] * 4, [0.0] * 4


@pytest.mark.clause("C053", "C057")
def test_none_centres_each_group_on_its_own_mean():
    # means 1/2 and 1/4
    assert group_advantages([HALF, QUARTER], "none") == [[0.5, 0.5, -0.5, -0.5], [0.75, -0.25, -0.25, -0.25]]


@pytest.mark.clause("C054", "C055", "C056")
def test_nontrivial_pools_only_groups_that_differ():
    # centred squares: 4 * 1/4 = 1 and 9/16 + 3/16 = 3/4; sigma = sqrt(1.75 / 8) = 0.46771
    sigma = math.sqrt(1.75 / 8)
    half, quarter, right = group_advantages([HALF, QUARTER, RIGHT], "nontrivial")
    assert half == pytest.approx([0.5 / sigma] * 2 + [-0.5 / sigma] * 2, rel=1e-5)
    assert quarter == pytest.approx([0.75 / sigma] + [-0.25 / sigma] * 3, rel=1e-5)
    assert right == [0.0] * 4


@pytest.mark.clause("C058")
def test_all_counts_the_zeros_of_trivial_groups():
    # the same squares over 16 rollouts: sigma = sqrt(1.75 / 16) = 0.33072
    sigma = math.sqrt(1.75 / 16)
    half, quarter, right, wrong = group_advantages([HALF, QUARTER, RIGHT, WRONG], "all")
    assert half == pytest.approx([0.5 / sigma] * 2 + [-0.5 / sigma] * 2, rel=1e-5)
    assert quarter[0] == pytest.approx(2.26779, rel=1e-5)
    assert right == wrong == [0.0] * 4


def test_group_is_the_textbook_form():
    # std of [1, 0, 0, 0] is sqrt(3)/4 = 0.43301: 0.75 / 0.43301 = sqrt(3), -0.25 / 0.43301 = -1/sqrt(3)
    half, quarter, wrong = group_advantages([HALF, QUARTER, WRONG], "group")
    assert half == pytest.approx([1.0, 1.0, -1.0, -1.0], rel=1e-5)
    assert quarter == pytest.approx([math.sqrt(3)] + [-1 / math.sqrt(3)] * 3, rel=1e-5)
    assert wrong == [0.0] * 4


@pytest.mark.clause("C054")
def test_eps_is_added_to_sigma():
    # one group [1, 0]: sigma = 1/2, so A = 0.5 / 0.500001
    assert group_advantages([[1.0, 0.0]], "nontrivial") == [[0.5 / 0.500001, -0.5 / 0.500001]]


@pytest.mark.clause("C055")
@pytest.mark.parametrize("normalization", ["nontrivial", "all", "none", "group"])
def test_all_trivial_gives_zeros_and_empty_groups_stay_empty(normalization):
    # three rewards of 0.1 have a mean that is not 0.1 in floating point
    assert group_advantages([RIGHT, WRONG, [0.1] * 3, []], normalization) == [[0.0] * 4, [0.0] * 4, [0.0] * 3, []]
    assert group_advantages([], normalization) == []


@pytest.mark.parametrize("normalization", ["nontrivial", "all", "none", "group"])
def test_rewards_that_differ_by_rounding_are_equal(normalization):
    """A shaped reward is a sum of parts: 0.1 + 0.2 is not 0.3, and seven tenths are not 0.7. Real differences stay."""
    rounded = [0.1 + 0.2, 0.3, sum([0.1] * 3)]
    large = [3e9 * (0.1 + 0.2), 9e8]  # apart by 1.2e-7, which is their 16th digit
    assert len(set(rounded)) == len(set(large)) == 2 and sum([0.1] * 10) != 1.0
    assert group_advantages([rounded, [sum([0.1] * 10), 1.0], large], normalization) == [
        [0.0] * 3,
        [0.0] * 2,
        [0.0] * 2,
    ]
    (real,) = group_advantages([[0.3, 0.3001]], normalization)
    assert real[1] > 0 > real[0]


def test_groups_of_rounding_errors_do_not_shrink_sigma():
    """Next to [1, 0] (sigma 1/2) they would count as four more values near 0."""
    assert group_advantages([[1.0, 0.0], [0.1 + 0.2, 0.3] * 2], "nontrivial")[0] == [0.5 / 0.500001, -0.5 / 0.500001]


def test_unknown_normalization_is_refused():
    with pytest.raises(ValueError, match="one of nontrivial, all, none, group, got 'batch'"):
        group_advantages([HALF], "batch")  # type: ignore[arg-type]


rewards_G = st.integers(0, 8).map(lambda right: [1.0] * right + [0.0] * (8 - right))
"""Two of nine are trivial. Drawn one by one, rewards would hardly ever be."""


@pytest.mark.clause("C060")
@settings(max_examples=60, deadline=None)
@given(st.lists(rewards_G, min_size=1, max_size=12))
def test_closed_form_all_against_nontrivial(groups):
    """With equal sizes and a share f of non-trivial groups, A_all = A_nontrivial / sqrt(f) as eps -> 0."""
    share = sum(len(set(g)) > 1 for g in groups) / len(groups)
    pooled, every = group_advantages(groups, "nontrivial"), group_advantages(groups, "all")
    for group, a, b in zip(groups, pooled, every, strict=True):
        if len(set(group)) == 1:
            assert a == b == [0.0] * 8
        else:
            # eps is at most 1e-6 / 0.095 of the smallest sigma: sqrt(7/64 / 12)
            assert b == pytest.approx([x / math.sqrt(share) for x in a], rel=2e-5)


@pytest.mark.clause("C059")
@settings(max_examples=40, deadline=None)
@given(st.lists(rewards_G, min_size=1, max_size=8), st.data())
def test_centred_groups_have_mean_0_over_any_choice_of_them(groups, data):
    centred = group_advantages(groups, "none")
    chosen = data.draw(st.lists(st.sampled_from(range(len(groups))), min_size=1, unique=True))
    assert math.fsum(value for i in chosen for value in centred[i]) == 0.0  # eighths are exact


@pytest.mark.clause("C054", "C056")
@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=5), min_size=1, max_size=6))
def test_nontrivial_advantages_have_mean_0_and_deviation_1(groups):
    values = [
        a for g, r in zip(groups, group_advantages(groups, "nontrivial"), strict=True) if len(set(g)) > 1 for a in r
    ]
    if values:
        assert sum(values) == pytest.approx(0.0, abs=1e-9)
        assert math.sqrt(sum(a * a for a in values) / len(values)) == pytest.approx(1.0, abs=1e-5)
