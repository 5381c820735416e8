from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from reports.inference.power import detectable, planned_alpha, power, standard_error


def test_the_standard_error_by_hand():
    # Runs of SD 1 and 1,250 points^2 of response noise over 500 questions: 3.5 a run, times 2 / 5.
    se, df = standard_error(5, 500, 1.0, 1250**0.5)
    assert se == pytest.approx(1.4**0.5)
    # Expectations of Welch's numerator and denominator with 4 degrees of freedom each: 2 * 4 * 5 / 6.
    assert df == pytest.approx(40 / 6)


def test_power_is_the_noncentral_t():
    for lead, se, df, alpha in ((3, 1.2, 6.7, 0.045), (1, 1, 2, 0.05), (5, 2, 40, 0.001)):
        expected = stats.nct.sf(stats.t.isf(alpha / 2, df), df, lead / se)
        assert power(lead, se, df, alpha) == pytest.approx(expected, abs=1e-9)
    # No lead: half of alpha is called with this sign. Many degrees of freedom: the normal.
    assert power(0, 1, 8, 0.05) == pytest.approx(0.025)
    assert power(3, 1, 1e9, 0.05) == pytest.approx(stats.norm.cdf(3 - stats.norm.isf(0.025)))


@pytest.mark.parametrize("df", [1, 2, 3.7, 8, 1000, 1e6])
def test_what_is_detectable_is_found_four_times_of_five(df):
    assert power(detectable(1.5, df, 0.01), 1.5, df, 0.01) == pytest.approx(0.8, abs=1e-5)


def test_power_of_a_published_table():
    """Cohen, two-sided 5 %, d = 1, 17 a group: 0.80 (Student's t with 32 degrees of freedom)."""
    assert power(1, (2 / 17) ** 0.5, 32, 0.05) == pytest.approx(0.807, abs=2e-3)


def test_nothing_is_detectable_with_one_run():
    assert np.isnan(detectable(*standard_error(1, 500, 1.0, 35.0)))
    assert np.isnan(detectable(float("nan"), float("nan")))


def test_alpha_is_shared_between_labels_and_benchmarks():
    assert planned_alpha(1, 1) == pytest.approx(0.045)
    # Three labels on four benchmarks: half for the macro averages, and a twelfth of the rest.
    assert planned_alpha(3, 4) == pytest.approx(0.045 / 24)
    assert planned_alpha(3, 4, macro=True) == pytest.approx(0.045 / 6)
