from __future__ import annotations

import numpy as np
import pytest

from reports.aggregates import aggregate_table, scale_table
from reports.runs.collect import collect


@pytest.fixture
def study(write_run, tmp_path):
    """Two students: zppo above grpo on one, below on the other; base has one run, a run of grpo lacks a benchmark."""
    write_run("base", {"a": 10.0, "b": 20.0})
    write_run("base", {"a": 10.0, "b": 20.0}, student="tiny_xs")
    for seed in range(3):
        write_run("grpo", {"a": 40.0 + seed, "b": 30.0}, seed=seed)
        write_run("zppo", {"a": 60.0 + seed, "b": 50.0}, seed=seed)
        write_run("grpo", {"a": 40.0 + seed, "b": 30.0}, seed=seed, student="tiny_xs")
        write_run("zppo", {"a": 30.0 + seed, "b": 25.0}, seed=seed, student="tiny_xs")
    write_run("grpo", {"a": 90.0}, seed=7)
    return collect(tmp_path / "study")


def test_labels_over_runs_and_benchmarks(study):
    table, profiles = aggregate_table(study, "grpo")
    rows = table[table["student"] == "tiny_s"].set_index("label")
    assert rows["num_runs"].to_dict() == {"base": 1, "grpo": 3, "zppo": 3}
    assert rows["mean"].to_dict() == pytest.approx({"base": 15, "grpo": 35.5, "zppo": 55.5})
    # 30 30 30 40 41 42 without one at each end.
    assert rows.loc["grpo", ["iqm", "optimality_gap"]].tolist() == pytest.approx([141 / 4, 64.5])
    assert rows.loc["grpo", "iqm_lo"] < 35.25 < rows.loc["grpo", "iqm_hi"]
    assert rows[["improvement", "rank", "rank_lo"]].loc["zppo"].tolist() == [100, 1, 1]
    assert np.isnan(rows.loc["base", ["iqm_lo", "iqm_hi"]].astype(float)).all() and rows.loc["base", "rank_hi"] == 3
    shares = profiles[(profiles["student"] == "tiny_s") & (profiles["label"] == "zppo")].set_index("threshold")["share"]
    assert (shares[45], shares[50], shares[60], shares[65]) == pytest.approx((100, 50, 200 / 6, 0))


def test_students_may_order_the_labels_otherwise(study):
    (row,) = scale_table(study).to_dict("records")
    assert (row["student"], row["other"], row["num_labels"]) == ("tiny_s", "tiny_xs", 3)
    # base is last on both, grpo and zppo change places: (2 - 1) / 3, in every resample.
    assert (row["tau"], row["lo"], row["hi"], row["note"]) == (
        pytest.approx(1 / 3),
        pytest.approx(1 / 3),
        pytest.approx(1 / 3),
        "",
    )


def test_one_run_has_no_interval(study):
    (row,) = scale_table(study[(study["label"] != "zppo") | (study["seed"] == 0)]).to_dict("records")
    assert row["tau"] == pytest.approx(1 / 3) and np.isnan(row["lo"]) and row["note"] == "one run of zppo"
