"""Text files of rows: one JSON object a line, a JSON array, CSV; packed by gzip or not. What else there is is named.

Rows are numbered from 1: in a file of lines that is the line in the file, blank lines included.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from harness.data.records import Row
from harness.data.rows import BadRow
from harness.errors import UserError, first_line

HEAD_BYTES = 4096
SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv")
"""Of text files in a folder; each may be followed by `.gz`."""
_GZIP = b"\x1f\x8b"
_OTHERS = (
    (b"PAR1", "is a parquet file: use data=parquet"),
    (b"ARROW1", "is an Arrow file: give the folder that save_to_disk wrote"),
    (b"\xff\xff\xff\xff", "is an Arrow file: give the folder that save_to_disk wrote"),
    (b"\x28\xb5\x2f\xfd", "is packed by zstd: unpack it first (zstd -d), or pack it by gzip"),
    (b"BZh", "is packed by bzip2: unpack it first (bunzip2), or pack it by gzip"),
    (b"\xfd7zXZ", "is packed by xz: unpack it first (unxz), or pack it by gzip"),
    (b"PK\x03\x04", "is a zip archive: unpack it first"),
    (b"\xff\xfe", "is UTF-16: save it as UTF-8 (iconv -f UTF-16 -t UTF-8 FILE > NEW)"),
    (b"\xfe\xff", "is UTF-16: save it as UTF-8 (iconv -f UTF-16 -t UTF-8 FILE > NEW)"),
)
_LONGEST_CELL = 1 << 30


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a text file, whatever its form is. Raises UserError for a file of another kind."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if is_packed := head.startswith(_GZIP):
        head = _unpacked_head(path)
    for start, words in _OTHERS:
        if head.startswith(start):
            raise UserError(f"{path} {words}")
    if b"\0" in head[:4]:
        raise UserError(f"{path} is UTF-16 or UTF-32: save it as UTF-8 (iconv -f UTF-16 -t UTF-8 FILE > NEW)")
    name = path.name.lower().removesuffix(".gz")
    open_bytes: Any = gzip.open if is_packed else open
    with open_bytes(path, "rb") as lines:
        try:
            if name.endswith((".csv", ".tsv")):
                yield from _csv_rows(lines, "\t" if name.endswith(".tsv") else ",")
            elif head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
                yield from _array_rows(lines, has_places=not is_packed)
            else:
                yield from _line_rows(lines, has_places=not is_packed)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{path} is a damaged gzip file ({first_line(error)}): fetch or pack it anew") from error


def _unpacked_head(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read(HEAD_BYTES)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is a damaged gzip file ({first_line(error)}): fetch or pack it anew") from error


def _line_rows(lines: Iterable[bytes], *, has_places: bool) -> Iterator[Row]:
    """A row for each line that is not blank."""
    offset = 0
    for number, line in enumerate(lines, 1):
        place = offset if has_places else None
        offset += len(line)
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip()
            if text:
                yield Row(number, json.loads(text), place)
        except json.JSONDecodeError as error:
            yield Row(number, BadRow(f"not JSON ({error.msg} at column {error.colno})"))
        except UnicodeDecodeError:
            yield Row(number, BadRow("not UTF-8"))
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits, nesting of thousands of levels
            yield Row(number, BadRow(f"not usable JSON ({error})"))


def _array_rows(lines: BinaryIO, *, has_places: bool) -> Iterator[Row]:
    """The items of one array; of a file that is none, its lines."""
    content = lines.read()
    try:
        items = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        items = None
    if not isinstance(items, list) or (items and not any(isinstance(item, dict) for item in items)):
        yield from _line_rows(io.BytesIO(content), has_places=has_places)
        return
    del content
    for number, item in enumerate(items, 1):
        yield Row(number, item)


def _csv_rows(lines: BinaryIO, delimiter: str) -> Iterator[Row]:
    """Rows below a line of names; the first row has number 1. An empty cell is an empty text."""
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.DictReader(io.TextIOWrapper(lines, "utf-8-sig", newline=""), delimiter=delimiter, restkey="")
    number = 0
    while True:
        number += 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except UnicodeDecodeError:
            yield Row(number, BadRow("not UTF-8"))
            return
        except csv.Error as error:
            yield Row(number, BadRow(f"not CSV ({error})"))
            continue
        if record.get(""):
            yield Row(number, BadRow("has more cells than the first line has names: quote cells that have commas"))
        else:
            yield Row(number, record)
