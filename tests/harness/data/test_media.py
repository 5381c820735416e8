from __future__ import annotations

import gc
import io
import pickle
import struct
import tracemalloc
import wave
import weakref
import zlib
from pathlib import Path
from typing import Any

import av
import datasets
import numpy as np
import pytest
from PIL import Image

from harness.data.images import ImageFile, MediaError, decode_image, image_size
from harness.data.tables import MediaTable, TableImage, TableVideo
from harness.data.video import VideoFile, choose_frames, decode_video
from harness.types import MediaLimits

STEP = 8
"""Brightness of frame i is i * STEP."""


def write_clip(path: Path, num_frames: int, fps: int = 10, size: tuple[int, int] = (64, 48)) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.bit_rate, stream.gop_size = 4_000_000, 1  # each frame for itself, so that its brightness is exact
        for i in range(num_frames):
            pixels = np.full((size[1], size[0], 3), i * STEP, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def shown(clip: Any) -> list[int]:
    """Which frames of `write_clip` these are, by their brightness."""
    return [round(float(frame.mean()) / STEP) for frame in clip.frames_FHWC]


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


@pytest.mark.parametrize(
    ("limits", "indices"),
    [
        (MediaLimits(num_frames=4), [0, 10, 19, 29]),
        (MediaLimits(num_frames=1), [0]),
        (MediaLimits(num_frames=99), list(range(30))),
        (MediaLimits(fps=2.0), [0, 6, 12, 17, 23, 29]),
        (MediaLimits(), [0, 6, 12, 17, 23, 29]),
        (MediaLimits(fps=2.0, max_frames=3), [0, 14, 29]),
        (MediaLimits(fps=0.1), [0, 29]),
        (MediaLimits(fps=100.0), list(range(30))),
    ],
)
def test_the_frames_that_are_shown_are_evenly_spread(tmp_path: Path, limits: MediaLimits, indices: list[int]) -> None:
    clip = VideoFile(str(write_clip(tmp_path / "a.mp4", num_frames=30))).open(limits)
    assert shown(clip) == indices
    assert clip.times_F == pytest.approx([i / 10 for i in indices])
    assert (clip.frames_FHWC.dtype, clip.frames_FHWC.shape) == (np.uint8, (len(indices), 48, 64, 3))


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mkv"])
def test_clips_of_other_containers_and_from_bytes(tmp_path: Path, suffix: str) -> None:
    path = write_clip(tmp_path / f"a.{suffix}", num_frames=10)
    clip = decode_video(path.read_bytes(), "cell", MediaLimits(num_frames=3))
    assert shown(clip) == [0, 4, 9]
    assert clip.times_F == pytest.approx((0.0, 0.4, 0.9), abs=2e-3)  # Matroska counts milliseconds


@pytest.mark.parametrize("limits", [MediaLimits(fps=2.0), MediaLimits(num_frames=8)])
def test_a_clip_of_one_frame(tmp_path: Path, limits: MediaLimits) -> None:
    clip = VideoFile(str(write_clip(tmp_path / "a.mp4", num_frames=1))).open(limits)
    assert (shown(clip), clip.times_F) == ([0], (0.0,))


def test_a_raw_stream_has_the_times_of_its_rate(tmp_path: Path) -> None:
    clip = VideoFile(str(write_clip(tmp_path / "a.m4v", num_frames=10))).open(MediaLimits(num_frames=2))
    assert shown(clip) == [0, 9]
    assert clip.times_F[1] > 0


def test_frames_are_chosen_by_time_where_their_rate_varies() -> None:
    # ten frames in a second, then one after nine more: 11 frames in 11 seconds
    times = [i / 10 for i in range(10)] + [10.0]
    assert len(choose_frames(times, MediaLimits(fps=0.5))) == 5


def test_a_portrait_clip_that_was_stored_lying_is_turned(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        pixels = np.zeros((32, 64, 3), np.uint8)
        pixels[:, :32] = 200  # left half
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    matrix = data.index(struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), data.index(b"tkhd"))
    clockwise = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 32 << 16, 0, 1 << 30)
    path.write_bytes(data[:matrix] + clockwise + data[matrix + 36 :])
    frame = VideoFile(str(path)).open(MediaLimits()).frames_FHWC[0]
    assert frame.shape == (64, 32, 3)
    assert frame[:32].mean() > 190 and frame[32:].mean() < 10  # the left half is now the upper one


def damage_video(path: Path, how: str) -> None:
    if how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("no video\n" * 100)
    elif how == "cut":
        write_clip(path, num_frames=20)
        path.write_bytes(path.read_bytes()[:1000])
    elif how == "audio":
        with av.open(str(path), "w", format="mp4") as container:
            stream = container.add_stream("aac", rate=16_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16_000
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    elif how == "wave":
        with wave.open(str(path), "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", ""))
            sound.writeframes(bytes(1000))
    elif how == "no frames":
        with av.open(str(path), "w", format="avi") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            container.start_encoding()
    elif how == "strip":
        write_clip(path, num_frames=2, size=(3000, 2))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("missing", "does not exist"),
        ("empty", "cannot be decoded (Invalid data found when processing input)"),
        ("text", "cannot be decoded (Invalid data found when processing input)"),
        ("cut", "cannot be decoded"),
        ("audio", "has no video stream"),
        ("wave", "has no video stream"),
        ("no frames", "has no frames"),
        ("strip", "has 3000x2 pixels: one side is more than 200 times the other"),
    ],
)
def test_a_bad_clip_is_named_with_the_reason(tmp_path: Path, how: str, reason: str) -> None:
    path = tmp_path / "bad.mp4"
    damage_video(path, how)
    with pytest.raises(MediaError) as error:
        VideoFile(str(path)).open(MediaLimits())
    assert str(error.value).startswith(f"video {path} {reason}")
    assert "\n" not in str(error.value)


def test_a_clip_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.mp4", num_frames=20)
    monkeypatch.setattr("harness.data.video.MAX_CLIP_BYTES", 10 * 64 * 48 * 3)
    assert len(VideoFile(str(path)).open(MediaLimits(num_frames=10)).times_F) == 10
    with pytest.raises(MediaError, match=r"a.mp4: 11 frames of 64x48 pixels .*lower data.media.max_frames"):
        VideoFile(str(path)).open(MediaLimits(num_frames=11))


def test_a_clip_with_fewer_frames_than_its_container_has_packets(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.avi", num_frames=20)
    data = bytearray(path.read_bytes())
    position = data.index(b"movi")
    for i in range(20):
        position = data.index(b"00dc", position) + 8
        size = struct.unpack("<I", data[position - 4 : position])[0]
        if i >= 10:  # MPEG-4: the frame is not coded
            data[position : position + size] = (b"\x00\x00\x01\xb6" + bytes([0x50 | i % 10, 0x9F])).ljust(size, b"\0")
    path.write_bytes(bytes(data))
    clip = VideoFile(str(path)).open(MediaLimits(num_frames=3))
    # the decoder gives ten frames, and the last one again at the clip's end
    assert shown(clip) == [0, 5, 9]
    assert clip.times_F == pytest.approx((0.0, 0.5, 1.9))


def test_a_damaged_frame_in_the_middle_is_not_passed_over(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.avi", num_frames=20)
    data = bytearray(path.read_bytes())
    position = data.index(b"movi")
    for _ in range(10):
        position = data.index(b"00dc", position) + 8
    size = struct.unpack("<I", data[position - 4 : position])[0]
    data[position : position + size] = bytes(size)
    path.write_bytes(bytes(data))
    with pytest.raises(MediaError, match=r"a.avi cannot be decoded"):
        VideoFile(str(path)).open(MediaLimits(num_frames=3))


@pytest.fixture
def table(tmp_path: Path) -> MediaTable:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 6), (7, 7, 7)).save(path)
    clip = write_clip(tmp_path / "a.mp4", num_frames=5).read_bytes()
    data = path.read_bytes()
    dataset = datasets.Dataset.from_dict(
        {
            "image": [data, None, b"", b"x"],
            "images": [
                [{"bytes": data, "path": None}, {"bytes": None, "path": "a.png"}],
                [],
                None,
                [None, {"bytes": None, "path": "b.png"}],
            ],
            "deep": [{"clip": {"bytes": clip, "path": "x.mp4"}}, None, {"clip": None}, {"clip": {"bytes": b"x"}}],
        }
    )
    return MediaTable.of(dataset, origin="t", folder=str(tmp_path))


def names(values: Any) -> list[Any]:
    def name(value: Any) -> Any:
        return [name(v) for v in value] if isinstance(value, list) else value and value.name

    return [name(value) for value in values]


def test_cells_are_named_and_the_empty_ones_are_none(table: MediaTable) -> None:
    assert names(table.references("image", "images")) == ["t:1:image", None, "t:3:image", "t:4:image"]
    assert names(table.references("images", "images")) == [
        ["t:1:images[0]", "t:1:images[1]"],
        [],
        None,
        [None, "t:4:images[1]"],
    ]
    assert names(table.references("deep.clip", "video")) == ["t:1:deep.clip", None, None, "t:4:deep.clip"]


def test_cells_are_read_when_they_are_opened(table: MediaTable) -> None:
    for image in (
        TableImage(table, 1, "image", None),
        TableImage(table, 1, "images", 0),
        TableImage(table, 1, "images", 1),
    ):
        assert image.open().getpixel((0, 0)) == (7, 7, 7)
    assert shown(TableVideo(table, 1, "deep.clip", None).open(MediaLimits(num_frames=2))) == [0, 4]


def test_bad_cells_are_named(table: MediaTable, tmp_path: Path) -> None:
    for image, message in (
        (TableImage(table, 3, "image", None), "image t:3:image is no image"),
        (TableImage(table, 4, "image", None), "image t:4:image is no image"),
        (TableImage(table, 4, "images", 1), f"image t:4:images[1] ({tmp_path / 'b.png'}) does not exist"),
    ):
        with pytest.raises(MediaError) as error:
            image.open()
        assert str(error.value).startswith(message)
    with pytest.raises(MediaError, match=r"^video t:4:deep.clip cannot be decoded"):
        TableVideo(table, 4, "deep.clip", None).open(MediaLimits())


def test_cells_have_a_place_in_sets_and_travel_to_other_processes(table: MediaTable) -> None:
    cell = TableImage(table, 1, "images", 1)
    copy = pickle.loads(pickle.dumps(cell))
    assert len({cell, copy, TableImage(table, 1, "images", 1), TableImage(table, 1, "images", 0)}) == 2
    assert copy.open().size == (8, 6)


def test_opened_pictures_are_not_kept(table: MediaTable, tmp_path: Path) -> None:
    Image.new("RGB", (1000, 1000)).save(tmp_path / "large.png")
    references = [ImageFile(str(tmp_path / "large.png")), TableImage(table, 1, "image", None)] * 10
    references[0].open()
    tracemalloc.start()
    opened = [weakref.ref(reference.open()) for reference in references]
    gc.collect()
    assert [picture() for picture in opened] == [None] * 20
    assert tracemalloc.get_traced_memory()[0] < 500_000
    tracemalloc.stop()


def test_clips_are_not_kept(tmp_path: Path) -> None:
    reference = VideoFile(str(write_clip(tmp_path / "a.mp4", num_frames=5)))
    opened = [weakref.ref(reference.open(MediaLimits()).frames_FHWC) for _ in range(5)]
    gc.collect()
    assert [frames() for frames in opened] == [None] * 5


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
