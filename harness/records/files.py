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


SUMS = "SHA256SUMS"
"""A folder's file with a line for every other one, or for its weights: `sha256sum -c` reads it as well."""

MAX_SUMS = 2**20
"""Characters of it that are read: thousands of files."""


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sums_text(sums: Mapping[str, str]) -> str:
    """What `SUMS` says of files by name."""
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))


def read_sums(folder: Path) -> dict[str, str]:
    """Files of `SUMS` by name. Raises ValueError where it is damaged, OSError where it cannot be read."""
    with (folder / SUMS).open(encoding="utf-8") as file:
        text = file.read(MAX_SUMS)
    if len(text) == MAX_SUMS:
        raise ValueError("it is too long")
    lines = [line.split("  ") for line in text.splitlines()]
    return {Path(name).name: expected for expected, name in lines}


def write_sums(folder: Path, pattern: str) -> None:
    """Note what the files of a folder whose names fit `pattern` are as they were written."""
    (folder / SUMS).write_text(sums_text({file.name: sha256(file) for file in folder.glob(pattern)}))


def altered(folder: Path) -> str | None:
    """What is no longer as `write_sums` noted it, in half a line; None where all is, or nothing was noted."""
    try:
        for name, expected in read_sums(folder).items():
            if not (folder / name).exists():
                return f"{name} is missing"
            if sha256(folder / name) != expected:
                return f"{name} is not what was written"
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        return f"{SUMS} cannot be read: {error}"
    return None
