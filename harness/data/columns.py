"""Columns by name: dots reach into nested records, numbers into lists (`prompt.0.content`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from harness.config.data import ColumnsConfig, DataConfig
from harness.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

Record = dict[str, Any]
Steps = tuple[str | int, ...]
"""The way to a value in a record."""

ABSENT: Any = object()

OTHER_NAMES = {"images": "image", "video": "videos", "choices": "options"}
"""What a column is called as well, where the option has its default."""
USUAL = {
    "question": ("prompt", "problem", "messages", "conversations", "query", "instruction", "question_stem"),
    "answer": (
        "solution", "reward_model.ground_truth", "ground_truth", "answerKey", "correct_answer", "final_answer",
        "expected_answer", "completion", "label", "conversations",
    ),
}  # fmt: skip
"""Names that published data sets have for them."""


def steps_of(record: Record, column: str) -> Steps | None:
    """The way to a column that a record has; None where it has none. The longest name that is a key comes first."""
    if column in record:
        return (column,)
    parts = column.split(".")
    for num in range(len(parts) - 1, 0, -1):
        if (name := ".".join(parts[:num])) in record:
            rest = _further(record[name], parts[num:])
            return None if rest is None else (name, *rest)
    return None


def lookup(record: Record, column: str) -> Any:
    """The value of a column, ABSENT where there is none."""
    if column in record:
        return record[column]
    steps = steps_of(record, column)
    return ABSENT if steps is None else value_at(record, steps)


def value_at(record: Any, steps: Steps) -> Any:
    for step in steps:
        record = record[step]
    return record


def _further(value: Any, parts: list[str]) -> Steps | None:
    steps: list[str | int] = []
    for part in parts:
        if isinstance(value, dict) and part in value:
            step: str | int = part
        elif isinstance(value, list) and part.lstrip("-").isdecimal() and -len(value) <= int(part) < len(value):
            step = int(part)
        else:
            return None
        steps.append(step)
        value = value[step]
    return tuple(steps)


def read_name(names: Iterable[str], column: str) -> str:
    """The part of a column's name that is read from a table: all before the first step into a list."""
    if column in set(names):
        return column
    parts = column.split(".")
    end = next((i for i, part in enumerate(parts) if i and part.lstrip("-").isdecimal()), len(parts))
    return ".".join(parts[:end])


def record_names(record: Record, prefix: str = "") -> list[str]:
    """Every column of a record, nested ones with dots."""
    names = []
    for key, value in record.items():
        names.append(prefix + key)
        if isinstance(value, dict):
            names += record_names(value, f"{prefix}{key}.")
    return names


def schema_names(fields: Any, prefix: str = "") -> list[str]:
    """Like `record_names`, of an Arrow schema or struct type."""
    import pyarrow as pa

    names = []
    for entry in fields:
        names.append(prefix + entry.name)
        if pa.types.is_struct(entry.type):
            names += schema_names(entry.type, f"{prefix}{entry.name}.")
    return names


def needed(config: DataConfig) -> dict[str, str]:
    """The option that names a column -> the column, of those that some row has to have.

    Media and options of a choice are only looked for where their columns were not asked for by name.
    """
    columns, default = config.columns, ColumnsConfig()
    named: dict[str, str | None] = {
        "question": columns.question,
        "answer": columns.answer,
        "id": columns.id,
        "answer_type": columns.answer_type,
        "system": columns.system,
        "source": columns.source,
        **{name: getattr(columns, name) for name in OTHER_NAMES if getattr(columns, name) != getattr(default, name)},
    }
    extra = {f"extra={name}": name for name in columns.extra}
    return {key: column for key, column in named.items() if column is not None} | extra


def sought(config: DataConfig) -> dict[str, tuple[str, ...]]:
    """Media and options of a choice -> the columns that may hold them, in the order in which they are tried."""
    default = ColumnsConfig()
    found: dict[str, tuple[str, ...]] = {}
    for name, other in OTHER_NAMES.items():
        column = getattr(config.columns, name)
        if column is not None:
            found[name] = (column, other) if column == getattr(default, name) else (column,)
    return found


def missing_column(origin: str, key: str, column: str, known: list[str]) -> UserError:
    """The error for a column that there is not, with the name that data sets of the field give it, if it is there."""
    usual = [name for name in USUAL.get(key, ()) if name in known] if column == key else []
    hint = f" It has {' and '.join(map(repr, usual[:2]))}." if usual else did_you_mean(column, known)
    option, _, _ = key.partition("=")
    return UserError(f"{origin} has no column {column!r}: set data.columns.{option} to one it has.{hint}")


def column_type(schema: pa.Schema, column: str) -> pa.DataType:
    """The Arrow type of a column that exists; it may be nested."""
    first, *rest = [column] if column in schema.names else column.split(".")
    kind = schema.field(first).type
    for name in rest:
        kind = kind.field(name).type
    return kind
