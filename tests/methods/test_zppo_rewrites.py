"""Which of the teacher's rewrites ZPPO uses, and what becomes of a prompt that lacks some of them."""

from __future__ import annotations

import pytest

from harness.types import Prompt, Question, Rewrite
from methods.zppo import summary_outcome

RIGHT = ("right", "1", 1.0)


def wrong(number: int) -> tuple[str, str, float]:
    return f"w{number}", f"9{number}", 0.0


@pytest.mark.parametrize(
    ("answer", "same", "last", "outcome"),
    [
        ("2", True, True, "accepted"),
        ("2", True, False, "other_answer"),
        ("3", False, True, "other_answer"),
        (None, True, False, "accepted"),  # neither the trace nor its summary has a box
        (None, False, False, "other_answer"),
    ],
)
def test_a_summary_ends_with_the_answer_of_its_trace(answer, same, last, outcome):
    asked = Prompt(uid="q", question=Question(id="q", text="", answer=""), messages=())
    given = Rewrite(uid="q", text="1+1", answer=answer, same_answer=same, truncated=False, ends_with_box=last)
    assert summary_outcome(asked, given, max_lines=5) == outcome
