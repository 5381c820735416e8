"""Pictures: modes, rotation, size from the header, and damaged files by name."""

from __future__ import annotations

import io
import os
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
        ("folder", "is a folder"),
        ("cut png", "cannot be decoded"),
        ("cut jpeg", "cannot be decoded (image file is truncated"),
        ("text", "is no image of the formats that are read (PNG, JPEG, "),
        ("empty", "is no image of the formats that are read (PNG, JPEG, "),
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


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return data.getvalue()


def gradient() -> np.ndarray:
    """Every 257th value of 16 bits: 0 is black, 65535 white."""
    return (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled(kind: str) -> None:
    shown = np.asarray(decode_image(encoded(Image.fromarray(gradient()), kind), "a"))
    assert shown.tolist() == np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=2).tolist()


def test_12_bits_of_a_tiff_are_scaled_to_their_own_white() -> None:
    """2x2 values 0, 4095, 2048, 0: two in three bytes."""
    tags = [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 1, 12), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
            (277, 3, 1, 1), (278, 3, 1, 2), (279, 4, 1, 6)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    pixels = bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x00])
    data = struct.pack("<2sHI", b"II", 42, 14) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert np.asarray(decode_image(data, "a"))[..., 0].tolist() == [[0, 255], [128, 0]]


def test_channels_of_32_bits_have_no_white() -> None:
    for values in (np.int32, np.float32):
        with pytest.raises(MediaError, match="has 32 bits a channel"):
            decode_image(encoded(Image.fromarray(gradient().astype(values)), "TIFF"), "a")


def half_transparent(mode: str) -> Image.Image:
    """Black everywhere: opaque on the left, transparent on the right."""
    picture = Image.new("RGBA", (8, 4))
    picture.paste((0, 0, 0, 255), (0, 0, 4, 4))
    return picture.convert(mode)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGBA"), ("PNG", "LA"), ("WEBP", "RGBA"), ("PNG", "P"), ("GIF", "RGBA"), ("TIFF", "RGBA")],
)
def test_what_is_transparent_is_shown_on_white(kind: str, mode: str) -> None:
    picture = half_transparent("RGBA").quantize() if mode == "P" else half_transparent(mode)
    options = {"lossless": True} if kind == "WEBP" else {}
    shown = np.asarray(decode_image(encoded(picture, kind, **options), "a"))
    assert shown.shape == (4, 8, 3) and (shown[:, :4] == 0).all() and (shown[:, 4:] == 255).all()


def test_half_transparent_ink_is_mixed_and_opaque_pictures_keep_every_bit() -> None:
    ink = Image.new("RGBA", (4, 4), (200, 100, 0, 51))  # a fifth: 255 + (200 - 255) / 5 and so on
    assert decode_image(encoded(ink, "PNG"), "a").getpixel((0, 0)) == (244, 224, 204)
    opaque = noise().convert("RGBA")
    assert decode_image(encoded(opaque, "PNG"), "a").tobytes() == noise().tobytes()


def test_the_transparent_value_of_16_bit_grey_is_white() -> None:
    data = encoded(Image.fromarray(gradient()), "PNG", transparency=0)
    shown = np.asarray(decode_image(data, "a"))[..., 0]
    assert shown[0, :3].tolist() == [255, 1, 2]


def test_an_animation_is_its_first_picture() -> None:
    frames = [Image.new("RGB", (16, 16), (40 * i, 0, 0)) for i in range(1, 4)]
    for kind in ("WEBP", "GIF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert decode_image(data, "a").getpixel((3, 3)) == (40, 0, 0)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\n(hi) show\nshowpage\n%%EOF\n"


def test_a_picture_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow gives PostScript to ghostscript, whatever the file is called."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    (tmp_path / "a.png").write_bytes(EPS)
    with pytest.raises(MediaError, match="no image of the formats that are read"):
        ImageFile(str(tmp_path / "a.png")).open()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["<svg xmlns='http://www.w3.org/2000/svg'/>", "#EXTM3U", "P6 2 2 255 aaaaaaaaaaaa"])
def test_other_formats_are_not_tried(text: str) -> None:
    with pytest.raises(MediaError, match="no image of the formats that are read"):
        decode_image(text.encode(), "a")


def test_a_pipe_or_a_device_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "endless.png"):
        with pytest.raises(MediaError, match=f"{name} is no regular file"):
            ImageFile(str(tmp_path / name)).open()


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_a_jpeg_of_endless_scans_is_refused(kind: str) -> None:
    """A scan may have a dozen bytes, and costs a pass over all pixels. Phones write MPO: several in one file."""
    more = {"save_all": True, "append_images": [noise()]} if kind == "MPO" else {}
    data = encoded(noise(), kind, progressive=True, **more)
    assert Image.open(io.BytesIO(data)).format == kind
    last, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    scans = data[last:end]
    assert decode_image(data[:end] + 20 * scans + data[end:], "a").size == (64, 48)
    with pytest.raises(MediaError, match=r"image a has \d+ scans, more than 100"):
        decode_image(data[:end] + 100 * scans + data[end:], "a")
