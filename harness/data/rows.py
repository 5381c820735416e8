"""What every source of questions gives: the questions, and why other rows gave none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from harness.errors import UserError, did_you_mean
from harness.types import AnswerType, Question

if TYPE_CHECKING:
    from harness.data.tables import MediaTable


class BadRow(Exception):
    """The reason why a row gives no question."""


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


def too_many_bad(first: str, num_bad: int, num_rows: int, max_bad_fraction: float) -> str | None:
    """The line that refuses a source, beginning with its first bad row; None where few enough rows are bad."""
    if not num_bad or num_bad / num_rows <= max_bad_fraction:
        return None
    return (
        f"{first} ({num_bad} of {num_rows} rows are bad, data.max_bad_fraction={max_bad_fraction:g}): "
        "fix the rows or raise data.max_bad_fraction"
    )


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
        first = self.messages()[0] if self.bad else ""
        if (refusal := too_many_bad(first, len(self.bad), num_rows, max_bad_fraction)) is not None:
            raise UserError(refusal)


@dataclass(kw_only=True)
class Stream:
    """A source that is read row by row: the number of each with its question, or why it gives none."""

    origin: str
    rows: Iterator[tuple[int, Question | BadRow]]
    notes: list[str] = field(default_factory=list)
    """What a user should know about how it is read."""
    files: tuple[Path, ...] = ()
    """All that it is read from; empty where that is no file."""
    place: Path = Path()
    """The file, or the folder of the files."""
    name: str = ""
    """What ids begin with."""
    table: Callable[[], MediaTable] | None = None
    """The table that holds pictures and clips, if that is where they are."""

    @classmethod
    def of(cls, rows: Rows) -> Stream:
        """What is in memory already."""
        pairs: list[tuple[int, Question | BadRow]] = list(zip(rows.numbers, rows.questions, strict=True))
        pairs += [(number, BadRow(reason)) for number, reason in rows.bad.items()]
        return cls(origin=rows.origin, rows=iter(sorted(pairs, key=lambda pair: pair[0])))

    def all(self, max_bad_fraction: float) -> Rows:
        """All of it at once. Raises UserError where the share of bad rows is above `max_bad_fraction`."""
        found = Rows(origin=self.origin)
        for number, question in self.rows:
            if isinstance(question, BadRow):
                found.bad[number] = str(question)
            else:
                found.questions.append(question)
                found.numbers.append(number)
        found.check(max_bad_fraction)
        return found
