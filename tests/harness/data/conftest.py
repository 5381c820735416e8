"""Shared by the tests of data: where tables are kept, and clips whose frames are known by their brightness."""

import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `datasets` keeps its tables."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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


def tiny_samples(num: int) -> bytes:
    """An MP4 whose video track has `num` samples of one byte each, none of them a picture."""

    def box(kind: bytes, *parts: bytes) -> bytes:
        content = b"".join(parts)
        return struct.pack(">I4s", 8 + len(content), kind) + content

    def full(kind: bytes, flags: int, *parts: bytes) -> bytes:
        return box(kind, struct.pack(">I", flags), *parts)

    matrix = struct.pack(">9I", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    size = struct.pack(">4HI", 64, 64, 72, 0, 72 << 16)
    kind = box(b"jpeg", bytes(6), b"\0\1", bytes(16), size, bytes(4), b"\0\1", bytes(32), struct.pack(">Hh", 24, -1))

    def moov(offset: int) -> bytes:
        samples = box(
            b"stbl",
            full(b"stsd", 0, struct.pack(">I", 1), kind),
            full(b"stts", 0, struct.pack(">3I", 1, num, 1)),
            full(b"stsc", 0, struct.pack(">4I", 1, 1, num, 1)),
            full(b"stsz", 0, struct.pack(">2I", 1, num)),
            full(b"stco", 0, struct.pack(">2I", 1, offset)),
        )
        source = box(b"dinf", full(b"dref", 0, struct.pack(">I", 1), full(b"url ", 1)))
        media = box(
            b"mdia",
            full(b"mdhd", 0, struct.pack(">4I2H", 0, 0, 1000, num, 0x55C4, 0)),
            full(b"hdlr", 0, bytes(4), b"vide", bytes(12), b"v\0"),
            box(b"minf", full(b"vmhd", 1, bytes(8)), source, samples),
        )
        shown = struct.pack(">2I", 64 << 16, 64 << 16)
        track = full(b"tkhd", 3, struct.pack(">5I", 0, 0, 1, 0, num), bytes(16), matrix, shown)
        pace = struct.pack(">5IH", 0, 0, 1000, num, 1 << 16, 256)
        head = full(b"mvhd", 0, pace, bytes(10), matrix, bytes(24), struct.pack(">I", 2))
        return box(b"moov", head, box(b"trak", track, media))

    start = box(b"ftyp", b"isom\0\0\2\0isomiso2mp41")
    return start + moov(len(start) + len(moov(0)) + 8) + box(b"mdat", b"\xff" * num)
