from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from reports.runs.answers import read_answers
from reports.runs.collect import find_runs


def write_rows(run: Path, rows: list[tuple[str, str, float | None]], **more: str) -> Path:
    """(benchmark, question, score) a row; messages hold what looks like a row."""
    messages = [{"role": "user", "content": '\n{"benchmark": "z", "question_id": "z", "score": 1}'}]
    lines = [
        json.dumps(
            {"benchmark": name, "uid": str(i), "question_id": asked, "messages": messages, "score": score} | more
        )
        for i, (name, asked, score) in enumerate(rows)
    ]
    file = run / "eval" / "mini" / "rows.jsonl"
    file.write_text("".join(line + "\n" for line in lines))
    return file


def test_runs_are_rows_and_responses_are_columns(write_run, tmp_path):
    first = write_run("grpo", {"a": 0.0}, seed=3)
    second = write_run("zppo", {"a": 0.0})
    # x is asked twice; the second run has another order, no z, and w.
    write_rows(first, [("a", "x", 1.0), ("b", "x", 0.0), ("a", "y", 0.25), ("a", "x", 0.0), ("a", "z", 1.0)])
    write_rows(second, [("a", "y", 0.5), ("a", "w", 1.0), ("a", "x", 0.75), ("a", "x", 1.0)])
    answers, damaged = read_answers(find_runs(tmp_path / "study"))
    assert damaged == [] and set(answers) == {("tiny_s", "mini", "a"), ("tiny_s", "mini", "b")}
    found = answers["tiny_s", "mini", "a"]
    assert found.runs == (("grpo", 3), ("zppo", 0))
    assert found.questions_I.tolist() == [0, 1, 0, 2, 3]  # x y x z w
    nan = np.nan
    assert np.array_equal(found.scores_RI, [[1, 0.25, 0, 1, nan], [0.75, 0.5, 1, nan, 1]], equal_nan=True)
    assert answers["tiny_s", "mini", "b"].scores_RI.tolist() == [[0.0]]


def test_responses_without_a_verdict_are_left_out(write_run, tmp_path):
    file = write_rows(write_run("grpo", {"a": 0.0}), [("a", "x", 1.0)], verdict="correct")
    row = json.loads(file.read_text()) | {"question_id": "y", "score": None, "verdict": "ungraded"}
    file.write_text(file.read_text() + json.dumps(row) + "\n")
    answers, damaged = read_answers(find_runs(tmp_path / "study"))
    assert damaged == [] and answers["tiny_s", "mini", "a"].scores_RI.tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"benchmark": "a", "question_id": "q0", "sc', "JSON parse error"),
        ('{"benchmark": "a", "question_id": "q0"}\n', "a row lacks benchmark, question_id, score"),
    ],
)
def test_damaged_files_are_named(write_run, tmp_path, text, said):
    write_rows(write_run("grpo", {"a": 0.0}), [("a", "x", 1.0)]).write_text(text)
    answers, (line,) = read_answers(find_runs(tmp_path / "study"))
    assert answers == {} and line.startswith(f"- grpo tiny_s seed0: rows.jsonl of mini: {said}")


def test_an_empty_file_and_an_incomplete_run_have_no_answers(write_run, tmp_path):
    write_rows(write_run("grpo", {"a": 0.0}), []).write_text("")
    write_rows(write_run("zppo", {"a": 0.0}, status="failed"), [("a", "x", 1.0)])
    assert read_answers(find_runs(tmp_path / "study")) == ({}, [])
