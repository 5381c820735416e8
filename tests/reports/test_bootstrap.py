from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.bootstrap import COLUMNS, bootstrap_table, cluster_bootstrap
from reports.runs.collect import collect


def frame(**rows: list[float | None]) -> pd.DataFrame:
    """A row a label, benchmarks b0, b1, ..."""
    table = pd.DataFrame(rows, dtype=float).T
    return table.set_axis([f"b{i}" for i in range(table.shape[1])], axis=1)


@pytest.mark.clause("C115", "C116")
def test_delta_wins_and_best():
    scores = frame(zppo=[60, 50, 40], grpo=[50, 50, 45], sft=[40, 40, 39])
    table = cluster_bootstrap(scores, "zppo", ["grpo", "sft"]).set_index("baseline")
    # grpo: +10, 0, -5: mean 5/3, one above zero (a tie is no win). sft: +20, +10, +1: mean 31/3.
    # Macro: grpo 145/3, sft 119/3.
    assert table["delta"].to_dict() == pytest.approx({"grpo": 5 / 3, "sft": 31 / 3, "best": 5 / 3})
    assert table["wins"].to_dict() == {"grpo": 1, "sft": 3, "best": 1}
    assert table["n"].tolist() == [3, 3, 3] and table["is"].tolist() == ["grpo", "sft", "grpo"]
    assert table.loc["best", ["lo", "hi"]].tolist() == table.loc["grpo", ["lo", "hi"]].tolist()


def test_interval_of_two_benchmarks_is_that_of_a_binomial():
    # Resampled means of (0, 10): 0, 5 and 10 with probability 1/4, 1/2, 1/4: each tail is far above 2.5 %.
    table = cluster_bootstrap(frame(zppo=[0, 10], grpo=[0, 0]), "zppo", ["grpo"])
    assert table.loc[0, ["delta", "lo", "hi"]].tolist() == [5, 0, 10]


def test_interval_has_the_width_of_the_normal_approximation():
    # The mean of 400 draws from -1 and 1 has the standard error 1/20; 1.96 of it, give or take its lattice of 1/200.
    deltas = [-1.0, 1.0] * 200
    table = cluster_bootstrap(frame(zppo=deltas, grpo=[0.0] * 400), "zppo", ["grpo"])
    assert table.loc[0, "lo"] == pytest.approx(-0.098, abs=0.006)
    assert table.loc[0, "hi"] == pytest.approx(0.098, abs=0.006)


def test_one_benchmark_has_the_delta_as_interval():
    table = cluster_bootstrap(frame(zppo=[10], grpo=[7.5]), "zppo", ["grpo"])
    assert table.loc[0, ["delta", "lo", "hi", "wins", "n"]].tolist() == [2.5, 2.5, 2.5, 1, 1]


def test_a_hole_leaves_its_benchmark_out_of_that_comparison():
    scores = frame(zppo=[60, 50, None], grpo=[50, None, 1], sft=[40, 48, 2])
    table = cluster_bootstrap(scores, "zppo", ["grpo", "sft"]).set_index("baseline")
    # grpo: b0 only, +10. sft: b0 and b1, +20 and +2. grpo has a hole where zppo has a score: it cannot be best.
    assert table["delta"].to_dict() == {"grpo": 10, "sft": 11, "best": 11}
    assert table["n"].to_dict() == {"grpo": 1, "sft": 2, "best": 2}
    assert table.loc["best", "is"] == "sft"


def test_nothing_in_common_is_visible():
    table = cluster_bootstrap(frame(zppo=[60, None], grpo=[None, 40]), "zppo", ["grpo"])
    assert table[["delta", "lo", "hi"]].isna().all(axis=None)
    assert table[["wins", "n", "is"]].to_numpy().tolist() == [[0, 0, "grpo"], [0, 0, ""]]


def test_an_unknown_label_is_named():
    with pytest.raises(ValueError, match="no scores of sft; labels here: zppo, grpo"):
        cluster_bootstrap(frame(zppo=[1], grpo=[2]), "zppo", ["sft"])


scores_of = st.lists(st.integers(0, 1000), min_size=6, max_size=6)


@settings(max_examples=40, deadline=None)
@given(scores_of, scores_of)
def test_exchanging_subject_and_baseline_turns_the_signs(ours, theirs):
    scores = frame(a=[x / 10 for x in ours], b=[x / 10 for x in theirs])
    (delta, lo, hi, wins), (delta_, lo_, hi_, wins_) = (
        cluster_bootstrap(scores, *names, num_resamples=200).loc[0, ["delta", "lo", "hi", "wins"]]
        for names in (("a", ["b"]), ("b", ["a"]))
    )
    assert [delta, lo, hi] == pytest.approx([-delta_, -hi_, -lo_], abs=1e-9)
    assert wins + wins_ == sum(x != y for x, y in zip(ours, theirs, strict=True))
    deltas = [(x - y) / 10 for x, y in zip(ours, theirs, strict=True)]
    assert min(deltas) - 1e-9 <= lo <= hi <= max(deltas) + 1e-9


def test_table_of_a_study(write_run, tmp_path):
    write_run("base", {"level1": 30.0, "VLM_level1": 9.0})
    write_run("grpo", {"level1": 50.0, "VLM_level1": 10.0})
    write_run("zppo", {"level1": 60.0, "VLM_level1": 12.0}, seed=0)
    write_run("zppo", {"level1": 64.0, "VLM_level1": 13.0}, seed=1)
    write_run("zppo,top=3", {"level1": 99.0, "VLM_level1": 99.0})
    table = bootstrap_table(collect(tmp_path / "study"))
    assert tuple(table.columns) == COLUMNS
    # zppo is the mean of its seeds, 62 and 12.5; its ablation is a baseline, and never the best other.
    assert table[["family", "baseline", "delta", "is"]].to_numpy().tolist() == [
        ["LLM", "base", 32.0, "base"], ["LLM", "grpo", 12.0, "grpo"], ["LLM", "zppo,top=3", -37.0, "zppo,top=3"],
        ["LLM", "best", 12.0, "grpo"],
        ["VLM", "base", 3.5, "base"], ["VLM", "grpo", 2.5, "grpo"], ["VLM", "zppo,top=3", -86.5, "zppo,top=3"],
        ["VLM", "best", 2.5, "grpo"],
    ]  # fmt: skip


def test_table_without_subject_or_others_is_empty(write_run, tmp_path):
    write_run("zppo", {"level1": 60.0})
    long = collect(tmp_path / "study")
    for subject in ("zppo", "grpo"):
        table = bootstrap_table(long, subject)
        assert table.empty and tuple(table.columns) == COLUMNS


def test_runs_of_another_protocol_are_left_out(write_run, tmp_path):
    write_run("base", {"level1": 30.0, "level2": 30.0})
    write_run("grpo", {"level1": 0.0, "level2": 0.0}, protocol="p2")
    write_run("zppo", {"level1": 40.0, "level2": 50.0})
    table = bootstrap_table(collect(tmp_path / "study")).set_index("baseline")
    assert table["delta"].to_dict() == {"base": 15, "best": 15}
    tied = bootstrap_table(collect(tmp_path / "study"), "grpo")
    assert tied.empty  # all its scores are of the rarer protocol


def test_equal_means_over_seeds_are_no_win(write_run, tmp_path):
    write_run("grpo", {"level1": 0.3}, seed=0)
    write_run("grpo", {"level1": 0.0}, seed=1)
    write_run("zppo", {"level1": 0.1}, seed=0)
    write_run("zppo", {"level1": 0.2}, seed=1)  # 0.1 + 0.2 > 0.3 in floating point
    table = bootstrap_table(collect(tmp_path / "study"))
    assert table["wins"].tolist() == [0, 0] and table["delta"].tolist() == [0, 0]


@settings(max_examples=5, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_change_a_number(random):
    long = many_scores(num_students=1, num_labels=3)
    order = list(range(len(long)))
    random.shuffle(order)
    columns = ["student", "family", "baseline"]
    expected, shuffled = (bootstrap_table(rows).sort_values(columns) for rows in (long, long.iloc[order]))
    pd.testing.assert_frame_equal(expected.reset_index(drop=True), shuffled.reset_index(drop=True))


def many_scores(num_students: int, num_labels: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    labels = ["zppo", *(f"m{i}" for i in range(num_labels))]
    return pd.DataFrame(
        {"student": f"s{s}", "label": label, "method": label, "family": family, "benchmark": f"{family}{b}",
         "score": round(100 * rng.random(), 1), "protocol": "p", "seed": 0}
        for s in range(num_students)
        for label in labels
        for family, num in (("LLM", 10), ("VLM", 16), ("Video", 5))
        for b in range(num)
    )  # fmt: skip
