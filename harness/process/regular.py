"""Opening what has to be a file. What is none (a pipe, a device, a folder) may never end, or never begin."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO


class NotAFile(OSError):
    """A path that leads to something else than a file, or to a larger one than is taken; the message says to what."""


def open_regular(path: str | Path, max_bytes: int) -> BinaryIO:
    """A regular file for reading, links followed. Raises NotAFile, also above `max_bytes`, and OSError like `open`."""
    _check(os.stat(path), max_bytes)  # first, since opening a device may do something
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check(os.fstat(descriptor), max_bytes)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | Path, max_bytes: int) -> bytes:
    """All bytes of a regular file. Raises like `open_regular`."""
    with open_regular(path, max_bytes) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:  # it has grown, or belongs to a file system that knows no sizes
        raise NotAFile(_too_large(max_bytes))
    return content


def _check(found: os.stat_result, max_bytes: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise NotAFile("is a folder" if stat.S_ISDIR(found.st_mode) else "is no regular file")
    if found.st_size > max_bytes:
        raise NotAFile(_too_large(max_bytes))


def _too_large(max_bytes: int) -> str:
    return f"has more than {max_bytes / 2**20:g} MiB"
