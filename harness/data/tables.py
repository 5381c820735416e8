"""Pictures and clips in the cells of a table, by reference: opened when they are packed, and never kept.

A reference holds a path or a place in a table, so a question with ten images costs a few hundred bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.data.images import MAX_FILE_BYTES, decode_image
from harness.data.reader import file_content
from harness.types import Clip, MediaLimits

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image

Kind = Literal["images", "video"]
Holds = Literal["paths", "embedded"]

BATCH_ROWS = 1000
"""Rows of a table that are looked at together."""


def resolve(folder: str, path: str) -> str:
    """A path as a data set gives it: absolute, from the home folder (`~`), or relative to the data set's folder."""
    return os.path.join(folder, os.path.expanduser(path))


def column_path(names: Iterable[str], column: str) -> list[str]:
    """A column as the steps to it: a name with dots is first tried as it stands, then as a path into records."""
    return [column] if column in names else column.split(".")


def holds(kind: pa.DataType) -> Holds | None:
    """Whether a column of this type, or of lists of it, holds paths or embedded bytes; None: no media."""
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind):
        return "paths"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return "embedded"
    if pa.types.is_struct(kind) and {"bytes", "path"} & {kind.field(i).name for i in range(kind.num_fields)}:
        return "embedded"
    return None


@dataclass(frozen=True)
class MediaTable:
    """A memory-mapped table with pictures or clips in its cells, which stay on disk until a cell is opened.

    `dataset` is a `datasets.Dataset` with the format "arrow"; tables of equal origin and fingerprint are equal.
    Relative paths in cells start at `folder`.
    """

    origin: str
    folder: str
    fingerprint: str
    dataset: Any = field(compare=False, repr=False)

    @classmethod
    def of(cls, dataset: Any, *, origin: str, folder: str) -> MediaTable:
        return cls(origin, folder, dataset._fingerprint, dataset.with_format("arrow"))

    def chunks(self, column: str) -> Iterator[pa.Array]:
        """The values of a column, nested ones too, in pieces of at most `BATCH_ROWS` rows."""
        import pyarrow.compute as pc

        first, *rest = column_path(self.dataset.column_names, column)
        for batch in self.dataset.select_columns([first]).iter(batch_size=BATCH_ROWS):
            for chunk in batch.column(first).chunks:
                for name in rest:
                    chunk = pc.struct_field(chunk, name)
                yield chunk

    def values(self, column: str) -> Iterator[Any]:
        """The value of each row."""
        for chunk in self.chunks(column):
            yield from chunk.to_pylist()

    def references(self, column: str, kind: Kind) -> Iterator[TableCell | list[TableCell | None] | None]:
        """A reference for each row, a list of them where it holds a list, None where it is empty; no bytes are read."""
        make = TableImage if kind == "images" else TableVideo
        row = 0
        for chunk in self.chunks(column):
            for present in _presence(chunk):
                row += 1
                if isinstance(present, list):
                    yield [make(self, row, column, i) if there else None for i, there in enumerate(present)]
                else:
                    yield make(self, row, column, None) if present else None

    def read(self, row: int, column: str, index: int | None) -> Any:
        """The value of a cell, or of an item of its list. Rows count from 1."""
        first, *rest = column_path(self.dataset.column_names, column)
        value = self.dataset[row - 1].column(first)[0]
        for name in rest:
            value = value[name]
        return (value if index is None else value[index]).as_py()


@dataclass(frozen=True)
class TableCell:
    """A place in a table; `row` counts from 1, `index` is the place in a list of the cell."""

    table: MediaTable
    row: int
    column: str
    index: int | None

    @property
    def name(self) -> str:
        place = f"{self.table.origin}:{self.row}:{self.column}"
        return place if self.index is None else f"{place}[{self.index}]"

    def source(self) -> bytes | Path:
        """The encoded bytes, or the file that the cell names."""
        value = self.table.read(self.row, self.column, self.index)
        if isinstance(value, dict):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        return Path(resolve(self.table.folder, value)) if isinstance(value, str) else value

    def content(self) -> Iterator[bytes]:
        source = self.source()
        name = self._named(source)
        return file_content(source, name, MAX_FILE_BYTES) if isinstance(source, Path) else iter([source])

    def _named(self, source: bytes | Path) -> str:
        return f"{self.name} ({source})" if isinstance(source, Path) else self.name


class TableImage(TableCell):
    """A picture in a table."""

    def open(self) -> Image:
        source = self.source()
        return decode_image(source, self._named(source))


class TableVideo(TableCell):
    """A clip in a table."""

    def open(self, limits: MediaLimits) -> Clip:
        from harness.data.video import decode_video

        source = self.source()
        return decode_video(source, self._named(source), limits)


def _presence(array: pa.Array) -> Iterator[bool | list[bool]]:
    """Whether each row holds something; for lists, whether each item does. Only validity and offsets are read."""
    import pyarrow as pa

    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        yield from _filled(array)
        return
    # Not `flatten`, which copies the bytes of all items where a row is null.
    offsets = array.offsets.to_pylist()
    filled = _filled(array.values.slice(offsets[0], offsets[-1] - offsets[0]))
    for row, valid in enumerate(array.is_valid().to_pylist()):
        start, end = offsets[row] - offsets[0], offsets[row + 1] - offsets[0]
        yield filled[start:end] if valid else False


def _filled(array: pa.Array) -> list[bool]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_struct(array.type):
        return array.is_valid().to_pylist()
    names = {array.type.field(i).name for i in range(array.type.num_fields)} & {"bytes", "path"}
    valid = [pc.struct_field(array, name).is_valid().to_pylist() for name in sorted(names)]
    return [any(row) for row in zip(*valid, strict=True)]
