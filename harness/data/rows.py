"""What every source of questions gives: the questions, and why other rows gave none."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.errors import UserError
from harness.types import Question


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
