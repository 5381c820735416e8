from __future__ import annotations

import numpy as np
import pytest

from reports.inference.spread import run_spread
from reports.runs.answers import Answers


def test_what_was_put_in_is_found():
    """40 runs of 2,000 questions: runs differ by 3 points, and a response by 100 sqrt(1/8) about its question's own."""
    rng = np.random.default_rng(0)
    difficulty = 0.2 + 0.6 * rng.beta(0.5, 0.5, 2000)
    scores = (rng.random((40, 2000)) < difficulty + rng.normal(0, 0.03, 40)[:, None]).astype(float)
    runs = tuple(("a" if seed < 20 else "b", seed % 20) for seed in range(40))
    found = run_spread([Answers(runs, scores, np.arange(2000))])
    noise = 100 * (difficulty * (1 - difficulty)).mean() ** 0.5
    assert found is not None and found.df == 38
    assert found.run_sd == pytest.approx(3, abs=3 * 3 / (2 * 38) ** 0.5)
    assert found.response_sd == pytest.approx(noise, rel=0.02)


def test_by_hand():
    # Two runs, two questions: means 1 and 1/2, variance 1/8. Residuals +-1/4: 4/16 over one degree of freedom.
    found = run_spread([Answers((("a", 0), ("a", 1)), np.array([[1.0, 1.0], [0.0, 1.0]]), np.arange(2))])
    assert found is not None
    assert (found.run_sd, found.response_sd, found.df) == (0, 50, 1)  # 1/8 - (1/4) / 2


def test_one_run_a_label_has_none():
    assert run_spread([Answers((("a", 0), ("b", 0)), np.array([[1.0, 1.0], [0.0, 1.0]]), np.arange(2))]) is None
    assert run_spread([]) is None
