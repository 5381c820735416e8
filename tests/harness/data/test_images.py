"""Pictures: modes, rotation, size from the header, and damaged files by name."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.data.images import ImageFile, MediaError, decode_image, image_size


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    """A PNG of which only the size is real."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def noise(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))


@pytest.mark.parametrize(("mode", "colour"), [("RGB", (9, 9, 9)), ("L", 9), ("LA", (9, 255)), ("RGBA", (9, 9, 9, 255))])
def test_a_picture_is_rgb_whatever_the_file_holds(tmp_path: Path, mode: str, colour: Any) -> None:
    path = tmp_path / "a.png"
    Image.new(mode, (5, 3), colour).save(path)
    picture = ImageFile(str(path)).open()
    assert (picture.mode, picture.size, picture.getpixel((4, 2))) == ("RGB", (5, 3), (9, 9, 9))
    assert decode_image(path.read_bytes(), "cell").tobytes() == picture.tobytes()


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the right column of the file is the bottom
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert ImageFile(str(tmp_path / "a.jpg")).open().size == (20, 40)


def damage_image(path: Path, how: str) -> None:
    if how == "cut png":
        noise().save(path, "PNG")
        path.write_bytes(path.read_bytes()[:2000])
    elif how == "cut jpeg":
        noise().save(path, "JPEG")
        path.write_bytes(path.read_bytes()[:800])
    elif how == "text":
        path.write_text("no picture")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "huge":
        path.write_bytes(png_header(20_000, 10_000))
    elif how == "large":
        path.write_bytes(png_header(11_000, 10_000))
    elif how == "dot":
        Image.new("RGB", (1, 1)).save(path)
    elif how == "line":
        Image.new("RGB", (1, 5000)).save(path)
    elif how == "strip":
        Image.new("RGB", (2, 402)).save(path)
    elif how == "folder":
        path.mkdir()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("missing", "does not exist"),
        ("folder", "cannot be decoded"),
        ("cut png", "cannot be decoded"),
        ("cut jpeg", "cannot be decoded (image file is truncated"),
        ("text", "is no image that Pillow reads"),
        ("empty", "is no image that Pillow reads"),
        ("huge", "has more than 100 megapixels"),
        ("large", "has 11000x10000 pixels, more than 100 megapixels"),
        ("dot", "has 1x1 pixels: there is nothing to see"),
        ("line", "has 1x5000 pixels: there is nothing to see"),
        ("strip", "has 2x402 pixels: one side is more than 200 times the other"),
    ],
)
def test_a_bad_picture_is_named_with_the_reason(tmp_path: Path, how: str, reason: str) -> None:
    path = tmp_path / "bad.png"
    damage_image(path, how)
    with pytest.raises(MediaError) as error:
        ImageFile(str(path)).open()
    assert str(error.value).startswith(f"image {path} {reason}")
    assert "\n" not in str(error.value)


def test_the_size_is_read_from_the_header(tmp_path: Path) -> None:
    """Of a file that is cut off behind it too, and with the same limits as the whole picture."""
    data = io.BytesIO()
    Image.new("RGB", (40, 30)).save(data, "PNG")
    cut = data.getvalue()[:45]
    assert image_size(cut, "cut") == (40, 30)
    with pytest.raises(MediaError, match="image cut cannot be decoded"):
        decode_image(cut, "cut")
    with pytest.raises(MediaError, match="image text is no image"):
        image_size(b"text", "text")
    with pytest.raises(MediaError, match="does not exist"):
        image_size(tmp_path / "a.png", "a")
