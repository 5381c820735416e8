"""Multiple-choice examinations in text: MMLU, MMLU-Pro, MMLU-Redux, C-Eval and GPQA."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from harness.config.evaluation import BenchmarkOptions
from harness.evaluation.benchmarks.recipe import Aggregate, Recipe, by_category, mean_over, row_mean
from harness.evaluation.benchmarks.rows import Row
from harness.rewards.choice import LETTERS, choice_letter, lettered
from harness.types import Question

NO_OPTION = "N/A"
"""Fills up the options of MMLU-Pro where a question has fewer than ten."""


def mmlu(row: Row) -> list[Question]:
    return [_choice(row, row["question"], row["choices"], row.gold("answer"))]


def mmlu_pro(row: Row) -> list[Question]:
    right = row.gold("answer_index")
    kept = [i for i, option in enumerate(row["options"]) if option.strip() != NO_OPTION or i == right]
    options = [row["options"][i] for i in kept]
    return [_choice(row, row["question"], options, kept.index(right), category=row["category"])]


def mmlu_redux(row: Row) -> list[Question]:
    """The re-annotation says which questions are faulty, and for a wrong answer mostly which one is right."""
    index = row.gold("answer")
    if row["error_type"] != "ok" and row.options.mmlu_redux == "ok":
        return []
    # Where no option is right, the correction is a new answer, and a number in it is no option's index.
    if row["error_type"] == "wrong_groundtruth" and row.options.mmlu_redux == "corrected":
        index = _corrected(row["correct_answer"], row["choices"], index)
    return [_choice(row, row["question"], row["choices"], index)]


def ceval(row: Row) -> list[Question]:
    choices = [row[letter] for letter in "ABCD"]
    return [_choice(row, row["question"], choices, LETTERS.index(row.gold("answer").strip()), category=row.config)]


def gpqa_diamond(row: Row) -> list[Question]:
    """The right option has its own column: the order is drawn, for each question by itself."""
    choices = [row.gold("Correct Answer"), *(row[f"Incorrect Answer {i}"] for i in (1, 2, 3))]
    order = [0, 1, 2, 3]
    random.Random(f"gpqa/{row.options.gpqa_seed}/{row['Record ID']}").shuffle(order)
    return [_choice(row, row["Question"], [choices[i] for i in order], order.index(0))]


def _choice(row: Row, question: str, choices: Sequence[str], index: int, **metadata: Any) -> Question:
    choices = [choice.strip() for choice in choices]
    return row.question(
        f"{question.strip()}\n{lettered(choices)}", LETTERS[index], answer_type="choice", choices=choices, **metadata
    )


def _corrected(correction: str | None, choices: Sequence[str], printed: int) -> int:
    """The option that a correction names by letter, index or text; the printed one if it names none or several."""
    text = (correction or "").strip()
    named = {choice_letter(text, choices)} - {None} if text else set()
    if text.isdecimal() and int(text) < len(choices):
        named.add(LETTERS[int(text)])
    return LETTERS.index(str(named.pop())) if len(named) == 1 else printed


def _subjects_or_rows(options: BenchmarkOptions) -> Aggregate:
    return mean_over(by_category) if options.ceval == "subjects" else row_mean


RECIPES = {
    "mmlu": Recipe(questions=mmlu),
    "mmlu_pro": Recipe(questions=mmlu_pro),
    "mmlu_redux": Recipe(questions=mmlu_redux),
    "ceval": Recipe(questions=ceval, aggregate=_subjects_or_rows),
    "gpqa_diamond": Recipe(questions=gpqa_diamond),
}
