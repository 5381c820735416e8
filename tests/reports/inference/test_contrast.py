from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from reports.inference.contrast import PAIRED_SHARE, Contrast, Runs, contrast, holm, verdicts

NUM = 400
ASKED = np.arange(NUM)


def runs(*num_right: int, seeds: tuple[int, ...] = (), offset: int = 0) -> Runs:
    """Runs that answer so many questions right, the first ones from `offset` on: where runs differ, questions do."""
    scores = [np.isin((ASKED - offset) % NUM, np.arange(num)).astype(float) for num in num_right]
    return Runs(seeds or tuple(range(len(num_right))), np.array(scores))


def lone(delta: float, p: float) -> Contrast:
    return Contrast(delta, -1, 1, p, p, "", 1, 4)


def test_unpaired_runs_are_welchs_test_where_questions_add_nothing():
    """Leads that are the same on every question: V is that of Welch."""
    a, b = (np.tile(np.array(scores)[:, None], NUM) for scores in ([0.52, 0.55, 0.51, 0.57], [0.5, 0.53, 0.49]))
    found = contrast([Runs((0, 1, 2, 3), a)], [Runs((4, 5, 6), b)], [ASKED])
    known = stats.ttest_ind(a.mean(axis=1), b.mean(axis=1), equal_var=False)
    interval = known.confidence_interval(0.95)
    assert found.test == "runs, unpaired; sign flips"
    assert found.delta == pytest.approx(100 * (a.mean() - b.mean()))
    assert found.df == pytest.approx(known.df)
    assert found.p == pytest.approx(max(known.pvalue, found.p_questions))
    assert [found.lo, found.hi] == pytest.approx([100 * interval.low, 100 * interval.high])


def test_seeds_that_are_shared_have_a_paired_test_as_well():
    """Runs that rise and fall together: unpaired nothing is seen, paired the lead of 4 questions of 400 is certain."""
    base = np.array([100, 160, 220, 280, 340])
    a, b = runs(*(base + np.array([4, 4, 4, 5, 4]))), runs(*base)
    shared = contrast([a], [b], [ASKED])
    apart = contrast([a], [Runs((5, 6, 7, 8, 9), b.scores_RI)], [ASKED])
    assert apart.p > 0.9 and apart.hi - apart.lo > 50
    assert shared.test == "runs, paired and not; McNemar by question"
    # The order of the runs is none of the pairs'.
    turned = contrast([Runs((4, 3, 2, 1, 0), a.scores_RI[::-1])], [b], [ASKED])
    assert (turned.p, turned.lo) == pytest.approx((shared.p, shared.lo))
    assert shared.p < 0.01 < apart.p


def test_the_paired_test_has_its_share_of_the_error():
    rng = np.random.default_rng(5)
    common = rng.normal(0, 0.05, 4)
    a, b = (np.full((4, NUM), 0.5) + (common + rng.normal(0, 0.004, 4))[:, None] + lead for lead in (0.01, 0.0))
    found = contrast([Runs((0, 1, 2, 3), a)], [Runs((0, 1, 2, 3), b)], [ASKED])
    paired = stats.ttest_rel(a.mean(axis=1), b.mean(axis=1))
    interval = paired.confidence_interval(1 - 0.05 * PAIRED_SHARE)
    assert found.p == pytest.approx(paired.pvalue / PAIRED_SHARE)
    assert [found.lo, found.hi] == pytest.approx([100 * interval.low, 100 * interval.high])


def test_a_lead_that_differs_between_questions_is_less_sure():
    """Runs without any spread: 60 of 100 questions are won and 40 lost, by all runs alike. The questions decide."""
    won = np.repeat([1.0, 0.0], [60, 40])
    a, b = np.tile(won, (5, 1)), np.tile(1 - won, (5, 1))
    found = contrast([Runs(tuple(range(5)), a)], [Runs(tuple(range(5)), b)], [np.arange(100)])
    # Leads of +-1: their variance is 100 / 99 * (1 - 0.2^2), in points 100 * sqrt(that / 100).
    assert found.se == pytest.approx(100 * (0.96 / 99) ** 0.5)
    assert found.df == pytest.approx(99)
    assert found.p == found.p_questions  # exact, and a little larger than t's
    assert found.p == pytest.approx(stats.binomtest(40, 100).pvalue)


def test_responses_to_one_question_are_one_question():
    won = np.repeat([1.0, 0.0], [60, 40])
    sides = [Runs((0, 1), np.tile(values, (2, 1))) for values in (won, 1 - won)]
    found = contrast([sides[0]], [sides[1]], [np.arange(100) // 2])
    assert found.se == pytest.approx(100 * (0.96 / 49) ** 0.5)


def test_a_macro_average_is_the_mean_of_its_benchmarks_run_by_run():
    """One benchmark of 400 questions, one of 100: each weighs half in a run's score, whose spread is what counts."""
    few = np.arange(100)
    a = [runs(200, 220, 240), Runs((0, 1, 2), np.tile(np.repeat([1.0, 0.0], [70, 30]), (3, 1)))]
    b = [
        runs(160, 180, 170, seeds=(3, 4, 5)),
        Runs((3, 4, 5), np.repeat([[1.0, 0.0]], 3, axis=0).repeat([60, 40], axis=1)),
    ]
    found = contrast(a, b, [ASKED, few])
    ours, theirs = (
        [(x.mean() + y.mean()) / 2 for x, y in zip(s[0].scores_RI, s[1].scores_RI, strict=True)] for s in (a, b)
    )
    assert found.delta == pytest.approx(100 * (np.mean(ours) - np.mean(theirs)))
    welch = stats.ttest_ind(ours, theirs, equal_var=False)
    assert found.se >= 100 * abs(np.mean(ours) - np.mean(theirs)) / welch.statistic
    assert found.test == "runs, unpaired; questions"


@pytest.mark.parametrize("num", [(1, 5), (5, 1), (1, 1)])
def test_one_run_has_no_verdict(num):
    found = contrast([runs(*[300] * num[0])], [runs(*[100] * num[1])], [ASKED])
    assert found.delta == 50 and found.p_questions < 1e-9
    assert np.isnan([found.p, found.lo, found.hi, found.se]).all()
    assert verdicts([found], [False])[0].word == "one run"


def test_a_model_that_is_not_trained_has_one_run():
    """Its accuracy has no seeds to vary with: one-sample t over the others' runs. Alone against one run it is none."""
    a = np.tile(np.array([0.52, 0.55, 0.51, 0.57])[:, None], NUM)
    base = Runs((0,), np.full((1, NUM), 0.5), is_trained=False)
    found = contrast([Runs((0, 1, 2, 3), a)], [base], [ASKED])
    known = stats.ttest_1samp(a.mean(axis=1), 0.5)
    interval = known.confidence_interval(0.95)
    assert (found.df, found.p) == pytest.approx((3, known.pvalue))
    assert [found.lo, found.hi] == pytest.approx([100 * (bound - 0.5) for bound in interval])
    assert np.isnan(contrast([Runs((0,), a[:1])], [base], [ASKED]).p)
    assert np.isnan(contrast([base], [base], [ASKED]).p)


def test_responses_of_a_lone_run_are_noise_of_its_questions():
    """Base answers by coins: the lead of runs without spread is as sure as its questions' leads are many."""
    coins = np.tile([1.0, 0.0], NUM // 2)
    found = contrast([Runs((0, 1), np.full((2, NUM), 0.8))], [Runs((0,), coins[None], is_trained=False)], [ASKED])
    assert found.se == pytest.approx(100 * (0.25 / (NUM - 1)) ** 0.5) and found.df == pytest.approx(NUM - 1)


def test_runs_that_are_all_alike_do_not_prove_a_lead_on_one_question():
    sides = [Runs((0, 1, 2), np.full((3, 1), score)) for score in (1.0, 0.0)]
    assert contrast([sides[0]], [sides[1]], [np.zeros(1, int)]).p == 1
    assert contrast([sides[0]], [sides[0]], [np.zeros(1, int)]).p == 1


def test_holm_by_hand():
    # Sorted 0.01, 0.03, 0.04: 3 * 0.01, 2 * 0.03, then 0.04 that may not fall below 0.06. NaN is no test.
    assert holm(np.array([0.04, np.nan, 0.01, 0.03])) == pytest.approx([0.06, np.nan, 0.03, 0.06], nan_ok=True)
    assert holm(np.array([0.8, 0.9])).tolist() == [1, 1]
    assert holm(np.array([])).tolist() == []


def test_holm_with_weights_by_hand():
    # Ratios 0.02, 0.02, 0.16 (stable order); weights left 1, 0.5, 0.25: 0.02 * 1, 0.02 * 0.5 may not fall, 0.16 * 0.25.
    corrected = holm(np.array([0.01, 0.04, 0.005]), np.array([0.5, 0.25, 0.25]))
    assert corrected == pytest.approx([0.02, 0.04, 0.02])


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=12))
def test_equal_weights_are_none(values):
    p = np.array(values)
    assert holm(p, np.full(len(p), 0.3)) == pytest.approx(holm(p))


def test_verdicts_of_a_table():
    """Half of the error is the macro average's: 0.02 is enough there, and one of two benchmarks needs 0.0125."""
    said = verdicts([lone(3, 0.02), lone(-3, 0.012), lone(3, 0.2), None], [True, False, False, False])
    assert [verdict.word for verdict in said] == ["better", "worse", "not distinguishable", "not compared"]
    # 0.02 / 0.5 first, then 0.012 / 0.25 * 0.5, which may not fall below, then 0.2 / 0.25 * 0.25.
    assert [verdict.p_holm for verdict in said[:3]] == pytest.approx([0.04, 0.04, 0.2])
    assert [verdict.alpha for verdict in said[:3]] == pytest.approx([0.025, 0.0125, 0.0125])
    assert verdicts([lone(3, 0.02), lone(3, 0.03)], [False, False])[1].word == "better"
    assert verdicts([lone(3, 0.05)], [False])[0].word == "not distinguishable"
