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
    id: str | int
    response: str
    question: Question


class _Number(str):
    """A JSON number as it is written in the file."""


class _Integer(_Number):
    """A JSON number without a fraction or an exponent."""


class _BadLine(Exception):
    """Why a line cannot be graded."""


def grade_file(path: str, config: RewardConfig) -> Iterator[str]:
    """Grade the lines `{"id", "response", "gold"[, "type"][, "choices"]}` of a JSONL file.

    `type` is math (the default), choice or text. An id may be an integer, a gold answer and a choice a number. Yields
    one JSON line `{"id", "answer", "verdict"}` for each, in order. Every line is checked before the first is yielded.
    Raises UserError with all lines that cannot be graded, or for a file that cannot be read.
    """
    rows, bad = _read(path)
    with Grader(config) as grader:
        errors = grader.gold_errors([row.question for row in rows])
        bad |= {row.line: error for row, error in zip(rows, errors, strict=True) if error}
        if bad:
            raise UserError("\n".join(f"{path}:{line}: {error}" for line, error in sorted(bad.items())))
        for start in range(0, len(rows), BLOCK_SIZE):
            block = rows[start : start + BLOCK_SIZE]
            for row, grade in zip(block, grader.grade([(row.response, row.question) for row in block]), strict=True):
                yield json.dumps({"id": row.id, "answer": grade.answer, "verdict": grade.verdict})


def _read(path: str) -> tuple[list[_Row], dict[int, str]]:
    """The rows that can be graded as far as their form goes, and what is wrong with the other lines."""
    rows, bad = [], {}
    try:
        with open(path, "rb") as file:
            for line, text in enumerate(file, 1):
                if not text.strip():
                    continue
                try:
                    rows.append(_row(line, text))
                except _BadLine as error:
                    bad[line] = str(error)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not rows and not bad:
        raise UserError(
            f'{path}:1: the file is empty; it needs lines like {{"id": "a", "response": "...", "gold": "5"}}'
        )
    return rows, bad


def _row(line: int, text: bytes) -> _Row:
    try:
        record = json.loads(text, parse_int=_Integer, parse_float=_Number)
    except UnicodeDecodeError as error:
        raise _BadLine(f"not UTF-8 text ({error.reason})") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise _BadLine(f"not JSON ({error})") from error
    if not isinstance(record, dict):
        raise _BadLine("a line has to be a JSON object, with id, response and gold")
    kind = _string(record, "type") if "type" in record else "math"
    if kind not in TYPES:
        raise _BadLine(f"unknown type {kind!r}.{did_you_mean(kind, TYPES)}")
    name = _string(record, "id", also=_Integer)
    question = Question(
        id=name,
        text="",
        answer=_string(record, "gold", also=_Number),
        answer_type=cast(AnswerType, kind),
        metadata={"choices": _choices(record, kind)} if "choices" in record else {},
    )
    identity = int(name) if isinstance(record["id"], _Integer) and len(name) < 4000 else name
    return _Row(line=line, id=identity, response=_string(record, "response"), question=question)


def _string(record: dict[str, Any], name: str, *, also: type[_Number] | None = None) -> str:
    if name not in record:
        raise _BadLine(f"no field {name!r}: a line needs id, response and gold")
    value = record[name]
    if not isinstance(value, str) or (isinstance(value, _Number) and not (also and isinstance(value, also))):
        kind = {None: "", _Integer: " or an integer", _Number: " or a number"}[also]
        raise _BadLine(f"{name!r} has to be a string{kind}, got {value!r}")
    return str(value)


def _choices(record: dict[str, Any], kind: str) -> list[str]:
    choices = record["choices"]
    if kind != "choice":
        raise _BadLine(f"'choices' are for the type choice, not for {kind}")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise _BadLine(f"'choices' has to be a list of strings or numbers, got {choices!r}")
    return [str(choice) for choice in choices]


def run_grade(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    parser.add_argument("file", help='JSONL with {"id", "response", "gold"[, "type"][, "choices"]} a line')
    parser.add_argument("--grader", default="math_verify", choices=("math_verify", "mathruler"))
    args = parser.parse_args(argv)
    for line in grade_file(args.file, RewardConfig(grader=args.grader)):
        print(line)
    return 0
