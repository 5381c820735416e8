"""Questions from JSONL and parquet files, with a mapping of columns. Every bad row is counted and named.

Rows are numbered from 1: in a JSONL file that is the line in the file, blank lines included.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

from harness.config import DataConfig
from harness.data.sources import Rows
from harness.errors import UserError, did_you_mean
from harness.types import AnswerType, Question

Record = dict[str, Any]

ANSWER_TYPES = tuple(name for name in get_args(AnswerType) if name != "reasoning_gym")
"""A reasoning-gym answer needs its entry, which a file does not have."""

CHOICES = "choices"
"""A column of this name that holds a list goes to `metadata["choices"]`."""

_ABSENT = object()


class _BadRow(Exception):
    """The reason why a row gives no question."""


def load_jsonl(config: DataConfig) -> Rows:
    """One question a line. UTF-8 with or without a byte order mark; blank lines are ignored.

    Raises UserError for a missing or empty file, a mapped column that no row has, and too many bad rows.
    """
    path = _path(config)
    rows = Rows(origin=str(path))
    try:
        with path.open("rb") as lines:
            _read(rows, _parse_lines(lines), config)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the file and its permissions") from error
    return rows


def load_parquet(config: DataConfig) -> Rows:
    """One question a row, read in batches and only the columns that are used.

    Raises UserError like `load_jsonl`, and for a file that is not readable parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = _path(config)
    rows = Rows(origin=str(path))
    try:
        with pq.ParquetFile(path) as file:
            known = _schema_names(file.schema_arrow)
            for key, column in _mapping(config).items():
                if column not in known:
                    raise _missing_column(rows.origin, key, column, known)
            columns = sorted({*_mapping(config).values(), *({CHOICES} & set(known))})
            batches = file.iter_batches(columns=columns)
            _read(rows, enumerate((record for batch in batches for record in batch.to_pylist()), 1), config)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not readable parquet ({reason}): write it anew or use data=jsonl") from error
    return rows


def text_of(value: Any) -> str:
    """A scalar as text: `3.0` is `3`, `1e-07` is `0.0000001`. Raises ValueError for anything else."""
    if isinstance(value, str):
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise ValueError("holds half a surrogate pair, which no tokenizer takes")
        return value.strip()
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int | float | Decimal):
        if not math.isfinite(value):
            raise ValueError(f"is {value}, not a finite number")
        text = format(Decimal(str(value)), "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    raise ValueError(f"is a {type(value).__name__}, not text or a number")


def _path(config: DataConfig) -> Path:
    path = Path(config.path or "").expanduser()
    if not path.is_file():
        raise UserError(f"data.path={config.path} is not a file: give the path of a {config.source} file")
    return path


def _mapping(config: DataConfig) -> dict[str, str]:
    """The option that names a column -> the column; optional ones only where they are set."""
    columns = config.columns
    named = {
        "question": columns.question,
        "answer": columns.answer,
        "id": columns.id,
        "answer_type": columns.answer_type,
    }
    return {key: column for key, column in named.items() if column is not None}


def _parse_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """(line number, the parsed value or a _BadRow) of every line that is not blank."""
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip()
            if text:
                yield number, json.loads(text)
        except json.JSONDecodeError as error:
            yield number, _BadRow(f"not JSON ({error.msg} at column {error.colno})")
        except UnicodeDecodeError:
            yield number, _BadRow("not UTF-8")
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits, nesting of thousands of levels
            yield number, _BadRow(f"not usable JSON ({error})")


def _read(rows: Rows, records: Iterable[tuple[int, Any]], config: DataConfig) -> None:
    """Fill `rows`; refuse a file without rows, with a wrong mapping, or with too many bad rows."""
    stem = Path(rows.origin).stem
    mapping = _mapping(config)
    unseen = dict(mapping)
    known: list[str] = []
    first_of: dict[str, int] = {}
    for number, record in records:
        try:
            if isinstance(record, _BadRow):
                raise record
            if not isinstance(record, dict):
                raise _BadRow("not a JSON object")
            known = known or _record_names(record)
            unseen = {key: column for key, column in unseen.items() if _lookup(record, column) is _ABSENT}
            question = _question(record, f"{stem}/{number}", stem, mapping, config.answer_type)
            if question.id in first_of:
                raise _BadRow(f"id {question.id!r} was used before, in row {first_of[question.id]}")
        except _BadRow as reason:
            rows.bad[number] = str(reason)
        else:
            first_of[question.id] = number
            rows.questions.append(question)
            rows.numbers.append(number)
    for key, column in unseen.items():
        if known:
            raise _missing_column(rows.origin, key, column, known)
    if not rows.questions and not rows.bad:
        raise UserError(f"{rows.origin} is empty: give a file with at least one row")
    rows.check(config.max_bad_fraction)


def _question(record: Record, default_id: str, source: str, mapping: dict[str, str], answer_type: str) -> Question:
    if "answer_type" in mapping:
        answer_type = _scalar(record, mapping["answer_type"])
    if answer_type not in ANSWER_TYPES:
        raise _BadRow(f"answer type {answer_type!r} is not known.{did_you_mean(answer_type, ANSWER_TYPES)}")
    return Question(
        id=_scalar(record, mapping["id"]) if "id" in mapping else default_id,
        text=_scalar(record, mapping["question"]),
        answer=_scalar(record, mapping["answer"]),
        answer_type=answer_type,  # type: ignore[arg-type]
        source=source,
        metadata=_choices(record),
    )


def _scalar(record: Record, column: str) -> str:
    value = _lookup(record, column)
    if value is _ABSENT:
        raise _BadRow(f"no column {column!r}")
    if value is None:
        raise _BadRow(f"{column!r} is empty")
    try:
        text = text_of(value)
    except ValueError as error:
        raise _BadRow(f"{column!r} {error}") from error
    if not text:
        raise _BadRow(f"{column!r} is empty")
    return text


def _choices(record: Record) -> dict[str, Any]:
    choices = record.get(CHOICES)
    if not isinstance(choices, list):
        return {}
    try:
        return {CHOICES: [text_of(choice) for choice in choices]}
    except ValueError as error:
        raise _BadRow(f"an entry of {CHOICES!r} {error}") from error


def _lookup(record: Record, column: str) -> Any:
    """The value of a column; a name with dots is first tried as it stands, then as a path."""
    if column in record:
        return record[column]
    value: Any = record
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def _record_names(record: Record, prefix: str = "") -> list[str]:
    """Every column of a record, nested ones with dots."""
    names = []
    for key, value in record.items():
        names.append(prefix + key)
        if isinstance(value, dict):
            names += _record_names(value, f"{prefix}{key}.")
    return names


def _schema_names(fields: Any, prefix: str = "") -> list[str]:
    """Like `_record_names`, of an Arrow schema or struct type."""
    import pyarrow as pa

    names = []
    for entry in fields:
        names.append(prefix + entry.name)
        if pa.types.is_struct(entry.type):
            names += _schema_names(entry.type, f"{prefix}{entry.name}.")
    return names


def _missing_column(origin: str, key: str, column: str, known: list[str]) -> UserError:
    return UserError(
        f"{origin} has no column {column!r}: set data.columns.{key} to one it has.{did_you_mean(column, known)}"
    )
