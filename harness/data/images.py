"""Pictures: decoded only when they are packed, and refused for the same reasons whoever asks. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.data.reader import MediaError, Reader, file_content

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageFile", "MediaError", "check_size", "decode_image", "image_size"]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is tried. Pillow knows some that run programs (EPS), name other files, or cost far more than they show."""
MAX_PIXELS = 100_000_000
"""A larger picture is refused by its header, before it is decoded: 300 MB in memory, and hardly meant."""
MAX_FILE_BYTES = 8 * MAX_PIXELS
"""Four channels of 16 bits, not compressed."""
MAX_SCANS = 100
"""A JPEG may have so many scans. Encoders write some ten; each costs a pass over all pixels and hardly a byte."""
BITS_PER_SAMPLE = 258
"""A tag of TIFF."""
MIN_SIDE = 2
MAX_ASPECT = 200
"""Ratio of the longer to the shorter side: the processors' own limit."""


def decode_image(source: bytes | Path, name: str) -> Image:
    """The RGB picture of encoded bytes or a file, turned upright where its EXIF data say how.

    16 bits are scaled to 8; what is transparent is shown on white. Raises MediaError for what is missing, no regular
    file, no image of `FORMATS`, cut off, too small, too large or endless.
    """
    from PIL import ImageOps

    with _opened(source, name) as image:
        white = _white(image)  # by its tags, which a copy has not
        return _rgb(ImageOps.exif_transpose(image), name, white)


def image_size(source: bytes | Path, name: str) -> tuple[int, int]:
    """Width and height, from the header alone. Raises MediaError like `decode_image`, but not for what is cut off."""
    with _opened(source, name) as image:
        return image.size


@contextmanager
def _opened(source: bytes | Path, name: str) -> Iterator[Image]:
    """The picture before it is decoded, its size checked; what goes wrong then is a MediaError as well."""
    from PIL import Image, UnidentifiedImageError

    try:
        with (
            closing(Reader(source, f"image {name}", MAX_FILE_BYTES)) as reader,
            Image.open(reader, formats=FORMATS) as image,  # type: ignore[arg-type]  # it reads, seeks and tells
        ):
            check_size(image.width, image.height, f"image {name}")
            if image.format in ("JPEG", "MPO"):
                _check_scans(reader, name)
            yield image
    except UnidentifiedImageError as error:
        raise MediaError(f"image {name} is no image of the formats that are read ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise MediaError(f"image {name} has more than {MAX_PIXELS // 10**6} megapixels") from error
    except MediaError:
        raise
    except Exception as error:  # libraries of decoders raise whatever the bytes lead them to
        raise MediaError(f"image {name} cannot be decoded ({error})") from error


def _check_scans(reader: Reader, name: str) -> None:
    """Within what is compressed a marker's bytes never stand, so counting them is exact, thumbnails included."""
    place = reader.tell()
    reader.seek(0)
    num_scans = reader.read().count(b"\xff\xda")
    reader.seek(place)
    if num_scans > MAX_SCANS:
        raise MediaError(f"image {name} has {num_scans} scans, more than {MAX_SCANS}")


def _white(image: Image) -> int:
    """The largest value of grey above 8 bits. A TIFF may have 12."""
    bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))
    return 2 ** int(bits[0]) - 1


def _rgb(image: Image, name: str, white: int) -> Image:
    """8 bits a channel, on white."""
    from PIL import Image as images

    if image.mode.startswith("I;16"):
        image = _scaled(image, white)
    elif image.mode in ("I", "F"):
        raise MediaError(f"image {name} has 32 bits a channel, and nothing says which of them is white: save 8 or 16")
    if not image.has_transparency_data:
        return image.convert("RGB")
    shown = image.convert("RGBA")
    return images.alpha_composite(images.new("RGBA", shown.size, "white"), shown).convert("RGB")


def _scaled(image: Image, white: int) -> Image:
    """Grey above 8 bits as 8 bits. Pillow's own conversion cuts off above 255."""
    import numpy as np
    from PIL import Image as images

    values = np.asarray(image).astype(np.uint32)
    grey = images.fromarray(((values * 255 + white // 2) // white).clip(0, 255).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # the one value of a PNG that is not shown
        grey.putalpha(images.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def check_size(width: int, height: int, name: str) -> None:
    """Raise MediaError for a picture or frame of a size that no model can be shown."""
    if width * height > MAX_PIXELS:
        raise MediaError(f"{name} has {width}x{height} pixels, more than {MAX_PIXELS // 10**6} megapixels")
    if min(width, height) < MIN_SIDE:
        raise MediaError(f"{name} has {width}x{height} pixels: there is nothing to see")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise MediaError(f"{name} has {width}x{height} pixels: one side is more than {MAX_ASPECT} times the other")


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
        return file_content(Path(self.path), f"image {self.path}", MAX_FILE_BYTES)
