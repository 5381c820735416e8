from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config.data import ColumnsConfig, DataConfig
from harness.data.files import load_jsonl
from harness.data.options import options
from harness.rewards.rules import gold_error, grade
from harness.types import Question

COLOURS = ["red", "green", "blue"]
SHOWN = "Which?\n\nA. red\nB. green\nC. blue"


def load(tmp_path: Path, record: dict[str, Any], **columns: Any) -> Question:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question": "Which?"} | record) + "\n", encoding="utf-8")
    return load_jsonl(DataConfig(source="jsonl", path=str(path), columns=ColumnsConfig(**columns))).questions[0]


FORMS: dict[str, dict[str, Any]] = {
    "list and letter": {"choices": COLOURS, "answer": "B"},
    "MMLU: list and place": {"choices": COLOURS, "answer": 1},
    "HellaSwag: place as text": {"choices": COLOURS, "answer": "1"},
    "text of the option": {"options": COLOURS, "answer": "green"},
    "record by letters": {"options": {"A": "red", "B": "green", "C": "blue", "D": None}, "answer": "B"},
    "ARC": {"choices": {"text": COLOURS, "label": ["A", "B", "C"]}, "answer": "B"},
    "ARC with digits": {"choices": {"text": COLOURS, "label": ["1", "2", "3"]}, "answer": "2"},
    "ARC with digits, a number": {"choices": {"text": COLOURS, "label": ["1", "2", "3"]}, "answer": 2},
    "AQuA": {"options": ["A)red", "B)green", "C)blue"], "answer": "B"},
    "list of records": {
        "choices": [{"label": x, "text": y} for x, y in zip("ABC", COLOURS, strict=True)],
        "answer": "B",
    },
    "list as text": {"options": str(COLOURS), "answer": "B"},
    "letter in brackets": {"choices": COLOURS, "answer": "(B)"},
    "letter in a box": {"choices": COLOURS, "answer": r"Grass is green, so \boxed{B}."},
}


@pytest.mark.parametrize("record", FORMS.values(), ids=FORMS)
def test_every_form_is_shown_and_graded_alike(tmp_path: Path, record: dict[str, Any]) -> None:
    question = load(tmp_path, record)
    assert (question.text, question.answer, question.answer_type) == (SHOWN, "B", "choice")
    assert gold_error(question, "math_verify") is None
    said = {
        answer: grade(rf"\boxed{{{answer}}}", question, "math_verify").verdict for answer in ("B", "green", "C", "red")
    }
    assert said == {"B": "correct", "green": "correct", "C": "wrong", "red": "wrong"}


def test_numbers_among_the_options_are_values_where_the_options_are_numbers(tmp_path: Path) -> None:
    assert load(tmp_path, {"choices": [2, 3, 0], "answer": 0}).answer == "C"
    assert load(tmp_path, {"choices": ["2", "3", "0"], "answer": 0}).answer == "A"


@pytest.mark.parametrize(
    ("text", "is_shown"),
    [
        ("Which?\n(A) red\n(B) green (C) blue", True),
        ("Is it red,  Green or blue?", True),
        ("Is it blue, green or red?", False),
        ("Is it reddish, green or blue?", False),
        ("Is it red or green?", False),
    ],
)
def test_options_that_a_question_holds_are_not_shown_again(tmp_path: Path, text: str, is_shown: bool) -> None:
    question = load(tmp_path, {"question": text, "choices": COLOURS, "answer": "B"})
    assert (question.text == text) is is_shown


def test_short_options_count_as_shown_only_with_their_letters(tmp_path: Path) -> None:
    assert load(tmp_path, {"question": "Which number is 2 plus 1?", "choices": ["2", "1"], "answer": "B"}).text != (
        "Which number is 2 plus 1?"
    )
    text = "Which? A. 2 B. 1"
    assert load(tmp_path, {"question": text, "choices": ["2", "1"], "answer": "B"}).text == text


def test_an_answer_that_is_no_option_is_named(tmp_path: Path) -> None:
    for answer in ("E", 3, "purple"):
        question = load(tmp_path, {"choices": COLOURS, "answer": answer})
        assert "is neither a letter nor an option" in (gold_error(question, "math_verify") or "")


def test_rows_without_options_stay_what_they_are(tmp_path: Path) -> None:
    for record in ({"options": []}, {"options": None}, {"choices": "red or green"}, {"choices": ["red"]}, {}):
        question = load(tmp_path, {"answer": "5"} | record)
        assert (question.text, question.answer_type, question.metadata) == ("Which?", "math", {})
    ignored = load(tmp_path, {"choices": COLOURS, "answer": "B"}, choices=None)
    assert (ignored.text, ignored.answer_type) == ("Which?", "math")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("abcdef ()A.1", min_size=1).filter(lambda text: text.strip()), min_size=2, max_size=6))
def test_options_keep_their_texts_and_the_letters_go_through_them(texts: list[str]) -> None:
    found = options([f"x{text}" for text in texts])
    assert found is not None and [t.replace(" ", "") for t in found.texts] == [f"x{t}".replace(" ", "") for t in texts]
    assert [found.letter(i) for i in range(len(texts))] == list("ABCDEF")[: len(texts)]
