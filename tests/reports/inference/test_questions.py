from __future__ import annotations

import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.inference.questions import mcnemar, question_p, sign_flips


def test_mcnemar_by_hand():
    # 5 better, 1 worse: 2 * P(at most 1 of 6) = 2 * (1 + 6) / 64 = 7/32. Ties do not count.
    assert mcnemar(np.array([1, 1, 1, 1, 1, -1, 0, 0])) == pytest.approx(7 / 32)
    assert mcnemar(np.array([1, -1, 0])) == 1
    assert mcnemar(np.zeros(3)) == 1
    # A question with two pairs both better and one with one: |+-2 +-1| >= 3 in 2 of 4 cases.
    assert mcnemar(np.array([2, 1])) == pytest.approx(1 / 2)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(num_better, num_worse):
    num, fewer = num_better + num_worse, min(num_better, num_worse)
    exact = min(1.0, 2 * sum(comb(num, k) for k in range(fewer + 1)) / 2**num)
    assert mcnemar(np.repeat([1, -1], [num_better, num_worse])) == pytest.approx(exact, rel=1e-9)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_mcnemar_counts_all_flips(differences):
    flips = [sum(s * d for s, d in zip(signs, differences, strict=True))
             for signs in itertools.product((1, -1), repeat=len(differences))]  # fmt: skip
    expected = sum(abs(flip) >= abs(sum(differences)) for flip in flips) / len(flips)
    assert mcnemar(np.array(differences)) == pytest.approx(expected)


def test_sign_flips_agree_with_the_exact_test():
    # Exact: 7/32; the standard error of 10,000 flips is 0.004.
    differences = np.array([1, 1, 1, 1, 1, -1, 0, 0])
    assert sign_flips(differences) == pytest.approx(7 / 32, abs=0.016)
    # One question can not tell anything: both flips are as extreme.
    assert sign_flips(np.array([0.3])) == 1


def test_the_pairs_of_a_question_change_sides_together():
    right, wrong, asked = np.ones((2, 2)), np.zeros((2, 2)), np.array([0, 1])
    # Two questions, two runs each: |+-2 +-2| = 4 in 2 of 4 cases. As four independent pairs it were 2/16.
    assert question_p(right, wrong, asked) == (pytest.approx(1 / 2), "McNemar by question")
    # Three runs against two: sums times 2 and 3, |+-6 +-6|, the same.
    assert question_p(np.ones((3, 2)), wrong, asked)[0] == pytest.approx(1 / 2)
    # Two responses to one question, one run each.
    assert question_p(right[:1], wrong[:1], np.array([0, 0])) == (1, "McNemar by question")
    assert question_p(right[:1], wrong[:1], asked) == (1 / 2, "McNemar")
    assert question_p(right / 2, wrong, asked) == (pytest.approx(1 / 2, abs=0.03), "sign flips")
