"""What a benchmark is besides its data: how a row is asked and its answer marked, who judges, what is averaged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.config.evaluation import BenchmarkOptions
from harness.evaluation.benchmarks.rows import Row
from harness.rewards.choice import choice_letter
from harness.rewards.rules import Grade
from harness.types import Question

Outcome = Literal["match", "other_option", "mismatch", "unparsed", "ungraded"]
"""`other_option`: a multiple-choice answer that is another option. `unparsed`: no box, or none that could be read.
`ungraded`: the rule is the grader's, and it has no verdict."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What the rule of a benchmark says about an answer. `score` is in [0, 1], without a meaning for `ungraded`."""

    score: float
    outcome: Outcome


Scorer = Callable[[Question, Grade], Mark]
"""Marks the content of the box (`grade.answer`, None without one); never sees the rest of the response."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A benchmark's score in [0, 1] and its standard error over questions."""

    mean: float
    stderr: float


Aggregate = Callable[[Sequence[tuple[Question, float]]], Estimate]


def by_grade(question: Question, grade: Grade) -> Mark:
    """The grader's verdict: equal as mathematics, as an option or as text, by the question's answer type."""
    if question.scorer:
        outcomes: dict[str, Outcome] = {"correct": "match", "unparsable": "unparsed", "ungraded": "ungraded"}
        return Mark(score=grade.reward, outcome=outcomes.get(grade.verdict, "mismatch"))
    if grade.answer is None or not grade.answer.strip():
        return Mark(score=0.0, outcome="unparsed")
    if grade.verdict == "correct":
        return Mark(score=1.0, outcome="match")
    if grade.verdict == "ungraded":
        return Mark(score=0.0, outcome="ungraded")
    choices = question.metadata.get("choices", ())
    if question.answer_type == "choice" and choice_letter(grade.answer, choices) is not None:
        return Mark(score=0.0, outcome="other_option")
    return Mark(score=0.0, outcome="mismatch")


def row_mean(scores: Sequence[tuple[Question, float]]) -> Estimate:
    """Every question weighs the same."""
    return _mean([score for _, score in scores])


def mean_over(key: Callable[[Question], Hashable]) -> Aggregate:
    """Every group of questions of one key weighs the same: the mean of the groups' means."""

    def aggregate(scores: Sequence[tuple[Question, float]]) -> Estimate:
        groups = [_mean(group) for group in _groups(key, scores)]
        error = sum(group.stderr**2 for group in groups) ** 0.5 / len(groups)
        return Estimate(mean=sum(group.mean for group in groups) / len(groups), stderr=error)

    return aggregate


def worst_over(key: Callable[[Question], Hashable]) -> Aggregate:
    """A group of questions of one key counts as its worst one."""
    return lambda scores: _mean([min(group) for group in _groups(key, scores)])


def by_category(question: Question) -> Hashable:
    """The key that most means are over: `category` of the question's metadata."""
    return question.metadata["category"]


def _groups(key: Callable[[Question], Hashable], scores: Sequence[tuple[Question, float]]) -> list[list[float]]:
    groups: dict[Hashable, list[float]] = defaultdict(list)
    for question, score in scores:
        groups[key(question)].append(score)
    return list(groups.values())


def _mean(scores: Sequence[float]) -> Estimate:
    mean = sum(scores) / len(scores)
    variance = sum((score - mean) ** 2 for score in scores) / len(scores)
    return Estimate(mean=mean, stderr=(variance / len(scores)) ** 0.5)


def always_row_mean(options: BenchmarkOptions) -> Aggregate:
    return row_mean


def every_row(row: Row) -> bool:
    return True


def once(options: BenchmarkOptions) -> int:
    return 1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A column in code. `judge` names a format of `harness.evaluation.judge`; None where no row is ever judged."""

    questions: Callable[[Row], list[Question]]
    """The questions of a row: mostly one; none where the options leave the row out."""
    scorer: Scorer = by_grade
    judge: str | None = "shared"
    aggregate: Callable[[BenchmarkOptions], Aggregate] = always_row_mean
    """Chosen by the options (`BenchmarkOptions`)."""
    repeats: Callable[[BenchmarkOptions], int] = once
    """Samples a question; the aggregate is over all of them."""
    of_column: Callable[[Row], bool] = every_row
    """Which rows of the data set the column counts, whatever the options leave out."""
