"""`grade_file`: its literal output, and one error for each way a file can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.commands.grade import grade_file
from harness.config.schema import RewardConfig
from harness.errors import UserError

CONFIG = RewardConfig()
GOOD = '{"id": "a", "response": "\\\\boxed{5}", "gold": "5"}'


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(*lines: str | bytes) -> str:
        path = tmp_path / "answers.jsonl"
        path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
        return str(path)

    return write


def test_output_is_literal(write: Callable[..., str]) -> None:
    chosen = [
        {"id": 7, "response": "\\boxed{0.50}", "gold": "B"},
        {"id": 8, "response": "\\boxed{\\frac{1}{3}}", "gold": "B"},
        {"id": "9", "response": "\\boxed{\\frac{2}{6}}", "gold": "1/3"},
    ]
    path = write(
        GOOD,
        json.dumps({"id": "b", "response": "\\boxed{4}", "gold": 5}),
        json.dumps({"id": "c", "response": "five", "gold": 5.50}),
        "",
        json.dumps({"id": "d", "response": "\\boxed{(B) x}", "gold": "B", "type": "choice"}),
        json.dumps({"id": "e", "response": "\\boxed{Zürich}", "gold": "zürich", "type": "text", "note": 1}),
        '{"id": "f", "response": "\\\\boxed{\\\\frac{1}{2}}", "gold": 0.50}',
        *(json.dumps({"type": "choice", "choices": ["1/3", 0.5, "x"]} | fields) for fields in chosen),
    )
    assert list(grade_file(path, CONFIG)) == [
        '{"id": "a", "answer": "5", "verdict": "correct"}',
        '{"id": "b", "answer": "4", "verdict": "wrong"}',
        '{"id": "c", "answer": null, "verdict": "unparsable"}',
        '{"id": "d", "answer": "(B) x", "verdict": "correct"}',
        '{"id": "e", "answer": "Z\\u00fcrich", "verdict": "correct"}',
        '{"id": "f", "answer": "\\\\frac{1}{2}", "verdict": "correct"}',
        '{"id": 7, "answer": "0.50", "verdict": "correct"}',
        '{"id": 8, "answer": "\\\\frac{1}{3}", "verdict": "wrong"}',
        '{"id": "9", "answer": "\\\\frac{2}{6}", "verdict": "correct"}',
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
        (
            "[" * 100_000,
            "not JSON (maximum recursion depth exceeded while decoding a JSON array from a unicode string)",
        ),
        (b"\xff{}", "not UTF-8 text (invalid start byte)"),
        ("[1]", "a line has to be a JSON object, with id, response and gold"),
        ('{"response": "x", "gold": "5"}', "no field 'id': a line needs id, response and gold"),
        ('{"id": "a", "gold": "5"}', "no field 'response': a line needs id, response and gold"),
        ('{"id": "a", "response": "x"}', "no field 'gold': a line needs id, response and gold"),
        ('{"id": 7.5, "response": "x", "gold": "5"}', "'id' has to be a string or an integer, got '7.5'"),
        ('{"id": "a", "response": null, "gold": "5"}', "'response' has to be a string, got None"),
        ('{"id": "a", "response": "x", "gold": true}', "'gold' has to be a string or a number, got True"),
        ('{"id": "a", "response": "x", "gold": ["5"]}', "'gold' has to be a string or a number, got ['5']"),
        (
            '{"id": "a", "response": "x", "gold": "B", "type": "choise"}',
            "unknown type 'choise'. Did you mean 'choice'?",
        ),
        (
            '{"id": "a", "response": "x", "gold": "5", "type": "reasoning_gym"}',
            "unknown type 'reasoning_gym'. Known: choice, math, text.",
        ),
        ('{"id": "a", "response": "x", "gold": ""}', "the gold answer is empty"),
        (
            '{"id": "a", "response": "x", "gold": "12", "type": "choice"}',
            "the gold answer '12' is neither a letter nor an option",
        ),
    ],
)
def test_errors_name_the_line(write: Callable[..., str], line: str | bytes, message: str) -> None:
    path = write(GOOD, "", line)
    with pytest.raises(UserError) as raised:
        next(grade_file(path, CONFIG))
    assert str(raised.value).removeprefix(f"{path}:3: ") == message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "choice", "choices": "AB"}, "'choices' has to be a list of strings or numbers, got 'AB'"),
        ({"type": "choice", "choices": []}, "'choices' has to be a list of strings or numbers, got []"),
        (
            {"type": "choice", "choices": ["a", None]},
            "'choices' has to be a list of strings or numbers, got ['a', None]",
        ),
        ({"choices": ["a"]}, "'choices' are for the type choice, not for math"),
        ({"type": "choice", "choices": ["a"]}, "the gold answer 'B' is neither a letter nor an option"),
    ],
)
def test_choices_that_are_none(write: Callable[..., str], fields: dict[str, object], message: str) -> None:
    path = write(json.dumps({"id": "a", "response": "x", "gold": "B", **fields}))
    with pytest.raises(UserError) as raised:
        next(grade_file(path, CONFIG))
    assert str(raised.value) == f"{path}:1: {message}"


def test_every_bad_line_is_named_in_order(write: Callable[..., str]) -> None:
    path = write(
        '{"id": "a", "response": "x", "gold": "None"}', GOOD, "{}", '{"id": "a", "response": "x", "gold": "**"}', "[1]"
    )
    with pytest.raises(UserError) as raised:
        next(grade_file(path, CONFIG))
    assert str(raised.value).splitlines() == [
        f"{path}:1: the gold answer 'None' is null: give the question the type text",
        f"{path}:3: no field 'id': a line needs id, response and gold",
        f"{path}:4: math_verify reads no value in the gold answer '**'",
        f"{path}:5: a line has to be a JSON object, with id, response and gold",
    ]


def test_missing_and_empty_files(write: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^cannot read .*/none\.jsonl: No such file or directory$"):
        next(grade_file(str(tmp_path / "none.jsonl"), CONFIG))
    with pytest.raises(UserError, match=r"^cannot read .*: Is a directory$"):
        next(grade_file(str(tmp_path), CONFIG))
    for path in (write(), write("", "  ")):
        with pytest.raises(UserError, match=r"answers\.jsonl:1: the file is empty; it needs lines like"):
            next(grade_file(path, CONFIG))
