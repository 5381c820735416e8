"""Clips: which frames are shown, containers, rotation, and damaged files by name."""

from __future__ import annotations

import gc
import os
import struct
import threading
import wave
import weakref
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest

from harness.data.images import MediaError
from harness.data.reader import Reader
from harness.data.video import VideoFile, choose_frames, decode_video
from harness.types import MediaLimits
from tests.harness.data.conftest import shown, tiny_samples, write_clip


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
        ("wave", "is no clip of the containers that are read (MP4, Matroska, AVI, ...)"),
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


def test_clips_are_not_kept(tmp_path: Path) -> None:
    reference = VideoFile(str(write_clip(tmp_path / "a.mp4", num_frames=5)))
    opened = [weakref.ref(reference.open(MediaLimits()).frames_FHWC) for _ in range(5)]
    gc.collect()
    assert [frames() for frames in opened] == [None] * 5


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """An address on this machine, and what was asked of it."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/clip.mp4", paths
        server.shutdown()


LISTS = {
    "sdp": "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 50044 RTP/AVP 96\r\n"
    "a=rtpmap:96 H264/90000\r\n",
    "ffconcat": "ffconcat version 1.0\nfile {file}\n",
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_clip_names_no_other_place(tmp_path: Path, asked: tuple[str, list[str]], kind: str) -> None:
    """FFmpeg knows formats that are lists of addresses, or say where to listen."""
    url, paths = asked
    text = LISTS[kind].format(url=url, file=write_clip(tmp_path / "other.mp4", num_frames=2))
    (tmp_path / f"a.{kind}").write_text(text)
    for source in (text.encode(), tmp_path / f"a.{kind}"):
        with pytest.raises(MediaError, match=r"is no clip of the containers|Invalid data"):
            decode_video(source, "a", MediaLimits())
    assert paths == []


@pytest.mark.parametrize("path", ["{url}", "tcp:{url}", "concat:{file}|{file}", "file:{file}", "data:video/mp4,AA"])
def test_a_path_is_no_address(tmp_path: Path, asked: tuple[str, list[str]], path: str) -> None:
    url, paths = asked
    name = path.format(url=url, file=write_clip(tmp_path / "other.mp4", num_frames=2))
    with pytest.raises(MediaError, match="does not exist"):
        VideoFile(name).open(MediaLimits())
    assert paths == []


def test_a_pipe_or_a_device_is_no_clip(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "endless.mp4").symlink_to("/dev/zero")
    for name in ("pipe.mp4", "endless.mp4"):
        with pytest.raises(MediaError, match=f"{name} is no regular file"):
            VideoFile(str(tmp_path / name)).open(MediaLimits())


def test_packets_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these bytes is a packet, and a packet that is kept takes hundreds of bytes."""
    data, alive, num_asked = tiny_samples(4000), [], 0
    check = Reader.check

    def counting(reader: Reader) -> None:
        nonlocal num_asked
        num_asked += 1
        if num_asked % 1500 == 0:
            alive.append(sum(isinstance(thing, av.Packet) for thing in gc.get_objects()))
        check(reader)

    monkeypatch.setattr(Reader, "check", counting)
    with pytest.raises(MediaError, match="cannot be decoded"):
        decode_video(data, "a", MediaLimits(num_frames=2))
    assert len(alive) >= 2 and max(alive) < 10
    monkeypatch.setattr("harness.data.video.MAX_NUM_FRAMES", 3999)
    with pytest.raises(MediaError, match="video a has more than 3999 frames"):
        decode_video(data, "a", MediaLimits(num_frames=2))
