"""Writing so that a crash leaves the old or the new content, never half of one. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_atomically(path: Path, text: str) -> None:
    """Write a file under a temporary name, flush it to disk and rename it."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    put_in_place(aside, path)


def put_in_place(aside: Path, path: Path) -> None:
    """Rename what has been flushed, and flush the name."""
    aside.replace(path)
    sync(path.parent)


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append a line of JSON a row; a crash may leave the last one cut short."""
    is_new = not path.exists()
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
