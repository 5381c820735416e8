"""Letters of options and normalised text: tables."""

from __future__ import annotations

import pytest

from harness.rewards.choice import choice_letter, normal_text
from harness.rewards.rules import quick_check
from harness.types import Question

CHOICES = ["Paris", "4", "the red one", "$x$"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("B.", "B"), ("B)", "B"), ("[B]", "B"), (r"\text{B}", "B"),
        (r"\textbf{(B)}", "B"), ("$B$", "B"), ("**B**", "B"), ("Option B", "B"), ("option: (b)", "B"),
        ("The correct answer is B.", "B"), ("B) 4", "B"), ("B. 4", "B"), ("B: 4", "B"), ("(B) 4", "B"),
        (r"\text{(C) the red one}", "C"), ("The red one.", "C"), ("paris", "A"), ("4", "B"), ("x", "D"),
        ("E", None), ("E) five", None), ("", None), ("5", None), ("the blue one", None), ("B or C", None),
        ("A, C", None), ("Because", None), ("bad", None),
        ("{B}", "B"), (r"\left(B\right)", "B"), (r"\boldsymbol{B}", "B"), (r"\underline{\text{B}}", "B"), (r"B\,", "B"),
        (r"\displaystyle B", "B"), ("\uff22", "B"), ("\uff08B\uff09", "B"), ("B\u30014", "B"), ("B\uff1a4", "B"),
        ("\u3010B\u3011", "B"), ("\u24b7", "B"), ("\u0412", None), ("\u0392", None),  # Cyrillic, Greek
    ],
)  # fmt: skip
def test_the_option_that_a_text_names(text: str, letter: str | None) -> None:
    # "x" alone is a letter beyond the four options, so it is read as an option's text only in dollars.
    expected = None if text == "x" else letter
    assert choice_letter(text, CHOICES) == expected


def test_an_option_that_is_a_letter_of_another_kind_is_its_text() -> None:
    assert choice_letter("\u2102", ["\u2115", "\u2102", "\u211d"]) == "B"  # the complex numbers are no letter C


@pytest.mark.parametrize(("text", "letter"), [("E", "E"), ("(z)", "Z"), ("B) 4", "B"), ("Paris", None)])
def test_without_choices_every_letter_is_an_option(text: str, letter: str | None) -> None:
    assert choice_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Paris", "paris"),
        ("  New \n York ", "new york"),
        (r"\text{Paris}", "paris"),
        (r"\textbf{\text{Paris}}", "paris"),
        (r"\mathrm{Paris} is nice", "paris is nice"),
        ('"Paris."', "paris"),
        ("$Paris$", "paris"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("-5", "-5"),
        ("(a, b)", "(a, b)"),
        ("50%", "50%"),
        ("!?", ""),
    ],
)
def test_normal_text(text: str, normal: str) -> None:
    assert normal_text(text) == normal


def test_hostile_commands_take_linear_time() -> None:
    assert normal_text("\\text{" * 200_000).startswith("\\text{")


@pytest.mark.parametrize(
    ("gold", "answer", "correct"),
    [
        ("B", "(B)", True),
        ("B", "4", True),
        ("4", "B", True),
        ("(B)", "C", False),
        ("B", "E", False),
        ("B", "", False),
        ("E", "E", False),  # beyond the options: nothing is right
    ],
)
def test_choice_questions(gold: str, answer: str, correct: bool) -> None:
    question = Question(id="q", text="", answer=gold, answer_type="choice", metadata={"choices": CHOICES})
    assert quick_check(answer, question) is correct


@pytest.mark.parametrize(
    ("gold", "answer", "correct"),
    [
        ("New York", r"\text{new  york}.", True),
        ("New York", "York", False),
        ("!", "!", False),
        ("5", "-5", False),
    ],
)
def test_text_questions(gold: str, answer: str, correct: bool) -> None:
    assert quick_check(answer, Question(id="q", text="", answer=gold, answer_type="text")) is correct
