"""`zppo grade FILE.jsonl`: the grader on answers of your own."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from harness.config.schema import RewardConfig
from harness.errors import UserError, did_you_mean
from harness.rewards.workers import Grader
from harness.types import AnswerType, Question

TYPES = ("math", "choice", "text")
BLOCK_SIZE = 1024


@dataclass(frozen=True, kw_only=True)
class _Row:
    line: int
    response: str
    question: Question


class _Number(str):
    """A JSON number as it is written in the file."""


def grade_file(path: str, config: RewardConfig) -> Iterator[str]:
    """Grade the lines `{"id", "response", "gold"[, "type"]}` of a JSONL file.

    `type` is math (the default), choice or text; a gold answer may be a number. Yields one JSON line
    `{"id", "answer", "verdict"}` for each, in order. Every line is checked before the first line is yielded.
    Raises UserError, with file and line, for a file or a line that cannot be graded.
    """
    rows = _read(path)
    with Grader(config) as grader:
        for row, error in zip(rows, grader.gold_errors([row.question for row in rows]), strict=True):
            if error:
                raise UserError(f"{path}:{row.line}: {error}")
        for start in range(0, len(rows), BLOCK_SIZE):
            block = rows[start : start + BLOCK_SIZE]
            for row, grade in zip(block, grader.grade([(row.response, row.question) for row in block]), strict=True):
                yield json.dumps({"id": row.question.id, "answer": grade.answer, "verdict": grade.verdict})


def _read(path: str) -> list[_Row]:
    try:
        with open(path, "rb") as file:
            rows = [_row(f"{path}:{line}", line, text) for line, text in enumerate(file, 1) if text.strip()]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not rows:
        raise UserError(
            f'{path}:1: the file is empty; it needs lines like {{"id": "a", "response": "...", "gold": "5"}}'
        )
    return rows


def _row(where: str, line: int, text: bytes) -> _Row:
    try:
        record = json.loads(text, parse_int=_Number, parse_float=_Number)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text ({error.reason})") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: a line has to be a JSON object, with id, response and gold")
    kind = _string(where, record, "type") if "type" in record else "math"
    if kind not in TYPES:
        raise UserError(f"{where}: unknown type {kind!r}.{did_you_mean(kind, TYPES)}")
    question = Question(
        id=_string(where, record, "id"),
        text="",
        answer=_string(where, record, "gold", number=True),
        answer_type=cast(AnswerType, kind),
    )
    return _Row(line=line, response=_string(where, record, "response"), question=question)


def _string(where: str, record: dict[str, Any], name: str, *, number: bool = False) -> str:
    if name not in record:
        raise UserError(f"{where}: no field {name!r}")
    value = record[name]
    if not isinstance(value, str) or (isinstance(value, _Number) and not number):
        raise UserError(f"{where}: {name!r} has to be a string{' or a number' if number else ''}, got {value!r}")
    return str(value)


def run_grade(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    parser.add_argument("file", help='JSONL with {"id", "response", "gold"[, "type"]} a line')
    parser.add_argument("--grader", default="math_verify", choices=("math_verify", "mathruler"))
    args = parser.parse_args(argv)
    for line in grade_file(args.file, RewardConfig(grader=args.grader)):
        print(line)
    return 0
