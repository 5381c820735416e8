from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from reports.inference import aggregates as agg

RLIABLE = json.loads((Path(__file__).parents[2] / "fixtures" / "rliable.json").read_text())


@pytest.mark.parametrize("case", RLIABLE["cases"])
def test_rliable_says_the_same_on_the_same_resamples(case):
    x, y = (np.array([one[name] for one in case["resamples"]]) for name in ("x", "y"))
    for name, found in (
        ("iqm", agg.iqm(x)), ("optimality_gap", agg.optimality_gap(x)), ("improvement", agg.improvement(x, y)),
    ):  # fmt: skip
        assert np.abs(found - [one[name] for one in case["resamples"]]).max() < 1e-12, name
    found = agg.profile(np.array(case["x"]), np.array(RLIABLE["thresholds"]))
    assert np.abs(found - case["profile"]).max() < 1e-12


def test_by_hand():
    # Sorted 0 .1 .2 .3 .4 .5 .6 1: two are cut off at each end, (.2 + .3 + .4 + .5) / 4.
    scores = np.array([[0.3, 1.0, 0.1, 0.5], [0.2, 0.0, 0.6, 0.4]])
    assert agg.iqm(scores) == pytest.approx(0.35)
    assert agg.optimality_gap(scores) == pytest.approx(1 - 3.1 / 8)
    # Benchmark 1: 1 of 2 above, none equal; benchmark 2: one equal, one below.
    assert agg.improvement(np.array([[0.5, 0.2]]), np.array([[0.4, 0.2], [0.6, 0.3]])) == pytest.approx(
        (1 / 2 + 1 / 4) / 2
    )
    assert agg.profile(scores, np.array([0.3, 0.0])).tolist() == [4 / 8, 7 / 8]
    assert agg.ranks(np.array([0.2, 0.9, 0.2])).tolist() == [2.5, 1, 2.5]


def test_kendalls_tau_is_scipys():
    rng = np.random.default_rng(0)
    for _ in range(5):
        x, y = rng.integers(0, 4, (2, 9)).astype(float)
        assert agg.kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)
    assert np.isnan(agg.kendall(np.ones(3), np.arange(3)))


def test_intervals_are_over_runs_and_one_run_has_none():
    scores = np.array([[0.0, 0.2], [0.4, 0.6]])
    # Two of two runs: the first alone, both and the second alone have probability 1/4, 1/2, 1/4.
    assert agg.interval(agg.iqm, scores).tolist() == pytest.approx([0.1, 0.5])
    assert np.isnan(agg.interval(agg.iqm, scores[:1])).all()
    assert agg.interval(agg.improvement, scores, scores[:1]).shape == (2,)
    assert np.isnan(agg.interval(agg.improvement, scores, scores[:1])).all()
