"""Letters of options and normalised text: tables."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.rewards.choice import LETTERS, choice_letter, normal_text
from harness.rewards.rules import is_correct, quick_check
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
    # "x" alone is a letter beyond the four options, so it is read as an option's text.
    assert choice_letter(text, CHOICES) == letter


def test_an_option_that_is_a_letter_of_another_kind_is_its_text() -> None:
    assert choice_letter("\u2102", ["\u2115", "\u2102", "\u211d"]) == "B"  # the complex numbers are no letter C


@pytest.mark.parametrize(("text", "letter"), [("E", "E"), ("(z)", "Z"), ("B) 4", "B"), ("Paris", None)])
def test_without_choices_every_letter_is_an_option(text: str, letter: str | None) -> None:
    assert choice_letter(text) == letter


SPELLINGS = [
    r"\bf{B}", r"\rm B", r"{\bf B}", "\u9009B", "B\\", "B\\ ", r"\bf{(B)}", r"\mathrm B", r"\text B", r"\large{B}",
    r"\Large B",
    r"\tt B", r"\textcircled{B}", r"\fbox{B}", "\u7b54\u6848\uff1aB", "\u7b54\u6848\u662fB", "\u6545\u9009B\u3002",
    "\u9009\u9879B", "B\u9009\u9879",
    "The answer is option B", "The correct option is (B)", "Letter B", "final answer: B", r"B~", r"B\quad",
    "(B) option",
]  # fmt: skip


@pytest.mark.parametrize("text", SPELLINGS)
def test_spellings_of_a_letter(text: str) -> None:
    assert choice_letter(text, CHOICES) == "B"
    assert choice_letter(text) == "B"
    assert choice_letter(text.replace("B", "E"), CHOICES) is None


@pytest.mark.parametrize(
    "text", ["\u4e0d\u9009B", "\u9009A\u6216B", "not B", r"\bf{A or B}", r"\bf{BB}", "\u6392\u9664B"]
)
def test_what_names_no_one_letter(text: str) -> None:
    assert choice_letter(text, CHOICES) is None


VALUES = [r"$\frac{1}{2}$", "2", r"$x^2+1$", "5 cm", r"$[0,1)$"]


@pytest.mark.parametrize(
    ("gold", "answer", "correct"),
    [
        ("A", "0.5", True), ("A", r"\frac{2}{4}", True), ("A", "1/3", False), ("A", "2", False), ("B", "0.5", False),
        ("C", "1+x^2", True), ("C", "x = 5", False), ("C", "X^2+1", False), ("D", r"5\text{ cm}", True),
        ("D", "5 mm", False),
        ("D", "5", True), ("E", r"0 \le x < 1", True), ("E", r"0 \le x \le 1", False), ("E", "[0, 1)", True),
    ],
)  # fmt: skip
def test_an_option_named_by_its_value(gold: str, answer: str, correct: bool) -> None:
    assert right_choice(gold, answer, VALUES) is correct


def test_a_value_that_two_options_have_names_none() -> None:
    assert not right_choice("A", "0.50", ["1/2", r"\frac{2}{4}", "3"])
    assert right_choice("C", "3.0", ["1/2", r"\frac{2}{4}", "3"])


def test_a_letter_beyond_the_options_is_the_text_of_one() -> None:
    assert (
        right_choice("D", "x", CHOICES) and not right_choice("D", "X", CHOICES) and not right_choice("A", "x", CHOICES)
    )


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(2, 60), min_size=3, max_size=5, unique=True), st.integers(2, 9), st.data())
def test_the_value_of_one_option_is_right_for_it_alone(numerators: list[int], factor: int, data: st.DataObject) -> None:
    choices = [f"$\\frac{{{n}}}{{61}}$" for n in numerators]
    index = data.draw(st.integers(0, len(choices) - 1))
    answer = f"{numerators[index] * factor}/{61 * factor}"
    verdicts = [right_choice(letter, answer, choices) for letter in LETTERS[: len(choices)]]
    assert verdicts == [i == index for i in range(len(choices))]


def right_choice(gold: str, answer: str, choices: list[str]) -> bool:
    asked = Question(id="q", text="", answer=gold, answer_type="choice", metadata={"choices": choices})
    return is_correct(answer, asked, "math_verify")


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
