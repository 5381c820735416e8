from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from reports.runs.answers import read_answers
from reports.runs.collect import collect, find_runs
from reports.significance import COLUMNS, significance_table


def write_rows(run: Path, scores: dict[str, list[float]], *, ids: list[str] | None = None) -> None:
    """`scores` by benchmark, questions q0, q1, ... or `ids`."""
    lines = [
        json.dumps({"benchmark": name, "uid": f"{name}/{i}", "question_id": ids[i] if ids else f"q{i}",
                    "messages": [{"role": "user", "content": "1\n+1"}], "images": [], "score": score})
        for name, values in scores.items()
        for i, score in enumerate(values)
    ]  # fmt: skip
    (run / "eval" / "mini" / "rows.jsonl").write_text("".join(line + "\n" for line in lines))


def significance_of(study: Path, baseline: str = "grpo") -> pd.DataFrame:
    return significance_table(collect(study), read_answers(find_runs(study))[0], baseline)


def right(number: int, num_questions: int = 40, start: int = 0) -> list[float]:
    """So many questions right, from `start` on."""
    return [float((i - start) % num_questions < number) for i in range(num_questions)]


def test_verdicts_of_a_study(write_run, tmp_path):
    for seed in range(3):
        write_rows(write_run("grpo", {"a": 0, "b": 0}, seed=seed), {"a": right(10 + seed), "b": right(20)})
        write_rows(write_run("zppo", {"a": 0, "b": 0}, seed=seed), {"a": right(36 - seed), "b": right(18 + 2 * seed)})
        write_rows(write_run("sft", {"a": 0, "b": 0}, seed=seed), {"a": right(0), "b": right(20)})
    table = significance_of(tmp_path / "study")
    assert tuple(table.columns) == COLUMNS
    # The order of the runs: sft comes before zppo. 40 questions: 11 right of the baseline, 35 and 0 of the others.
    assert table[["label", "benchmark"]].values.tolist() == [
        [label, name] for label in ("sft", "zppo") for name in ("a", "b", "macro avg")
    ]
    assert table["delta"].tolist() == pytest.approx([-27.5, 0, -13.75, 60, 0, 30])
    assert table["verdict"].tolist() == [
        "worse", "not distinguishable", "worse", "better", "not distinguishable", "better",
    ]  # fmt: skip
    assert set(table["seeds"]) == {"0 1 2"} and set(table["note"]) == {""}
    assert table["num_questions"].tolist() == [40, 40, 80] * 2
    assert (table["p_holm"] >= table["p"]).all() and (table["p"] >= table["p_questions"]).all()
    inside = (table["lo"] <= table["delta"]) & (table["delta"] <= table["hi"])
    assert inside.all() and (table["detectable"] > 0).sum() >= 5


def test_a_lead_of_runs_that_differ_by_themselves_is_none(write_run, tmp_path):
    """Pooled over three seeds the questions alone say better; the seeds do not."""
    for seed, number in enumerate((100, 130, 190)):
        write_rows(write_run("grpo", {"a": 0}, seed=seed), {"a": right(100 + 5 * seed, 200)})
        write_rows(write_run("zppo", {"a": 0}, seed=seed), {"a": right(number, 200)})
    (row,) = significance_of(tmp_path / "study").to_dict("records")
    assert row["delta"] == pytest.approx(100 * (420 - 315) / 600)
    assert row["p_questions"] < 1e-6 and row["verdict"] == "not distinguishable"
    assert row["p"] > 0.3  # Welch's alone: 0.316
    assert row["lo"] < 0 < row["hi"]


def test_one_run_has_no_verdict(write_run, tmp_path):
    write_rows(write_run("grpo", {"a": 0}), {"a": right(0)})
    write_rows(write_run("zppo", {"a": 0}), {"a": right(40)})
    (row,) = significance_of(tmp_path / "study").to_dict("records")
    assert (row["verdict"], row["delta"], row["seeds"]) == ("one run", 100, "0")
    assert row["note"] == "zppo has one run; grpo has one run"
    assert row["p_questions"] == pytest.approx(2 / 2**40) and row["test"] == "McNemar"
    assert np.isnan([row[name] for name in ("p", "p_holm", "lo", "hi", "detectable")]).all()


def test_seeds_that_do_not_pair_are_named_and_tested_unpaired(write_run, tmp_path):
    for seed in range(3):
        write_rows(write_run("grpo", {"a": 0}, seed=seed), {"a": right(10 + seed)})
        write_rows(write_run("zppo", {"a": 0}, seed=seed + 1), {"a": right(30 + seed)})
    (row,) = significance_of(tmp_path / "study").to_dict("records")
    assert (row["seeds"], row["note"]) == ("1 2 3 against 0 1 2", "seeds are not shared: unpaired")
    assert row["test"].startswith("runs, unpaired") and row["verdict"] == "better"


def test_questions_are_matched_by_name_not_by_place(write_run, tmp_path):
    write_rows(write_run("grpo", {"a": 0}), {"a": [1, 0, 0]}, ids=["x", "y", "z"])
    write_rows(write_run("zppo", {"a": 0}), {"a": [0, 1, 1]}, ids=["y", "x", "w"])
    (row,) = significance_of(tmp_path / "study").to_dict("records")
    # x and y are alike for both; z and w have no partner.
    assert (row["delta"], row["p_questions"], row["num_questions"]) == (0, 1, 2)
    assert row["note"].endswith("; 2 of 4 responses in common")


def test_repeats_of_a_question_are_one_question(write_run, tmp_path):
    write_rows(write_run("grpo", {"a": 0}), {"a": [0, 0, 0]}, ids=["x", "x", "y"])
    write_rows(write_run("zppo", {"a": 0}), {"a": [1, 1, 1]}, ids=["x", "x", "y"])
    (row,) = significance_of(tmp_path / "study").to_dict("records")
    assert (row["num_questions"], row["p_questions"]) == (2, pytest.approx(1 / 2))


def test_what_can_not_be_compared_says_why(write_run, tmp_path):
    names = ["a", "b"]
    write_rows(write_run("grpo", dict.fromkeys(names, 0.0)), {"a": right(0, 8), "b": [0]})
    write_rows(write_run("other_protocol", {"a": 0.0}, protocol="p2"), {"a": [1] * 8})
    write_rows(write_run("other_questions", {"a": 0.0}), {"a": [1]}, ids=["z"])
    write_run("without_rows", {"a": 0.0})
    write_rows(write_run("zppo", dict.fromkeys(names, 0.0)), {"a": [1] * 8})
    write_run("zppo", dict.fromkeys(names, 0.0), seed=1)
    table = significance_of(tmp_path / "study").set_index(["label", "benchmark"])
    assert table["note"].to_dict() == {
        ("other_protocol", "a"): "other_protocol has no score of this protocol",
        ("other_protocol", "b"): "other_protocol has no score of this protocol",
        ("other_protocol", "macro avg"): "not compared on a, b",
        ("other_questions", "a"): "no question in common",
        ("other_questions", "b"): "other_questions has no score of this protocol",
        ("other_questions", "macro avg"): "not compared on a, b",
        ("without_rows", "a"): "without_rows has no rows",
        ("without_rows", "b"): "without_rows has no score of this protocol",
        ("without_rows", "macro avg"): "not compared on a, b",
        ("zppo", "a"): "zppo has one run; grpo has one run; 1 of 2 runs of zppo have no rows",
        ("zppo", "b"): "zppo has no rows",
        ("zppo", "macro avg"): "not compared on b",
    }
    assert table.loc[("zppo", "b"), ["delta", "lo", "hi", "p", "p_holm", "p_questions"]].isna().all()
    assert table["verdict"].value_counts().to_dict() == {"not compared": 11, "one run": 1}


def test_a_macro_average_is_over_the_seeds_that_have_all_benchmarks(write_run, tmp_path):
    for seed in range(3):
        write_rows(write_run("grpo", {"a": 0, "b": 0}, seed=seed), {"a": right(10), "b": right(10)})
        scores = {"a": right(30), "b": right(20 + seed)}
        held = scores if seed else {"a": scores["a"]}
        write_rows(write_run("zppo", dict.fromkeys(held, 0), seed=seed), held)
    table = significance_of(tmp_path / "study").set_index("benchmark")
    assert table["seeds"].to_dict() == {
        "a": "0 1 2", "b": "1 2 against 0 1 2", "macro avg": "1 2 against 0 1 2",
    }  # fmt: skip
    assert table.loc["macro avg", "delta"] == pytest.approx((50 + 100 * 11.5 / 40) / 2)


def test_an_unknown_baseline_names_the_labels(write_run, tmp_path):
    write_run("grpo", {"a": 0.0})
    with pytest.raises(ValueError, match="no run is labelled 'sft'; labels here: grpo"):
        significance_of(tmp_path / "study", "sft")
    assert significance_of(tmp_path / "study").empty  # the baseline alone
