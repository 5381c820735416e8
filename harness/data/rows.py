"""What every source of questions gives: the questions, and why other rows gave none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, get_args

from harness.errors import UserError, did_you_mean
from harness.types import AnswerType, Question


def checked_questions(option: str, given: Iterable[Any]) -> list[Question]:
    """The questions that a function of others gives. Raises UserError for what is none, and for ids that repeat."""
    questions = list(given)
    seen: set[str] = set()
    for one in questions:
        if not isinstance(one, Question):
            raise UserError(f"{option} gave a {type(one).__name__}: a question is a harness.types.Question")
        for name in ("id", "text", "answer"):
            if type(value := getattr(one, name)) is not str or not value.strip():
                raise UserError(f"{option} gave a question whose {name} is {value!r}: it has to be a text")
        if one.answer_type not in get_args(AnswerType):
            known = did_you_mean(str(one.answer_type), get_args(AnswerType))
            raise UserError(f"{option}: question {one.id} has the answer type {one.answer_type!r}.{known}")
        if not all(hasattr(image, "open") for image in one.images):
            raise UserError(f"{option}: question {one.id} has images that are no harness.types.ImageRef")
        if one.id in seen:
            raise UserError(f"{option} gave two questions of the id {one.id!r}: ids have to differ")
        seen.add(one.id)
    return questions


@dataclass(kw_only=True)
class Rows:
    """What a source holds. `numbers` are the row numbers of `questions`; `bad` says why a row gave no question.

    Example: `Rows(origin="train.jsonl", questions=[question], numbers=[1], bad={2: "no answer"})`.
    """

    origin: str
    questions: list[Question] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)

    def messages(self) -> list[str]:
        """`origin:row: reason` of every bad row, in the order of the rows."""
        return [f"{self.origin}:{number}: {self.bad[number]}" for number in sorted(self.bad)]

    def check(self, max_bad_fraction: float) -> None:
        """Raise UserError, naming the first bad row, where their share is above `max_bad_fraction`."""
        num_rows = len(self.questions) + len(self.bad)
        if self.bad and len(self.bad) / num_rows > max_bad_fraction:
            raise UserError(
                f"{self.messages()[0]} ({len(self.bad)} of {num_rows} rows are bad, "
                f"data.max_bad_fraction={max_bad_fraction:g}): fix the rows or raise data.max_bad_fraction"
            )
