"""Each filter at its limit, their order, and how answers are graded."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from harness.builders.corpus.fixture import _huge_png, encoded
from harness.builders.corpus.reasons import REASONS, answer_type, first_fault
from harness.builders.corpus.sources import Row
from harness.rewards.rules import gold_error
from harness.types import Question


def row(image: bytes | None = None, **values: Any) -> Row:
    fine = {"id": 1, "subset": "mmk12", "question": "Find x.", "answer": "5", "pass_rate": 0.5}
    data = encoded(Image.new("RGB", (100, 100))) if image is None else image
    return Row(0, fine | values, pa.scalar(data or None, pa.binary()))


def reason(made: Row, *, has_pass_rate: bool = True) -> str | None:
    found = first_fault(made, has_pass_rate=has_pass_rate, name="vero/mmk12/1")
    return None if found is None else found[0]


@pytest.mark.clause("C102", "C103")
@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (row(), None),
        (row(question=None), "no_question"),
        (row(question=" \n"), "no_question"),
        (row(question="a\ud800"), "no_question"),
        (row(answer=None), "no_answer"),
        (row(answer=""), "no_answer"),
        (row(answer=" " + "1" * 512 + " "), None),
        (row(answer="1" * 513), "long_answer"),
        (row(pass_rate=None), "no_pass_rate"),
        (row(pass_rate=float("nan")), "pass_rate"),
        (row(pass_rate=0.5), None),
        (row(pass_rate=0.50001), "pass_rate"),
        (row(image=b""), "no_image"),
        (row(image=b"GIF89a"), "bad_image"),
        (row(image=_huge_png(10_001)), "bad_image"),
        (row(image=encoded(Image.new("RGB", (99, 300)))), "small_image"),
        (row(image=encoded(Image.new("RGB", (300, 99)))), "small_image"),
        # What costs least is looked at first, and one reason is given.
        (row(question=None, answer=None, pass_rate=1.0, image=b""), "no_question"),
        (row(answer="1" * 513, pass_rate=1.0, image=b""), "long_answer"),
    ],
)
def test_the_first_reason(made: Row, expected: str | None) -> None:
    assert reason(made) == expected
    assert expected is None or expected in REASONS


def test_a_source_without_pass_rates_needs_none() -> None:
    assert reason(row(pass_rate=None), has_pass_rate=False) is None


def test_a_picture_that_is_too_large_is_named() -> None:
    found = first_fault(row(image=_huge_png(10_001)), has_pass_rate=False, name="vero/mmk12/1")
    assert found is not None
    assert "vero/mmk12/1" in found[1] and "100 megapixels" in found[1]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("B", "choice"), ("(B)", "choice"), ("C.", "choice"), ("b", "math"), ("x", "math"), ("5", "math"),
        ("-0.5", "math"), (r"\frac{1}{2}", "math"), (r"2\sqrt{3}", "math"), ("5 cm", "math"), ("12 apples", "math"),
        ("x+1", "math"), ("(3, 4)", "math"), ("50%", "math"), ("yes", "text"), ("New York", "text"),
        ("the 3 red boats", "text"), ("5 metres per second", "text"), ("AB", "math"),
    ],
)  # fmt: skip
def test_answers_are_graded_as_what_they_are(answer: str, kind: str) -> None:
    assert answer_type(answer) == kind
    assert gold_error(Question(id="q", text="?", answer=answer, answer_type=answer_type(answer)), "math_verify") is None
