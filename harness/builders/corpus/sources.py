"""The rows of a source: which files it has, whether they have the schema that the builder reads, and their rows.

A source is a data set of the hub, read over the network without a copy on disk, or a local folder laid out like one.
Files are parquet; only the columns that are used are read, one record batch at a time.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.builders.corpus.tables import Source
from harness.data.tables import column_path
from harness.errors import UserError, did_you_mean, first_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SPLIT = "train"
BATCH_ROWS = 64
"""Rows, with their pictures, that are in memory at once."""
BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class SourceFile:
    """A parquet file of a source. `name` is its path inside the data set."""

    source: str
    url: str
    name: str
    num_rows: int


@dataclass(frozen=True)
class OpenedSource:
    """A source whose files have been found and have the right schema."""

    source: Source
    location: str
    revision: str | None
    """The commit of the hub's data set; None for a folder."""
    files: tuple[SourceFile, ...]

    @property
    def num_rows(self) -> int:
        return sum(file.num_rows for file in self.files)


@dataclass(frozen=True)
class Row:
    """A row of a source. `position` counts from 0 in its file; `values` has the fields but the picture."""

    position: int
    values: Mapping[str, Any]
    image: pa.Scalar

    def image_bytes(self) -> bytes | None:
        """The encoded picture as the source has it; None where the cell is empty."""
        return self.image.as_py() or None


def open_source(source: Source, location: str, revision: str | None) -> OpenedSource:
    """Find the training files and check the schema of each.

    Raises UserError for a data set that cannot be reached, without files, or with a column missing or of another type.
    """
    folder = Path(location).expanduser()
    place = str(folder) if folder.is_dir() else location
    urls = _training_files(source, place, revision)
    names = [_name(url, folder if folder.is_dir() else None) for url in urls]
    files = []
    for name, url in sorted(zip(names, urls, strict=True)):
        with _parquet(url, f"{location}/{name}") as file:
            check_schema(source, file.schema_arrow, f"{location}/{name}")
            files.append(SourceFile(source.name, url, name, file.metadata.num_rows))
    return OpenedSource(source, location, _commit(urls[0]), tuple(files))


def check_schema(source: Source, schema: pa.Schema, origin: str) -> None:
    """Raise UserError, which names the first column that is missing or of another type."""
    for key, field in source.fields.items():
        kind = _type_of(schema, field.path)
        if kind is None and key == "id":  # only names rows in messages and in the corpus
            continue
        if kind is None:
            known = _column_names(schema)
            problem = f"has no column {field.path!r}{did_you_mean(field.path, known) or '.'}"
        elif not _fits(kind, field.kind):
            problem = f"has {kind} in column {field.path!r}, not {field.kind}."
        else:
            continue
        raise UserError(
            f"{origin} {problem} It has another schema than the one that is read here (docs/corpus.md): pin a revision "
            f"that has it (--{source.name}-revision), or give a local copy with these columns (--{source.name} FOLDER)"
        )


def count_names(opened: OpenedSource) -> Counter[str]:
    """How many rows each sub-dataset has, by the source's own name for it; reads that column alone."""
    import pyarrow.compute as pc

    path = opened.source.fields["subset"].path
    counts: Counter[str] = Counter()
    for source_file in opened.files:
        with _parquet(source_file.url, source_file.name) as file:
            for batch in file.iter_batches(columns=[path]):
                for entry in pc.value_counts(_column(batch, path)).to_pylist():
                    counts[entry["values"] or ""] += entry["counts"]
    return counts


def read_rows(source: Source, file: SourceFile, positions: Sequence[int] | None = None) -> Iterator[list[Row]]:
    """The rows of a file in batches, all or those at some positions (ascending); row groups without any are skipped."""
    import pyarrow as pa

    with _parquet(file.url, file.name) as parquet:
        schema = parquet.schema_arrow
        present = {key: field.path for key, field in source.fields.items() if _type_of(schema, field.path) is not None}
        texts = {key: path for key, path in present.items() if key != "image"}
        end = 0
        for group in range(parquet.num_row_groups):
            start, end = end, end + parquet.metadata.row_group(group).num_rows
            wanted = range(start, end) if positions is None else _between(positions, start, end)
            if not wanted:
                continue
            for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=list(present.values())):
                found = _between(wanted, start, start + len(batch))
                if found:
                    rows = batch if len(found) == len(batch) else batch.take(pa.array([p - start for p in found]))
                    yield list(_rows(rows, found, texts, present["image"]))
                start += len(batch)


def _rows(batch: pa.RecordBatch, positions: Sequence[int], texts: dict[str, str], image: str) -> Iterator[Row]:
    columns = [_column(batch, path).to_pylist() for path in texts.values()]
    images = _column(batch, image)
    for index, position in enumerate(positions):
        values = {key: column[index] for key, column in zip(texts, columns, strict=True)}
        yield Row(position, {"id": None, "pass_rate": None} | values, images[index])


def _between(positions: Sequence[int], start: int, end: int) -> Sequence[int]:
    """The ascending positions that are in [start, end)."""
    return positions[bisect_left(positions, start) : bisect_left(positions, end)]


def _training_files(source: Source, place: str, revision: str | None) -> list[str]:
    """Training files of all configurations, as the data set's card lists them, else by their names."""
    import datasets
    from datasets.load import dataset_module_factory

    try:
        urls: list[str] = []
        # What `load_dataset` does for one configuration; it would read the card anew for each of dozens.
        module = dataset_module_factory(place, revision=revision)
        for config in module.builder_configs_parameters.builder_configs or []:
            found = config.data_files or {}
            if isinstance(found, datasets.data_files.DataFilesPatternsDict):
                found = found.resolve(module.builder_kwargs["base_path"], datasets.DownloadConfig())
            urls += found.get(SPLIT, [])
    except Exception as error:  # from a missing folder to whatever the network stack raises
        raise UserError(
            f"--{source.name}: the data set {place} cannot be read ({first_line(error.__cause__ or error)}): give its "
            "id on the hub, or a folder with a copy (hf download --repo-type dataset ID --local-dir FOLDER)"
        ) from error
    if not urls or not all(url.endswith(".parquet") for url in urls):
        raise UserError(
            f"--{source.name}: {place} has no parquet files of a split {SPLIT!r}: give a copy of {source.hub_id}"
        )
    return sorted(set(urls))


def _name(url: str, folder: Path | None) -> str:
    if folder is not None:
        return os.path.relpath(url, folder.resolve() if os.path.isabs(url) else folder)
    return url.rpartition("@")[2].partition("/")[2]


def _commit(url: str) -> str | None:
    """The hub resolves a branch to a commit, which stands in the address: `hf://datasets/owner/name@commit/path`."""
    return url.rpartition("@")[2].partition("/")[0] if url.startswith("hf://") and "@" in url else None


def _network_errors() -> tuple[type[Exception], ...]:
    """Errors of the hub's client, which uses httpx or httpx2 by its version."""
    found = [import_module(name) for name in ("httpx", "httpx2") if find_spec(name)]
    return tuple(module.HTTPError for module in found)


@contextmanager
def _parquet(url: str, name: str) -> Iterator[pq.ParquetFile]:
    import fsspec
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        with filesystem.open(path, "rb") as handle, pq.ParquetFile(handle, buffer_size=BUFFER_BYTES) as file:
            yield file
    except (pa.ArrowException, OSError, *_network_errors()) as error:
        raise UserError(
            f"{name} cannot be read ({first_line(error)}): launch the same command again, it goes on; a damaged local "
            "copy has to be downloaded anew"
        ) from error


def _column(batch: pa.RecordBatch, path: str) -> pa.Array:
    import pyarrow.compute as pc

    first, *rest = column_path(batch.schema.names, path)
    column = batch.column(first)
    for name in rest:
        column = pc.struct_field(column, name)
    return column


def _type_of(schema: pa.Schema, path: str) -> pa.DataType | None:
    import pyarrow as pa

    kind: Any = schema
    for name in path.split("."):
        if isinstance(kind, pa.DataType) and not pa.types.is_struct(kind):
            return None
        index = kind.get_field_index(name)
        if index < 0:
            return None
        kind = kind.field(index).type
    return kind


def _column_names(schema: pa.Schema) -> list[str]:
    import pyarrow as pa

    names = []
    for field in schema:
        names.append(field.name)
        if pa.types.is_struct(field.type):
            names += [f"{field.name}.{field.type.field(i).name}" for i in range(field.type.num_fields)]
    return names


def _fits(kind: pa.DataType, wanted: str) -> bool:
    import pyarrow as pa

    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    is_integer = pa.types.is_integer(kind)
    return {
        "text": is_text,
        "number": is_integer or pa.types.is_floating(kind) or pa.types.is_decimal(kind),
        "id": is_text or is_integer or pa.types.is_null(kind),
        "image": pa.types.is_binary(kind) or pa.types.is_large_binary(kind),
    }[wanted]
