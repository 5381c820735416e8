"""Questions from JSONL and parquet files, with a mapping of columns. Every bad row is counted and named.

Images and videos are references that are opened later: what is wrong with the files themselves shows when they are.

Rows are numbered from 1: in a JSONL file that is the line in the file, blank lines included.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from harness.config.data import ColumnsConfig, DataConfig
from harness.data.images import ImageFile
from harness.data.rows import Rows
from harness.data.tables import Kind, MediaTable, TableImage, TableVideo, column_path, column_type, holds, resolve
from harness.data.video import VideoFile
from harness.errors import UserError, did_you_mean
from harness.types import AnswerType, ImageRef, Question, VideoRef

if TYPE_CHECKING:
    import pyarrow as pa

Record = dict[str, Any]

ANSWER_TYPES = tuple(name for name in get_args(AnswerType) if name != "reasoning_gym")
"""A reasoning-gym answer needs its entry, which a file does not have."""

CHOICES = "choices"
"""A column of this name that holds a list goes to `metadata["choices"]`."""

UNFINISHED = ".unfinished"
"""A folder of parquet files with this in it is still being written."""

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
            read_rows(rows, _parse_lines(lines), config, folder=path.parent, source=path.stem)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the file and its permissions") from error
    return rows


def load_parquet(config: DataConfig) -> Rows:
    """One question a row, read in batches and only the columns that are used; embedded media stay on disk.

    The rows of a folder are those of its files, in the order of their names. Raises UserError like `load_jsonl`, for a
    file that is not readable parquet, for files of different schemas, and for a column without media.
    """
    import pyarrow as pa

    path, files = _parquet_files(config)
    rows = Rows(origin=str(path))
    try:
        schema = _common_schema(files)
        texts, embedded = table_columns(schema, config, rows.origin)
        records = _records(files, texts)
        if embedded:
            records = with_references(records, _media_table(path, files, sorted(embedded)), embedded)
        folder, source = (path, path.resolve().name) if path.is_dir() else (path.parent, path.stem)
        read_rows(rows, enumerate(records, 1), config, folder=folder, source=source)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not readable parquet ({reason}): write it anew or use data=jsonl") from error
    return rows


def table_columns(schema: pa.Schema, config: DataConfig, origin: str) -> tuple[list[str], dict[str, Kind]]:
    """The columns that are read as they are, and those with embedded media.

    Raises UserError for a column that is missing, and for a media column of another type.
    """
    known = _schema_names(schema)
    for key, column in _required(config).items():
        if column not in known:
            raise _missing_column(origin, key, column, known)
    texts = {*_mapping(config).values(), *({CHOICES} & set(known))}
    embedded: dict[str, Kind] = {}
    for kind, column in _media(config).items():
        if column not in known:
            continue
        found = holds(column_type(schema, column))
        if found is None:
            raise UserError(
                f"{origin}: column {column!r} is {column_type(schema, column)}, neither paths nor encoded bytes: "
                f"set data.columns.{kind} to another column, or to null to ignore it"
            )
        if found == "paths":
            texts.add(column)
        else:
            embedded[column] = kind
    return sorted(texts), embedded


def with_references(records: Iterable[Record], table: MediaTable, embedded: dict[str, Kind]) -> Iterator[Record]:
    """The records with references to the media of their rows, by column."""
    columns = [table.references(column, kind) for column, kind in embedded.items()]
    for record, *cells in zip(records, *columns, strict=True):
        yield record | dict(zip(embedded, cells, strict=True))


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


def files_of(config: DataConfig) -> list[Path]:
    """The files that `data.path` means. Raises UserError where there are none, as loading them would."""
    return _parquet_files(config)[1] if config.source == "parquet" else [_path(config)]


def _parquet_files(config: DataConfig) -> tuple[Path, list[Path]]:
    """`data.path`, and the files that it means: itself, or those in it."""
    path = Path(config.path or "").expanduser()
    if not path.is_dir():
        return _path(config), [path]
    if (path / UNFINISHED).exists():
        raise UserError(f"data.path={path} is a corpus whose build has not ended: launch its zppo data build again")
    files = sorted(path.glob("*.parquet"))
    if not files:
        raise UserError(f"data.path={path} is not a file and has no *.parquet in it: give a file or a folder of them")
    return path, files


def _common_schema(files: list[Path]) -> pa.Schema:
    import pyarrow.parquet as pq

    schema = pq.read_schema(files[0])
    for file in files[1:]:
        if not pq.read_schema(file).equals(schema):
            raise UserError(f"{file} has other columns than {files[0]}: keep data sets in folders of their own")
    return schema


def _records(files: list[Path], columns: list[str]) -> Iterator[Record]:
    import pyarrow.parquet as pq

    for path in files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=columns):
                yield from batch.to_pylist()


def _media_table(path: Path, files: list[Path], columns: list[str]) -> MediaTable:
    """The parquet files' media columns as a memory-mapped table: parquet itself has no access to a single row."""
    import datasets
    import pyarrow.parquet as pq

    names = pq.read_schema(files[0]).names
    tops = sorted({column_path(names, column)[0] for column in columns})
    try:
        dataset = datasets.load_dataset("parquet", data_files=[*map(str, files)], columns=tops, split="train")
    except datasets.exceptions.DatasetsError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"{path} is not readable parquet ({reason}): write it anew or use data=jsonl") from error
    return MediaTable.of(dataset, origin=str(path), folder=str(path if path.is_dir() else path.parent))


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


def _media(config: DataConfig) -> dict[Kind, str]:
    """The columns of images and video, by kind; null ignores them."""
    named: dict[Kind, str | None] = {"images": config.columns.images, "video": config.columns.video}
    return {kind: column for kind, column in named.items() if column is not None}


def _required(config: DataConfig) -> dict[str, str]:
    """The columns that some row has to have: media columns only where they were asked for by name."""
    default = ColumnsConfig()
    asked: dict[str, str] = {k: column for k, column in _media(config).items() if column != getattr(default, k)}
    return {**_mapping(config), **asked}


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


def read_rows(rows: Rows, records: Iterable[tuple[int, Any]], config: DataConfig, *, folder: Path, source: str) -> None:
    """Fill `rows` from numbered records. Relative paths start at `folder`; `source` begins the ids.

    Raises UserError for no rows at all, a mapped column that no row has, and too many bad rows.
    """
    unseen = _required(config)
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
            question = _question(record, f"{source}/{number}", source, config, str(folder))
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


def _question(record: Record, default_id: str, source: str, config: DataConfig, folder: str) -> Question:
    mapping, media = _mapping(config), _media(config)
    answer_type: str = config.answer_type
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
        images=_images(record, media["images"], folder) if "images" in media else (),
        video=_video(record, media["video"], folder) if "video" in media else None,
        limits=config.media.limits(),
        metadata=_choices(record),
    )


def _images(record: Record, column: str, folder: str) -> tuple[ImageRef, ...]:
    value = _lookup(record, column)
    if value is _ABSENT or value in (None, ""):
        return ()
    images: list[ImageRef] = []
    for item in value if isinstance(value, list) else [value]:
        if item in (None, ""):
            raise _BadRow(f"an entry of {column!r} is empty")
        if isinstance(item, TableImage):
            images.append(item)
        elif isinstance(item, str):
            images.append(ImageFile(resolve(folder, item)))
        else:
            raise _BadRow(f"{column!r} holds a {type(item).__name__}, not the path of an image")
    return tuple(images)


def _video(record: Record, column: str, folder: str) -> VideoRef | None:
    value = _lookup(record, column)
    if isinstance(value, list) and len(value) <= 1:
        value = value[0] if value else None
    if value is _ABSENT or value in (None, ""):
        return None
    if isinstance(value, list):
        raise _BadRow(f"{column!r} holds {len(value)} videos: a question has one")
    if isinstance(value, TableVideo):
        return value
    if not isinstance(value, str):
        raise _BadRow(f"{column!r} is a {type(value).__name__}, not the path of a video")
    return VideoFile(resolve(folder, value))


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
