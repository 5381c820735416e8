"""Pictures: decoded only when they are packed, and refused for the same reasons whoever asks. Imports no torch."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


MAX_PIXELS = 100_000_000
"""A larger picture is refused by its header, before it is decoded: 300 MB in memory, and hardly meant."""
MIN_SIDE = 2
MAX_ASPECT = 200
"""Ratio of the longer to the shorter side: the processors' own limit."""


PIECE_BYTES = 1 << 20


class MediaError(UserError):
    """A picture or clip that cannot be used; the message names it and says why."""


def decode_image(source: bytes | Path, name: str) -> Image:
    """The RGB picture of encoded bytes or a file, turned upright where its EXIF data say how.

    Raises MediaError for what is missing, no image, cut off, too small or too large.
    """
    from PIL import ImageOps

    with _opened(source, name) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def image_size(source: bytes | Path, name: str) -> tuple[int, int]:
    """Width and height, from the header alone. Raises MediaError like `decode_image`, but not for what is cut off."""
    with _opened(source, name) as image:
        return image.size


@contextmanager
def _opened(source: bytes | Path, name: str) -> Iterator[Image]:
    """The picture before it is decoded, its size checked; what goes wrong then is a MediaError as well."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            check_size(image.width, image.height, f"image {name}")
            yield image
    except FileNotFoundError as error:
        raise MediaError(f"image {name} does not exist") from error
    except UnidentifiedImageError as error:
        raise MediaError(f"image {name} is no image that Pillow reads") from error
    except Image.DecompressionBombError as error:
        raise MediaError(f"image {name} has more than {MAX_PIXELS // 10**6} megapixels") from error
    except MediaError:
        raise
    except Exception as error:  # libraries of decoders raise whatever the bytes lead them to
        raise MediaError(f"image {name} cannot be decoded ({error})") from error


def check_size(width: int, height: int, name: str) -> None:
    """Raise MediaError for a picture or frame of a size that no model can be shown."""
    if width * height > MAX_PIXELS:
        raise MediaError(f"{name} has {width}x{height} pixels, more than {MAX_PIXELS // 10**6} megapixels")
    if min(width, height) < MIN_SIDE:
        raise MediaError(f"{name} has {width}x{height} pixels: there is nothing to see")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise MediaError(f"{name} has {width}x{height} pixels: one side is more than {MAX_ASPECT} times the other")


def file_content(path: str | Path, name: str) -> Iterator[bytes]:
    """The bytes of a regular file in pieces. Raises MediaError, which says `name`, for all that is none."""
    try:
        with open(path, "rb", opener=_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise MediaError(f"{name} is no regular file")
            while piece := file.read(PIECE_BYTES):
                yield piece
    except FileNotFoundError as error:
        raise MediaError(f"{name} does not exist") from error
    except OSError as error:
        raise MediaError(f"{name} cannot be read ({error.strerror})") from error


def _at_once(path: str, flags: int) -> int:
    """Opens without waiting for somebody who writes into a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


@dataclass(frozen=True)
class ImageFile:
    """A picture on disk."""

    path: str

    @property
    def name(self) -> str:
        return self.path

    def open(self) -> Image:
        return decode_image(Path(self.path), self.path)

    def content(self) -> Iterator[bytes]:
        return file_content(self.path, f"image {self.path}")
