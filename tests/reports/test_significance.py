from __future__ import annotations

import itertools
import json
from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.runs.collect import collect, find_runs
from reports.significance import COLUMNS, holm, mcnemar, read_rows, sign_flips, significance_table


def write_rows(run: Path, scores: dict[str, list[float]], *, ids: list[str] | None = None) -> None:
    """`scores` by benchmark, questions q0, q1, ... or `ids`."""
    lines = [
        json.dumps({"benchmark": name, "uid": f"{name}/{i}", "question_id": ids[i] if ids else f"q{i}",
                    "messages": [{"role": "user", "content": "1\n+1"}], "images": [], "score": score})
        for name, values in scores.items()
        for i, score in enumerate(values)
    ]  # fmt: skip
    (run / "eval" / "mini" / "rows.jsonl").write_text("".join(line + "\n" for line in lines))


def significance_of(study: Path, baseline: str = "grpo"):
    return significance_table(collect(study), read_rows(find_runs(study))[0], baseline)


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


def test_holm_by_hand():
    # Sorted 0.01, 0.03, 0.04: 3 * 0.01, 2 * 0.03, then 0.04 that may not fall below 0.06. NaN is no test.
    assert holm(np.array([0.04, np.nan, 0.01, 0.03])) == pytest.approx([0.06, np.nan, 0.03, 0.06], nan_ok=True)
    assert holm(np.array([0.8, 0.9])).tolist() == [1, 1]
    assert holm(np.array([])).tolist() == []


def test_verdicts_of_a_study(write_run, tmp_path):
    write_rows(write_run("grpo", {"a": 0, "b": 0, "c": 0}), {"a": [0] * 10, "b": [0] * 10, "c": [1] * 10})
    write_rows(
        write_run("zppo", {"a": 0, "b": 0, "c": 0}),
        {"a": [1] * 10, "b": [1] * 5 + [0] * 5, "c": [0] * 10},
    )
    table = significance_of(tmp_path / "study")
    assert tuple(table.columns) == COLUMNS
    assert table["delta"].tolist() == [100, 50, -100]
    # 2/1024, 2/32, 2/1024; Holm: 3 * 2/1024, then the other smallest may not fall, then 2/32.
    assert table["p"].tolist() == pytest.approx([2 / 1024, 2 / 32, 2 / 1024])
    assert table["p_holm"].tolist() == pytest.approx([6 / 1024, 2 / 32, 6 / 1024])
    assert table["verdict"].tolist() == ["better", "not distinguishable", "worse"]
    assert set(table["test"]) == {"McNemar"}
    assert set(table["num_pairs"]) == set(table["num_questions"]) == {10}
    # Where every question differs alike, so does every resample.
    assert table.loc[0, ["lo", "hi"]].tolist() == [100, 100]
    # 5 of 10: 100 Binomial(10, 1/2) / 10, whose 2.5 % quantile is 2 (P(X <= 1) = 11/1024, P(X <= 2) = 56/1024).
    assert table.loc[1, ["lo", "hi"]].tolist() == [20, 80]


def test_seeds_are_paired_with_themselves_and_questions_stay_together(write_run, tmp_path):
    write_rows(write_run("grpo", {"a": 0}, seed=0), {"a": [0, 0, 0, 0]})
    write_rows(write_run("grpo", {"a": 0}, seed=1), {"a": [0, 0, 0, 0]})
    write_rows(write_run("zppo", {"a": 0}, seed=0), {"a": [1, 1, 0, 0]})
    write_rows(write_run("zppo", {"a": 0}, seed=1), {"a": [1, 1, 0, 0]})
    write_rows(write_run("zppo", {"a": 0}, seed=2), {"a": [0, 0, 0, 0]})  # grpo has no seed 2
    (row,) = significance_of(tmp_path / "study").to_dict("records")
    assert (row["seeds"], row["num_pairs"], row["num_questions"], row["delta"]) == ("0 1", 8, 4, 50)
    # Two questions with two pairs each: |+-2 +-2| = 4 in 2 of 4 cases. As four independent pairs it were 2/16.
    assert row["test"] == "McNemar by question" and row["p"] == pytest.approx(1 / 2)
    # Questions drawn: 100 Binomial(4, 1/2) / 4; all or none of them has probability 1/16 each.
    assert (row["lo"], row["hi"]) == (0, 100)


def test_questions_are_matched_by_name_not_by_place(write_run, tmp_path):
    write_rows(write_run("grpo", {"a": 0}), {"a": [1, 0, 0]}, ids=["x", "y", "z"])
    write_rows(write_run("zppo", {"a": 0}), {"a": [0, 1, 1]}, ids=["y", "x", "w"])
    (row,) = significance_of(tmp_path / "study").to_dict("records")
    # x and y are alike for both; z and w have no partner.
    assert (row["delta"], row["p"], row["num_pairs"], row["verdict"]) == (0, 1, 2, "not distinguishable")


def test_repeats_of_a_question_are_one_question(write_run, tmp_path):
    write_rows(write_run("grpo", {"a": 0}), {"a": [0, 0, 0]}, ids=["x", "x", "y"])
    write_rows(write_run("zppo", {"a": 0}), {"a": [1, 1, 1]}, ids=["x", "x", "y"])
    (row,) = significance_of(tmp_path / "study").to_dict("records")
    assert (row["num_pairs"], row["num_questions"], row["p"]) == (3, 2, 1 / 2)


def test_fractions_are_tested_by_sign_flips(write_run, tmp_path):
    write_rows(write_run("grpo", {"a": 0}), {"a": [0.5] * 12})
    write_rows(write_run("zppo", {"a": 0}), {"a": [0.75] * 12})
    (row,) = significance_of(tmp_path / "study").to_dict("records")
    # All flips alike: 2/4096 of them, far below 5 %.
    assert (row["test"], row["delta"], row["lo"], row["hi"], row["verdict"]) == ("sign flips", 25, 25, 25, "better")
    assert 1 / 10_001 <= row["p"] < 0.002


def test_what_can_not_be_paired_says_why(write_run, tmp_path):
    names = ["a", "b", "c"]
    write_rows(write_run("grpo", dict.fromkeys(names, 0.0)), {"a": [0] * 8, "b": [0]})
    write_rows(write_run("other_protocol", {"a": 0.0}, protocol="p2"), {"a": [1] * 8})
    write_rows(write_run("other_questions", {"a": 0.0}), {"a": [1]}, ids=["z"])
    write_rows(write_run("other_seed", {"a": 0.0}, seed=1), {"a": [1] * 8})
    write_run("without_rows", {"a": 0.0})
    write_rows(write_run("zppo", dict.fromkeys(names, 0.0)), {"a": [1] * 8, "c": [1]})
    table = significance_of(tmp_path / "study").set_index(["label", "benchmark"])
    assert table[table["verdict"] == "not compared"]["note"].to_dict() == {
        ("other_protocol", "a"): "evaluated by different protocols",
        ("other_questions", "a"): "no question in common by the same seed and protocol",
        ("other_seed", "a"): "no seed in common",
        ("without_rows", "a"): "without_rows has no rows",
        ("zppo", "b"): "zppo has no rows",
        ("zppo", "c"): "grpo has no rows",
    }
    assert table.loc[("zppo", "a"), "verdict"] == "better"  # Holm over the one test that there is: 2/256
    assert table.loc[("zppo", "a"), "p_holm"] == pytest.approx(2 / 256)
    assert table.loc[("zppo", "b"), ["delta", "lo", "hi", "p", "p_holm"]].isna().all()


def test_a_study_without_any_rows(write_run, tmp_path):
    write_run("grpo", {"a": 0.0})
    write_run("zppo", {"a": 0.0})
    (row,) = significance_of(tmp_path / "study").to_dict("records")
    assert (row["verdict"], row["note"]) == ("not compared", "zppo has no rows")


def test_bad_input_is_named(write_run, tmp_path):
    run = write_run("grpo", {"a": 0.0})
    with pytest.raises(ValueError, match="no run is labelled 'sft'; labels here: grpo"):
        significance_of(tmp_path / "study", "sft")
    assert significance_of(tmp_path / "study").empty  # the baseline alone
    file = run / "eval" / "mini" / "rows.jsonl"
    file.write_text('{"benchmark": "a", "question_id": "q0", "sc')
    rows, (line,) = read_rows(find_runs(tmp_path / "study"))
    assert rows.empty and line.startswith("- grpo tiny_s seed0: rows.jsonl of mini: JSON parse error")
    file.write_text('{"benchmark": "a", "question_id": "q0"}\n')
    rows, (line,) = read_rows(find_runs(tmp_path / "study"))
    assert rows.empty and line.endswith("a row lacks benchmark, question_id, score")
