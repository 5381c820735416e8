from __future__ import annotations

import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import harness.data.frames
from harness.data.frames import FrameFolder, VideoPart, last_frame_time
from harness.data.images import MediaError
from harness.types import MediaLimits

STEP = 8
"""Brightness of frame i is i * STEP."""


def write_frames(folder: Path, num_frames: int) -> str:
    """Frames that are written from the last to the first: a listing has them in no useful order."""
    folder.mkdir()
    for i in reversed(range(num_frames)):
        Image.new("RGB", (6, 4), (i * STEP,) * 3).save(folder / f"{i + 1:05d}.png")
    return str(folder)


def write_clip(path: Path, num_frames: int, fps: int = 10) -> str:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.bit_rate, stream.gop_size = 4_000_000, 1
        for i in range(num_frames):
            pixels = np.full((48, 64, 3), i * STEP, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def shown(clip) -> list[int]:
    return [round(float(frame.mean()) / STEP) for frame in clip.frames_FHWC]


@pytest.mark.parametrize(
    ("bounds", "limits", "frames", "times"),
    [
        ((None, None), MediaLimits(fps=1.0), [0, 4, 8], [0.0, 4 / 3, 8 / 3]),  # 9 frames at 3 a second: 3 seconds
        ((None, None), MediaLimits(num_frames=2), [0, 8], [0.0, 8 / 3]),
        ((None, None), MediaLimits(num_frames=20), list(range(9)), [i / 3 for i in range(9)]),
        ((1.0, 2.0), MediaLimits(num_frames=9), [3, 4, 5, 6], [0.0, 1 / 3, 2 / 3, 1.0]),
        ((1.0, 2.0), MediaLimits(num_frames=2), [3, 6], [0.0, 1.0]),
        ((50.0, 60.0), MediaLimits(num_frames=2), [0, 8], [0.0, 8 / 3]),
        ((2.6, None), MediaLimits(num_frames=4), [8], [0.0]),
    ],
)
def test_a_folder_is_shown_in_the_order_of_names(tmp_path, bounds, limits, frames, times):
    clip = FrameFolder(write_frames(tmp_path / "clip", 9), 3.0, *bounds).open(limits)
    assert shown(clip) == frames
    assert clip.times_F == pytest.approx(times)
    assert clip.frames_FHWC.shape == (len(frames), 4, 6, 3) and clip.frames_FHWC.dtype == np.uint8


def test_other_files_are_no_frames_and_other_sizes_are_scaled_to_the_first(tmp_path):
    folder = Path(write_frames(tmp_path / "clip", 2))
    (folder / "00000.txt").write_text("no picture")
    Image.new("RGB", (60, 40), (5 * STEP,) * 3).save(folder / "00003.PNG")
    clip = FrameFolder(str(folder), 3.0).open(MediaLimits(num_frames=3))
    assert shown(clip) == [0, 1, 5] and clip.frames_FHWC.shape[1:3] == (4, 6)


def test_what_is_no_folder_of_frames(tmp_path):
    with pytest.raises(MediaError, match="nowhere does not exist"):
        FrameFolder(str(tmp_path / "nowhere"), 3.0).open(MediaLimits())
    with pytest.raises(MediaError, match="has no frames"):
        FrameFolder(str(tmp_path), 3.0).open(MediaLimits())
    (tmp_path / "00001.jpg").write_bytes(b"no JPEG")
    with pytest.raises(MediaError, match="no image of the formats that are read"):
        FrameFolder(str(tmp_path), 3.0).open(MediaLimits())
    Image.new("RGB", (900, 2)).save(tmp_path / "00001.jpg")
    with pytest.raises(MediaError, match="more than 200 times"):
        FrameFolder(str(tmp_path), 3.0).open(MediaLimits())


def test_frames_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    folder = FrameFolder(write_frames(tmp_path / "clip", 3), 3.0)
    monkeypatch.setattr(harness.data.frames, "MAX_CLIP_BYTES", 3 * 6 * 4 * 3 - 1)
    with pytest.raises(MediaError, match="lower max_frames"):
        folder.open(MediaLimits(num_frames=3))
    assert len(folder.open(MediaLimits(num_frames=2)).times_F) == 2


@pytest.mark.parametrize(
    ("start", "end", "limits", "frames", "times"),
    [
        (0.5, 1.5, MediaLimits(num_frames=3), [5, 10, 15], [0.0, 0.5, 1.0]),
        (0.5, 1.5, MediaLimits(fps=2.0), [5, 15], [0.0, 1.0]),  # 11 frames, each a tenth of a second
        (0.0, 99.0, MediaLimits(num_frames=2), [0, 19], [0.0, 1.9]),
        (1.0, 1.0, MediaLimits(num_frames=4), [10], [0.0]),
        (9.0, 10.0, MediaLimits(num_frames=2), [0, 19], [0.0, 1.9]),
    ],
)
def test_only_a_part_of_a_file_is_shown(tmp_path, start, end, limits, frames, times):
    clip = VideoPart(write_clip(tmp_path / "a.mp4", 20), start, end).open(limits)
    assert shown(clip) == frames
    assert clip.times_F == pytest.approx(times)


def test_a_part_of_what_is_no_video(tmp_path):
    with pytest.raises(MediaError, match=r"nowhere.mp4 \[1-2 s\] does not exist"):
        VideoPart(str(tmp_path / "nowhere.mp4"), 1.0, 2.0).open(MediaLimits())


def test_the_last_frame_is_shown_one_frame_before_the_end(tmp_path):
    assert last_frame_time(write_clip(tmp_path / "a.mp4", 20)) == pytest.approx(1.9)


@pytest.mark.parametrize("video", [FrameFolder("a/b", 3.0), FrameFolder("a/b", 3.0, 1.0), VideoPart("a.mp4", 1.0, 2.5)])
def test_references_are_values(video):
    again = dataclasses.replace(video)
    assert again is not video and again == video and len({video, again}) == 1


def test_names_tell_parts_apart():
    names = [FrameFolder("a", 3.0).name, FrameFolder("a", 3.0, 1.0).name, VideoPart("a", 1.0, 2.5).name]
    assert names == ["a", "a [1- s]", "a [1-2.5 s]"]
