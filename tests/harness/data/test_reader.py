"""The deadline of decoders, which rises with the bytes, and the bound on those."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import pytest
from PIL import Image

from harness.data import reader as readers
from harness.data.images import MediaError, decode_image
from harness.data.reader import Reader
from harness.data.video import decode_video
from harness.types import MediaLimits
from tests.harness.data.conftest import tiny_samples, write_clip


def test_the_time_rises_with_the_bytes_up_to_an_hour(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(4 << 30)
    assert Reader(bytes(3 << 20), "x", 1 << 30).seconds == 126
    assert Reader(tmp_path / "large", "x", 8 << 30).seconds == 3600


@pytest.mark.parametrize("source", ["bytes", "path"])
def test_more_bytes_than_are_taken_are_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "a").write_bytes(bytes(2 << 20))
    with pytest.raises(MediaError, match=r"^it has more than 1 MiB$"):
        Reader(tmp_path / "a" if source == "path" else bytes(2 << 20), "it", 1 << 20)


def test_a_picture_and_a_clip_end_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "PNG")
    clip = write_clip(tmp_path / "a.mp4", num_frames=3)
    monkeypatch.setattr(readers, "GRACE_SECONDS", -1.0)
    with pytest.raises(MediaError, match="image p was not decoded within"):
        decode_image(picture.getvalue(), "p")
    with pytest.raises(MediaError, match=r"video .*a.mp4 was not decoded within"):
        decode_video(clip, str(clip), MediaLimits())


def test_frames_without_bytes_end_at_the_deadline_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read at once; what it announces is long. The clock moves a second whenever somebody looks."""
    seconds = itertools.count()
    monkeypatch.setattr(readers.time, "monotonic", lambda: float(next(seconds)))
    with pytest.raises(MediaError, match="video x was not decoded within 120 s"):
        decode_video(tiny_samples(2000), "x", MediaLimits())
