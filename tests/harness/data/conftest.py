"""Shared by the tests of data: where tables are kept, and clips whose frames are known by their brightness."""

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
