"""Encoded pictures and clips as files for decoders, with a bound on their bytes and a deadline."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from harness.errors import UserError
from harness.process.regular import NotAFile, open_regular

GRACE_SECONDS = 120.0
SECONDS_PER_MIB = 2.0
LONGEST_SECONDS = 3600.0
PIECE_BYTES = 1 << 20


class MediaError(UserError):
    """A picture or clip that cannot be used; the message names it and says why."""


class Reader:
    """The bytes of `source`, or of the regular file at that path, for whatever reads, seeks and tells.

    `read` and `seek` raise MediaError after the deadline: two minutes, and two seconds more for each MiB, at most an
    hour. Decoders read and seek all the time; between frames `check` is asked as well.
    """

    def __init__(self, source: bytes | Path, name: str, max_bytes: int) -> None:
        """Raises MediaError, which begins with `name`, for what is no regular file, and above `max_bytes`."""
        self._name = name
        self._file = _opened(source, name, max_bytes)
        num_bytes = self._file.seek(0, io.SEEK_END)
        self._file.seek(0)
        self.seconds = min(GRACE_SECONDS + SECONDS_PER_MIB * num_bytes / 2**20, LONGEST_SECONDS)
        self._deadline = time.monotonic() + self.seconds

    def check(self) -> None:
        """Raise MediaError after the deadline."""
        if time.monotonic() > self._deadline:
            raise MediaError(f"{self._name} was not decoded within {self.seconds:.0f} s")

    def read(self, size: int = -1) -> bytes:
        self.check()
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.check()
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def file_content(path: Path, name: str, max_bytes: int) -> Iterator[bytes]:
    """The bytes of a regular file in pieces. Raises MediaError, which begins with `name`."""
    with closing(Reader(path, name, max_bytes)) as reader:
        while piece := reader.read(PIECE_BYTES):
            yield piece


def _opened(source: bytes | Path, name: str, max_bytes: int) -> BinaryIO:
    if isinstance(source, bytes):
        if len(source) > max_bytes:
            raise MediaError(f"{name} has more than {max_bytes / 2**20:g} MiB")
        return io.BytesIO(source)
    try:
        return open_regular(source, max_bytes)
    except FileNotFoundError as error:
        raise MediaError(f"{name} does not exist") from error
    except NotAFile as error:
        raise MediaError(f"{name} {error}") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise MediaError(f"{name} cannot be read ({getattr(error, 'strerror', None) or error})") from error
