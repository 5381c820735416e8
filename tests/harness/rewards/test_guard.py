"""Answers are no programs, whatever a verifier does with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import reasoning_gym
import sympy

from harness.rewards.guard import evaluate
from harness.rewards.workers import Grader
from harness.types import Question

X = sympy.Symbol("x")
SYMPY = vars(sympy)

EVALUATING = (
    "spiral_matrix", "string_insertion", "binary_matrix", "n_queens", "countdown", "puzzle24", "simple_integration",
    "intermediate_integration", "polynomial_multiplication",
)  # fmt: skip
"""Data sets whose scorers evaluate answers."""


@pytest.mark.parametrize("name", EVALUATING)
def test_no_scorer_runs_an_answer(name: str, grader: Grader, tmp_path: Path) -> None:
    entry = reasoning_gym.create_dataset(name, size=1, seed=3)[0]
    metadata = {"dataset": name, "entry": entry, "config": {}}
    question = Question(id="g", text="", answer=entry["answer"], answer_type="reasoning_gym", metadata=metadata)
    file = tmp_path / "written"
    answers = [f"open('{file}', 'w')", f"__import__('os').system('touch {file}')", entry["answer"]]
    grades = grader.grade([(f"\\boxed{{{answer}}}", question) for answer in answers])
    assert [grade.verdict for grade in grades] == ["wrong", "wrong", "correct"]
    assert not file.exists()


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("[[1, 2], [3, 4]]", [[1, 2], [3, 4]]),
        (" 0x10 + 2**3 // 3", 18),
        ("['A', 'B']", ["A", "B"]),
        ("x**2 + Integer(1)", X**2 + 1),
        ("sin(pi / 2) + sqrt(4) + abs(-1)", 4),
        (compile("Rational(1, 2)", "", "eval"), sympy.Rational(1, 2)),
    ],
)
def test_mathematics_is_evaluated(source: Any, value: Any) -> None:
    assert evaluate(source, {**SYMPY, "abs": abs}, {"x": X}) == value


@pytest.mark.parametrize(
    "source",
    [
        "open('f')", "eval('1')", "__import__('os')", "().__class__.__base__.__subclasses__()", "x.__class__",
        "'{0.__class__}'.format(x)", "f'{x.__class__}'", "(lambda: 1)()", "[i for i in (1, 2)]", "(y := 5)",
        "x.subs", "lambdify(x, 'open')", "sympify('1')", "preview(x)", "print(1)", "exit()", "abs",
    ],
)  # fmt: skip
def test_anything_else_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match="is no mathematics"):
        evaluate(source, SYMPY, {"x": X})


def test_names_come_from_the_caller_only() -> None:
    with pytest.raises(ValueError, match="'abs' is no mathematics"):
        evaluate("abs(-1)")
    with pytest.raises(SyntaxError):
        evaluate("import os")
