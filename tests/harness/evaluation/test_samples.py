"""pass@k, maj@k and the spread of samples, against enumeration."""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
from pathlib import Path
from statistics import fmean

import pytest

from harness.app import main
from harness.evaluation.benchmarks.recipe import row_mean
from harness.evaluation.samples import Sampled, answer_groups, expected_best, majority, sample_row, sizes
from harness.types import Question


def enumerated(scores: list[float], k: int) -> float:
    return fmean(max(chosen) for chosen in itertools.combinations(scores, k))


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_is_what_enumeration_of_all_choices_gives(n: int) -> None:
    for marks in itertools.product((0.0, 1.0), repeat=n):
        for k in range(1, n + 1):
            best = expected_best(marks, k)
            assert best == pytest.approx(enumerated(list(marks), k), abs=1e-12)
            wrong = n - int(sum(marks))
            assert best == pytest.approx(1 - math.comb(wrong, k) / math.comb(n, k), abs=1e-12)  # Chen et al.
    draws = random.Random(n)
    marks = [draws.choice((0.0, 0.25, 0.5, 1.0)) for _ in range(n)]
    for k in range(1, n + 1):
        assert expected_best(marks, k) == pytest.approx(enumerated(marks, k), abs=1e-12)


def test_the_majority_is_of_answers_and_a_tie_is_the_mean() -> None:
    assert majority([0, 0, 1], [0.0, 0.0, 1.0]) == 0.0
    assert majority([0, 1, 1], [0.0, 1.0, 1.0]) == 1.0
    assert majority([0, 1, None, None, None], [0.0, 1.0, 0.0, 0.0, 0.0]) == 0.5  # replies without an answer do not vote
    assert majority([None, None], [0.0, 0.0]) == 0.0


def test_answers_are_equal_as_the_grader_says() -> None:
    def same(pairs: object) -> list[bool]:
        return [float(a.replace("1/2", "0.5")) == float(b.replace("1/2", "0.5")) for a, b in pairs]  # type: ignore

    one = Sampled(
        question=Question(id="1", text="", answer="1"), answers=["1/2", "3", "0.5", None, "3"], scores=[0] * 5
    )
    other = Sampled(question=Question(id="2", text="", answer="1"), answers=["7", "7", "8", "9", "8"], scores=[0] * 5)
    first, second = answer_groups([one, other], same)
    assert first[0] == first[2] != first[1] == first[4] and first[3] is None
    assert second[0] == second[1] and second[2] == second[4] and len(set(second)) == 3


def test_a_row_by_hand() -> None:
    def question(name: str) -> Question:
        return Question(id=name, text="", answer="1")

    sampled = [
        Sampled(question=question("a"), answers=["1", "2", "1", "1"], scores=[1.0, 0.0, 1.0, 1.0]),
        Sampled(question=question("b"), answers=["5", "6", "1", None], scores=[0.0, 0.0, 1.0, 0.0]),
    ]
    row = sample_row("sums", sampled, row_mean, lambda pairs: [a == b for a, b in pairs])
    # Runs: 1/2, 0, 1, 1/2. Questions: three and one right of four, sd 1/2 each. a: pass@2 = 1, b: pass@2 = 1/2.
    # maj@2 of a: (1/2 + 1) / 2, of b: (0 + 1) / 2; maj@4: 1, and the mean of three answers with a vote each.
    assert row == {
        "benchmark": "sums", "num_samples": 4, "num_questions": 2, "avg": 50.0, "run_sd": 40.8248,
        "question_sd": 50.0, "pass@1": 50.0, "pass@2": 75.0, "pass@4": 100.0,
        "maj@1": 50.0, "maj@2": 62.5, "maj@4": 66.6667,
    }  # fmt: skip
    assert sizes(1) == [1] and sizes(5) == [1, 2, 4, 5] and sizes(8) == [1, 2, 4, 8]


def test_samples_of_a_command_grow_without_being_drawn_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "model=tiny_xs", "suite=mini", "eval.mini_tasks=[arithmetic]", "eval.levels=[1]", "limit=3"]
    words += [f"outputs={tmp_path}", "eval.max_response_tokens=24", "num_threads=1"]
    assert main([*words, "eval.num_samples=2"]) == 2
    assert "eval.num_samples=2 at eval.temperature=0 would draw the same reply" in capsys.readouterr().err
    words.append("eval.temperature=1.0")
    assert main(words) == 0
    (file,) = tmp_path.rglob("scores.csv")
    stored = (file.parent / "responses.jsonl").read_text()
    assert main([*words, "eval.num_samples=4"]) == 0
    assert (file.parent / "responses.jsonl").read_text().startswith(stored)
    rows = [json.loads(line) for line in (file.parent / "rows.jsonl").read_text().splitlines()]
    assert (
        len(rows) == 12 and len({row["uid"] for row in rows}) == 12 and len({row["question_id"] for row in rows}) == 3
    )
    assert [json.loads(line)["response"] for line in stored.splitlines()] == [row["response"] for row in rows[::4]]
    (row,) = csv.DictReader((file.parent / "samples.csv").open())
    (score,) = csv.DictReader(file.open())
    assert float(row["avg"]) == float(score["score"]) == float(row["pass@1"]) == float(row["maj@1"])
    assert float(row["avg"]) == pytest.approx(100 * fmean(one["score"] for one in rows), abs=1e-3)
    best = fmean(max(one["score"] for one in rows[start : start + 4]) for start in (0, 4, 8))
    assert float(row["pass@4"]) == pytest.approx(100 * best, abs=1e-3) and score["n"] == "3"
