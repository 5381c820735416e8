"""Clips: which frames of a video are shown, and decoding just those. F frames, H height, W width, C channels."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.images import MAX_PIXELS, MediaError, check_size
from harness.data.reader import Reader, file_content
from harness.types import Clip, MediaLimits

if TYPE_CHECKING:
    import numpy as np
    from av import VideoFrame

DEFAULT_FPS = 2.0
"""Where neither `fps` nor `num_frames` is set."""
CONTAINERS = (
    "mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "ogg", "asf", "gif",
    "h264", "hevc", "m4v", "mpegvideo",
)  # fmt: skip
"""What FFmpeg may take a clip for. Others are lists of further addresses (HLS, concat), or listen (SDP)."""
MAX_VIDEO_BYTES = 16 << 30
MAX_NUM_FRAMES = 2_000_000
"""18 hours at 30 a second."""
MIN_FRAMES = 2
"""By `fps`: a temporal patch of the models."""
MAX_CLIP_BYTES = 4 << 30
"""Bytes of the frames that are shown, decoded: some 690 frames of 1920x1080."""

Span = tuple[float | None, float | None]
"""Start and end in seconds; None: from the beginning, to the end."""
WHOLE: Span = (None, None)


@dataclass(frozen=True)
class VideoFile:
    """A clip on disk."""

    path: str

    @property
    def name(self) -> str:
        return self.path

    def open(self, limits: MediaLimits) -> Clip:
        """The frames that `limits` choose. Raises MediaError, which names the file."""
        return decode_video(Path(self.path), self.path, limits)

    def content(self) -> Iterator[bytes]:
        return file_content(Path(self.path), f"video {self.path}", MAX_VIDEO_BYTES)


def decode_video(source: bytes | Path, name: str, limits: MediaLimits, span: Span = WHOLE) -> Clip:
    """The frames of an encoded video, or of a span of it, that `limits` choose; times count from the first one.

    Raises MediaError for what is missing, no video, cut off, too small or too large.
    """
    times = _times(source, name)
    for _ in range(2):
        if not times:
            raise MediaError(f"video {name} has no frames")
        within = frames_within([time - times[0] for time in times], span)
        indices = [within[i] for i in choose_frames([times[i] for i in within], limits)]
        frames_FHWC, shown_at, num_decoded = _decode(source, name, indices)
        if num_decoded > indices[-1]:
            # A stream without times gets those of its rate.
            times_F = [times[i] if at is None else at for i, at in zip(indices, shown_at, strict=True)]
            return Clip(frames_FHWC, tuple(time - times_F[0] for time in times_F))
        # A container may announce more frames than its decoder gives: choose again from those that exist.
        times = times[:num_decoded]
    raise MediaError(f"video {name} cannot be decoded (another number of frames each time)")


def frames_within(times: Sequence[float], span: Span) -> list[int]:
    """Indices of the frames of a span. All of them where it has none: data sets have such mistakes."""
    start, end = span
    first, last = times[0] if start is None else start, times[-1] if end is None else end
    # A frame's time is a sum of clock ticks.
    return [i for i, time in enumerate(times) if first - 1e-3 <= time <= last + 1e-3] or list(range(len(times)))


def choose_frames(times: Sequence[float], limits: MediaLimits) -> list[int]:
    """Indices of the frames that are shown, evenly spread from the first to the last; `times` of all, in seconds.

    `num_frames` of them; else `fps` times the duration (a frame is shown until the next), at least 2 and at most
    `max_frames`. Never more than there are.

    Example: 5 of the 10 frames of a second at `fps=5`: 0, 2, 4, 7, 9.
    """
    import numpy as np

    total = len(times)
    if limits.num_frames is not None:
        wanted = limits.num_frames
    else:
        duration = (times[-1] - times[0]) * total / (total - 1) if total > 1 else 0.0
        # Times are sums of clock ticks: a duration of 1.9999999 seconds is meant to be 2.
        wanted = int(duration * (limits.fps or DEFAULT_FPS) + 1e-3)
        wanted = min(max(wanted, MIN_FRAMES), limits.max_frames)
    spread = np.linspace(0, total - 1, min(wanted, total))
    return [int(i) for i in spread.round()]


@contextmanager
def open_video(source: bytes | Path, name: str) -> Iterator[tuple[Any, Any, Reader]]:
    """The container, its first stream of moving pictures, and what it is read from, which has the deadline.

    FFmpeg is given bytes and no address, and may open none itself. Every failure inside becomes a MediaError.
    """
    from av.stream import Disposition

    try:
        with closing(Reader(source, f"video {name}", MAX_VIDEO_BYTES)) as reader, _container(reader, name) as container:
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                raise MediaError(f"video {name} has no video stream")
            streams[0].codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            yield container, streams[0], reader
    except MediaError:
        raise
    except Exception as error:  # libraries of decoders raise whatever the bytes lead them to
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"video {name} cannot be decoded ({reason})") from error


def _container(reader: Reader, name: str) -> Any:
    import av
    from av.error import FFmpegError

    options = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "none"}
    try:
        return av.open(reader, options=options, metadata_errors="ignore", timeout=reader.seconds)
    except FFmpegError as error:
        if error.errno != errno.EINVAL:  # how FFmpeg says that a format is not on the list
            raise
        raise MediaError(
            f"video {name} is no clip of the containers that are read (MP4, Matroska, AVI, ...)"
        ) from error


def _times(source: bytes | Path, name: str) -> list[float]:
    """When each frame is shown, in order, read from the packets without decoding or keeping them."""
    with open_video(source, name) as (container, stream, reader):
        ticks, num_frames = array("q"), 0
        for packet in container.demux(stream):
            reader.check()
            num_frames += bool(packet.size)
            if num_frames > MAX_NUM_FRAMES:
                raise MediaError(f"video {name} has more than {MAX_NUM_FRAMES} frames")
            if packet.size and packet.pts is not None:
                ticks.append(packet.pts)
        if len(ticks) < num_frames:
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            return [i / rate for i in range(num_frames)]
        return [float(pts * stream.time_base) for pts in sorted(ticks)]


def _decode(source: bytes | Path, name: str, indices: Sequence[int]) -> tuple[np.ndarray, list[float | None], int]:
    """The frames at ascending `indices`, uint8 [F, H, W, 3], their times, and how many frames there were until then."""
    import numpy as np

    frames_FHWC = np.empty((len(indices), 0, 0, 3), np.uint8)
    shown_at: list[float | None] = []
    num_seen = 0
    with open_video(source, name) as (container, stream, reader):
        for frame in container.decode(stream):
            reader.check()
            num_seen += 1
            if num_seen - 1 != indices[len(shown_at)]:
                continue
            if not shown_at:
                first = frame
                check_size(first.width, first.height, f"video {name}")
                num_bytes = len(indices) * first.width * first.height * 3
                if num_bytes > MAX_CLIP_BYTES:
                    raise MediaError(
                        f"video {name}: {len(indices)} frames of {first.width}x{first.height} pixels take "
                        f"{num_bytes / 2**30:.1f} GiB: lower data.media.max_frames or num_frames"
                    )
                frames_FHWC = np.empty((len(indices), *_pixels(first, first).shape), np.uint8)
            frames_FHWC[len(shown_at)] = _pixels(frame, first)
            shown_at.append(frame.time)
            if len(shown_at) == len(indices):
                break
    return frames_FHWC, shown_at, num_seen


def _pixels(frame: VideoFrame, first: VideoFrame) -> np.ndarray:
    """RGB in the size of the clip's first frame, turned upright: phones store portrait clips lying."""
    import numpy as np

    scaled = frame.reformat(width=first.width, height=first.height, format="rgb24")
    return np.rot90(scaled.to_ndarray(), round(first.rotation / 90) % 4)
