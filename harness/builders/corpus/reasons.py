"""Why a row is not in the corpus. A row has one reason: the first that applies, in this order."""

from __future__ import annotations

import re

from harness.builders.corpus.sources import Row
from harness.builders.corpus.tables import MAX_ANSWER_CHARS, MAX_PASS_RATE, MIN_SIDE
from harness.data.files import text_of
from harness.data.images import MediaError, image_size
from harness.types import AnswerType

REASONS = {
    # found when a row is read, of every row
    "not_listed": "sub-dataset that the paper does not list",
    "unknown": "sub-dataset that is in no table",
    "other_source": "sub-dataset is taken from a source of higher priority",
    "no_question": "no text of a question",
    "no_answer": "no gold answer",
    "long_answer": f"answer of more than {MAX_ANSWER_CHARS} characters",
    "no_pass_rate": "no pass rate, in a source that has them",
    "pass_rate": f"pass rate above {MAX_PASS_RATE:g}",
    "no_image": "no picture in the row",
    "bad_image": "picture that cannot be decoded, or is above 100 megapixels",
    "small_image": f"picture with a side of less than {MIN_SIDE} pixels",
    "duplicate": "same question and picture as another row",
    # found when a row is chosen: only of rows whose turn came before the cap was reached
    "bad_answer": "gold answer that the grader cannot read",
    "near_duplicate_text": "text of a benchmark's question",
    "near_duplicate_image": "picture like that of a benchmark's question",
    "bad_marks": "marks for pictures in the text that do not match the picture",
    "long_prompt": "prompt of more tokens than a run allows",
    # not rejected, and not in it
    "over_cap": "sub-dataset is full without it",
}
KEPT = "kept"

_LETTER = re.compile(r"[(\[]?[A-Z][)\]]?\.?")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]{3,}")


def first_fault(row: Row, *, has_pass_rate: bool, name: str) -> tuple[str, str] | None:
    """The first reason of a row that is seen from its cells and the header of its picture, and a message; None: none.

    Cheap reasons first: a picture is not read from the file's buffers where another reason applies.
    """
    for key in ("question", "answer"):
        try:
            text = text_of(row.values[key]) if row.values[key] is not None else ""
        except ValueError as error:
            return f"no_{key}", f"{name}: its {key} {error}"
        if not text:
            return f"no_{key}", f"{name} has no {key}"
    length = len(answer_of(row))
    if length > MAX_ANSWER_CHARS:
        return "long_answer", f"{name}: {length} characters"
    if has_pass_rate and row.values["pass_rate"] is None:
        return "no_pass_rate", f"{name} has no pass rate"
    if has_pass_rate and not float(row.values["pass_rate"]) <= MAX_PASS_RATE:
        return "pass_rate", f"{name}: {float(row.values['pass_rate']):g}"
    data = row.image_bytes()
    if data is None:
        return "no_image", f"{name} has no picture"
    try:
        width, height = image_size(data, name)
    except MediaError as error:
        return "bad_image", str(error)
    if min(width, height) < MIN_SIDE:
        return "small_image", f"{name}: {width}x{height} pixels"
    return None


def question_of(row: Row) -> str:
    return text_of(row.values["question"])


def answer_of(row: Row) -> str:
    return text_of(row.values["answer"])


def answer_type(answer: str) -> AnswerType:
    r"""How an answer is graded: a single capital letter is an option, words are text, all else is mathematics.

    An answer is text if it has two words of at least three letters; one is enough without a digit and without LaTeX.
    LaTeX commands are no words.

    Example: `B` and `(B)` are choice, `yes` and `New York` text, `\frac{1}{2}`, `x`, `5 cm` and `12 apples` math.
    """
    if _LETTER.fullmatch(answer):
        return "choice"
    words = _WORD.findall(_COMMAND.sub(" ", answer))
    is_formula = "\\" in answer or any(char.isdigit() for char in answer)
    return "text" if len(words) >= (2 if is_formula else 1) else "math"
