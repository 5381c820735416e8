"""Questions from files: text (`formats`) and parquet, with a mapping of columns (`records`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.data import DataConfig
from harness.data.columns import Record, column_type, missing_column, needed, read_name, schema_names, sought
from harness.data.folders import UNFINISHED, Files, files_of
from harness.data.formats import read_rows
from harness.data.records import Reader, Row
from harness.data.rows import Rows, Stream
from harness.data.scalars import text_of
from harness.data.tables import Kind, MediaTable, column_path, holds
from harness.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["UNFINISHED", "load_jsonl", "load_parquet", "open_files", "text_of"]


def load_jsonl(config: DataConfig) -> Rows:
    """The questions of a text file. UTF-8 with or without a byte order mark; blank lines are ignored.

    Raises UserError for a missing or empty file, a mapped column that no row has, and too many bad rows.
    """
    return open_files(config, str(config.path)).all(config.max_bad_fraction)


def load_parquet(config: DataConfig) -> Rows:
    """One question a row, read in batches and only the columns that are used; embedded media stay on disk.

    The rows of a folder are those of its files, in the order of their names. Raises UserError like `load_jsonl`, for a
    file that is not readable parquet, for columns whose types differ between files, and for a column without media.
    """
    return open_files(config, str(config.path)).all(config.max_bad_fraction)


def open_files(config: DataConfig, path: str, name: str = "") -> Stream:
    """The rows of a file or a folder, `data=jsonl` or `data=parquet`. `name` begins the ids, by default the file's."""
    place = Path(path).expanduser()
    files = files_of(path, config.source)
    stream = (_parquet if config.source == "parquet" else _texts)(config, files, name or files.name)
    stream.files, stream.place, stream.name = files.read, files.path, name or files.name
    if names := [file.name for file in files.left_out]:
        shown = ", ".join(names if len(names) <= 3 else [*names[:3], f"{len(names) - 3} more"])
        stream.notes.append(f"{place} has files of other splits, which are left out: {shown}")
    return stream


def _texts(config: DataConfig, files: Files, name: str) -> Stream:
    first, *further = files.read
    origin = str(first if not further else files.path)
    reader = Reader(config=config, origin=origin, folder=str(files.folder), name=name, known=[])
    return Stream(origin=origin, rows=reader.questions(_text_rows(files)))


def _text_rows(files: Files) -> Iterator[Row]:
    """Of several files the rows are counted on, and have no places in a file."""
    last = 0
    for path in files.read:
        start = last
        try:
            for row in read_rows(path):
                last = start + row.number
                yield row if len(files.read) == 1 else Row(last, row.record)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): check the file and its permissions") from error


def _parquet(config: DataConfig, files: Files, name: str) -> Stream:
    with _readable(files.path):
        schema = _common_schema(config, files)
        texts, embedded = table_columns(schema, config, str(files.path))
    reader = Reader(
        config=config, origin=str(files.path), folder=str(files.folder), name=name, known=schema_names(schema)
    )

    @cache
    def table() -> MediaTable:
        return _media_table(files, sorted(embedded))

    def rows() -> Iterator[Row]:
        with _readable(files.path):
            records = _records(files.read, texts)
            if embedded:
                records = with_references(records, table(), embedded)
            for number, record in enumerate(records, 1):
                yield Row(number, record)

    return Stream(origin=reader.origin, rows=reader.questions(rows()), table=table)


class _readable:
    """What pyarrow raises inside is a UserError that names the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        import pyarrow as pa

        if isinstance(error, pa.ArrowException | OSError):
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{self._path} is not readable parquet ({reason}): write it anew or use data=jsonl"
            ) from error


def table_columns(schema: pa.Schema, config: DataConfig, origin: str) -> tuple[list[str], dict[str, Kind]]:
    """The columns that are read as they are, and those with embedded media.

    Raises UserError for a column that is missing, and for a media column of another type.
    """
    known = schema_names(schema)
    texts = set()
    for key, column in needed(config).items():
        if (read := read_name(known, column)) not in known:
            raise missing_column(origin, key, column, known)
        if key not in ("images", "video"):
            texts.add(read)
    embedded: dict[str, Kind] = {}
    for kind, names in sought(config).items():
        present = [name for name in names if name in known]
        if not present and read_name(known, names[0]) != names[0]:
            raise UserError(
                f"{origin}: data.columns.{kind}={names[0]} goes into a list: name the list itself, all of it is used"
            )
        if kind == "choices":
            texts.update(present)
            continue
        for column in present:
            found = holds(column_type(schema, column))
            if found is None:
                raise UserError(
                    f"{origin}: column {column!r} is {column_type(schema, column)}, neither paths nor encoded bytes: "
                    f"set data.columns.{kind} to another column, or to null to ignore it"
                )
            if found == "paths":
                texts.add(column)
            else:
                embedded[column] = "images" if kind == "images" else "video"
    return sorted(texts), embedded


def with_references(records: Iterable[Record], table: MediaTable, embedded: dict[str, Kind]) -> Iterator[Record]:
    """The records with references to the media of their rows, by column."""
    columns = [table.references(column, kind) for column, kind in embedded.items()]
    for record, *cells in zip(records, *columns, strict=True):
        yield record | dict(zip(embedded, cells, strict=True))


def _common_schema(config: DataConfig, files: Files) -> pa.Schema:
    """The schema of the columns that are used. They may be absent or null in some of the files, and texts of two kinds.

    Raises UserError where their types differ.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schemas = [pq.read_schema(file).remove_metadata() for file in files.read]
    names = dict.fromkeys(name for schema in schemas for name in schema.names)
    columns = [*needed(config).values(), *(name for names_ in sought(config).values() for name in names_)]
    used = {column_path(names, column)[0] for column in columns}
    fields = []
    for name in names:
        kinds = [(file, schema.field(name).type) for file, schema in zip(files.read, schemas, strict=True)
                 if name in schema.names]  # fmt: skip
        filled = [(file, kind) for file, kind in kinds if not pa.types.is_null(kind)] or kinds
        first, kind = filled[0]
        for file, other in filled[1:] if name in used else ():
            if _plain(other) != _plain(kind):
                raise UserError(
                    f"{file} has {name!r} as {other}, {first.name} as {kind}: keep data sets in folders of their own"
                )
        lacking = [file for file, schema in zip(files.read, schemas, strict=True) if name not in schema.names]
        if lacking and name in used and holds(kind) == "embedded":
            raise UserError(
                f"{lacking[0]} has no column {name!r}, which {first.name} has: keep data sets in folders of their own"
            )
        fields.append(pa.field(name, kind))
    return pa.schema(fields)


def _plain(kind: pa.DataType) -> str:
    """A type without what makes no difference to a reader: large or not, and the name of a list's items."""
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return f"[{_plain(kind.value_type)}]"
    if pa.types.is_struct(kind):
        entries = sorted((kind.field(i).name, _plain(kind.field(i).type)) for i in range(kind.num_fields))
        return str(entries)
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    return str(kind).removeprefix("large_").removesuffix("_view")


def _records(files: Iterable[Path], columns: list[str]) -> Iterator[Record]:
    import pyarrow.parquet as pq

    for path in files:
        with pq.ParquetFile(path) as file:
            here = schema_names(file.schema_arrow)
            for batch in file.iter_batches(columns=[column for column in columns if column in here]):
                yield from batch.to_pylist()


def _media_table(files: Files, columns: list[str]) -> MediaTable:
    """The parquet files' media columns as a memory-mapped table: parquet itself has no access to a single row."""
    import datasets
    import pyarrow.parquet as pq

    names = pq.read_schema(files.read[0]).names
    tops = sorted({column_path(names, column)[0] for column in columns})
    try:
        dataset = datasets.load_dataset("parquet", data_files=[*map(str, files.read)], columns=tops, split="train")
    except datasets.exceptions.DatasetsError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"{files.path} is not readable parquet ({reason}): write it anew or use data=jsonl") from error
    return MediaTable.of(dataset, origin=str(files.path), folder=str(files.folder))
