"""Competition problems and open questions in text: AIME, IMO-AnswerBench, Humanity's Last Exam and MultiChallenge."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness.config.evaluation import BenchmarkOptions
from harness.data.images import MediaError, decode_image
from harness.errors import UserError
from harness.evaluation.benchmarks.recipe import Aggregate, Recipe, by_category, mean_over, row_mean
from harness.evaluation.benchmarks.rows import Row
from harness.rewards.choice import LETTERS
from harness.rewards.rules import gold_error
from harness.types import Message, Question

if TYPE_CHECKING:
    from PIL.Image import Image

_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{3,}")


@dataclass(frozen=True)
class DataUrlImage:
    """A picture that a text cell holds: `data:image/png;base64,...`."""

    name: str
    url: str = field(repr=False)

    def open(self) -> Image:
        try:
            encoded = base64.b64decode(self.url.rpartition(",")[2])
        except binascii.Error as error:
            raise MediaError(f"image {self.name} is no base64 ({error})") from error
        return decode_image(encoded, self.name)

    def content(self) -> Iterator[bytes]:
        yield self.url.encode()


def aime25(row: Row) -> list[Question]:
    return [_value(row, row["question"], row.gold("answer"))]


def aime26(row: Row) -> list[Question]:
    return [_value(row, row["problem"], row.gold("answer"))]


def imo_answerbench(row: Row) -> list[Question]:
    """Most answers are formulas; those in words, or that the grader cannot read, are left to the judge."""
    question = _value(row, row["Problem"], row.gold("Short Answer"), category=row["Category"])
    if _has_words(question.answer) or gold_error(question, "math_verify") is not None:
        question = replace(question, answer_type="text")
    return [question]


def hle(row: Row) -> list[Question]:
    """The options of multiple choice are part of the question's text."""
    url = row["image"]
    if url and row.options.hle == "text_only":
        return []
    answer = row.gold("answer").strip()
    is_letter = row["answer_type"] == "multipleChoice" and len(answer) == 1 and answer in LETTERS
    return [
        row.question(
            row["question"].strip(),
            answer,
            answer_type="choice" if is_letter else "text",
            images=[DataUrlImage(f"{row.column.dataset}:{row['id']}", url)] if url else [],
            category=row["category"],
        )
    ]


def multichallenge(row: Row) -> list[Question]:
    """A conversation whose last user turn is to be answered; a yes-or-no question about the reply decides."""
    *earlier, last = _turns(row["conversation"])
    if last["role"] != "user":
        raise UserError(f"{row.column.name}: the conversation of row {row.id} does not end with a user turn")
    return [
        row.question(
            last["content"].strip(),
            row.gold("pass_criteria").strip(),
            messages=earlier,
            target_question=row["target_question"],
            pass_criteria=row["pass_criteria"].strip(),
            category=row["axis"],
        )
    ]


def _value(row: Row, text: str, answer: Any, **metadata: Any) -> Question:
    return row.question(text.strip(), str(answer).strip(), answer_type="math", **metadata)


def _has_words(answer: str) -> bool:
    """Whether there is a word outside LaTeX commands: math_verify would read it as a product of its letters."""
    return _WORD.search(_COMMAND.sub(" ", answer)) is not None


def _turns(conversation: Mapping[str, Sequence[str]] | Sequence[Mapping[str, str]]) -> list[Message]:
    """The turns; the hub keeps them as two lists, copies in JSON lines as a list of turns."""
    if isinstance(conversation, Mapping):
        pairs = zip(conversation["role"], conversation["content"], strict=True)
        return [{"role": role, "content": content} for role, content in pairs]
    return [{"role": turn["role"], "content": turn["content"]} for turn in conversation]


def _aime_repeats(options: BenchmarkOptions) -> int:
    return options.aime_repeats


def _axes_or_rows(options: BenchmarkOptions) -> Aggregate:
    return mean_over(by_category) if options.multichallenge == "axes" else row_mean


RECIPES = {
    "aime25": Recipe(questions=aime25, repeats=_aime_repeats),
    "aime26": Recipe(questions=aime26, repeats=_aime_repeats),
    "imo_answerbench": Recipe(questions=imo_answerbench),
    "hle": Recipe(questions=hle, judge="hle"),
    "multichallenge": Recipe(questions=multichallenge, judge="multichallenge", aggregate=_axes_or_rows),
}
