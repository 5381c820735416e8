"""Clips that are not a complete video file: a folder with frame pictures, and a part of a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.data.images import MAX_FILE_BYTES, MediaError, decode_image
from harness.data.reader import file_content
from harness.data.video import MAX_CLIP_BYTES, MAX_VIDEO_BYTES, choose_frames, decode_video, frames_within, open_video
from harness.types import Clip, MediaLimits

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


@dataclass(frozen=True)
class FrameFolder:
    """The frames of a clip as pictures, in the order of their names, `fps` of them a second.

    Of a part between `start` and `end`, in seconds, if those are given.
    """

    path: str
    fps: float
    start: float | None = None
    end: float | None = None

    @property
    def name(self) -> str:
        return _named(self.path, self.start, self.end)

    def open(self, limits: MediaLimits) -> Clip:
        """The frames that `limits` choose. Raises MediaError for a folder that is missing or has no pictures."""
        import numpy as np

        pictures = self._pictures()
        within = frames_within([i / self.fps for i in range(len(pictures))], (self.start, self.end))
        chosen = choose_frames([i / self.fps for i in within], limits)
        first = decode_image(pictures[within[chosen[0]]], self.name)
        num_bytes = len(chosen) * first.width * first.height * 3
        if num_bytes > MAX_CLIP_BYTES:
            raise MediaError(
                f"video {self.name}: {len(chosen)} frames of {first.width}x{first.height} pixels take "
                f"{num_bytes / 2**30:.1f} GiB: lower max_frames or num_frames"
            )
        frames_FHWC = np.empty((len(chosen), first.height, first.width, 3), np.uint8)
        for place, i in enumerate(chosen):
            path = pictures[within[i]]
            image = first if place == 0 else decode_image(path, str(path))
            frames_FHWC[place] = np.asarray(image if image.size == first.size else image.resize(first.size))
        return Clip(frames_FHWC, tuple((i - chosen[0]) / self.fps for i in chosen))

    def content(self) -> Iterator[bytes]:
        """The pictures in their order, and which of them are shown when."""
        pictures = self._pictures()
        yield repr((self.fps, self.start, self.end)).encode()
        for path in pictures:
            yield path.name.encode(errors="surrogateescape")
            yield from file_content(path, f"image {path}", MAX_FILE_BYTES)

    def _pictures(self) -> list[Path]:
        folder = Path(self.path)
        if not folder.is_dir():
            raise MediaError(f"video {self.path} does not exist (a folder of frames)")
        pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
        if not pictures:
            raise MediaError(f"video {self.path} has no frames: there are no pictures in the folder")
        return pictures


@dataclass(frozen=True)
class VideoPart:
    """The part of a video file from `start` to `end`, in seconds."""

    path: str
    start: float
    end: float

    @property
    def name(self) -> str:
        return _named(self.path, self.start, self.end)

    def open(self, limits: MediaLimits) -> Clip:
        """The frames that `limits` choose of the part. Raises MediaError."""
        return decode_video(Path(self.path), self.name, limits, (self.start, self.end))

    def content(self) -> Iterator[bytes]:
        yield repr((self.start, self.end)).encode()
        yield from file_content(Path(self.path), f"video {self.name}", MAX_VIDEO_BYTES)


def last_frame_time(path: str) -> float:
    """When the last frame of a video file is shown, in seconds, by its header. Raises MediaError."""
    with open_video(Path(path), path) as (container, stream, _):
        if stream.duration is not None:
            duration = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration = container.duration / 1e6  # FFmpeg counts a container's time in microseconds
        else:
            raise MediaError(f"video {path} does not say how long it is")
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        return max(duration - 1 / rate, 0.0)


def _named(path: str, start: float | None, end: float | None) -> str:
    if start is None and end is None:
        return path
    return f"{path} [{'' if start is None else f'{start:g}'}-{'' if end is None else f'{end:g}'} s]"
