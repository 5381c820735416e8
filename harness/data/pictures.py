"""Pictures that stand in a row: as a path, base64, a data URI, or `{"bytes": ...}` and `{"path": ...}`.

Of a file of lines a reference holds a place: the line is read again when the picture is opened.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.data.columns import Steps, value_at
from harness.data.images import ImageFile, MediaError, decode_image
from harness.data.tables import TableImage, resolve
from harness.types import ImageRef

if TYPE_CHECKING:
    from PIL.Image import Image

_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0AK")
"""How base64 of PNG, JPEG, GIF, WEBP, BMP and TIFF begins."""
_SHORTEST = 64
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class BadPicture(ValueError):
    """What is no picture; the text follows the name of its column."""


@dataclass(frozen=True)
class Place:
    """A row: its file, its number, and where its line starts. None: the file has no lines that can be read by place."""

    origin: str
    number: int
    offset: int | None = None

    def name(self, steps: Steps) -> str:
        column, *rest = steps
        return f"{self.origin}:{self.number}:{column}" + "".join(f"[{step}]" for step in rest)


@dataclass(frozen=True)
class LineImage:
    """A picture in a line of a file, in base64."""

    place: Place
    steps: Steps

    @property
    def name(self) -> str:
        return self.place.name(self.steps)

    def open(self) -> Image:
        return decode_image(self._bytes(), self.name)

    def content(self) -> Iterator[bytes]:
        yield self._bytes()

    def _bytes(self) -> bytes:
        try:
            with open(self.place.origin, "rb") as file:
                file.seek(self.place.offset or 0)
                record = json.loads(file.readline().decode("utf-8-sig"))
            return decoded(value_at(record, self.steps))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise MediaError(f"image {self.name} cannot be read again: has the file changed?") from error


@dataclass(frozen=True)
class EncodedImage:
    """A picture whose encoded bytes are kept."""

    name: str
    data: bytes = field(repr=False, compare=False)

    def open(self) -> Image:
        return decode_image(self.data, self.name)

    def content(self) -> Iterator[bytes]:
        yield self.data


def picture(value: Any, place: Place, steps: Steps, folder: str) -> ImageRef:
    """The picture of a value. Relative paths start at `folder`. Raises BadPicture, which cuts a long value off."""
    if isinstance(value, TableImage):
        return value
    if isinstance(value, bytes):
        return EncodedImage(place.name(steps), value)
    if isinstance(value, str):
        return _of_text(value, place, steps, folder)
    if isinstance(value, dict):
        for key in ("bytes", "path", "url", "image_url", "image"):
            if value.get(key) not in (None, "", b""):
                return picture(value[key], place, (*steps, key), folder)
        raise BadPicture("holds a record without bytes and path")
    raise BadPicture(f"holds a {type(value).__name__}, not the path of an image")


def _of_text(value: str, place: Place, steps: Steps, folder: str) -> ImageRef:
    text = value.strip()
    if is_encoded(text):
        try:
            data = decoded(text)
        except ValueError as error:
            raise BadPicture(f"holds base64 that is cut off or damaged ({len(text)} characters)") from error
        return EncodedImage(place.name(steps), data) if place.offset is None else LineImage(place, steps)
    if text[:5].lower() == "data:":
        raise BadPicture("holds a data URI that is no image in base64")
    if text[:7].lower() == "file://":
        text = text[7:]
    if _ADDRESS.match(text):
        raise BadPicture(f"holds the address {text[:60]}: pictures are not downloaded, save them next to the file")
    if len(text) > 4096:
        raise BadPicture(f"holds a text of {len(text)} characters that is no picture in base64")
    return ImageFile(resolve(folder, text))


def is_encoded(text: str) -> bool:
    """Whether a text is a picture in base64, or a data URI of one."""
    if _DATA_URI.match(text, 0, 200):
        return True
    return len(text) >= _SHORTEST and text.startswith(_STARTS) and "." not in text


def decoded(text: str) -> bytes:
    """The bytes of base64 or of a data URI; line ends in it are dropped. Raises ValueError."""
    _, _, body = text.rpartition("base64,") if text[:5].lower() == "data:" else ("", "", text)
    body = "".join(body.split())
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
