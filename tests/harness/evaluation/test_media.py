"""What stands for a picture or clip in cards and keys: its content, whatever its name."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from harness.data.bars import BarClip, BarImage
from harness.data.frames import FrameFolder, VideoPart
from harness.data.images import ImageFile, MediaError
from harness.data.video import VideoFile
from harness.evaluation.benchmarks.competition import DataUrlImage
from harness.evaluation.media import MediaDigests
from harness.types import Question


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def digest(medium: Any, *, video: bool = False) -> str:
    """As a new evaluation sees it."""
    shown = {"video": medium} if video else {"images": (medium,)}
    (found,) = MediaDigests().of(Question(id="q", text="", answer="", **shown))
    return found


def test_a_file_is_what_it_holds_not_what_it_is_called(tmp_path: Path) -> None:
    path, other = tmp_path / "a.png", tmp_path / "b.png"
    path.write_bytes(png("red"))
    other.write_bytes(png("red"))
    red = digest(ImageFile(str(path)))
    assert digest(ImageFile(str(other))) == red
    path.write_bytes(png("blue"))
    assert digest(ImageFile(str(path))) != red
    assert digest(VideoFile(str(path)), video=True) != digest(VideoFile(str(other)), video=True)


def test_a_part_of_a_clip_is_not_the_clip(tmp_path: Path) -> None:
    path = str(tmp_path / "a.mp4")
    Path(path).write_bytes(b"moving pictures")
    found = {
        digest(clip, video=True) for clip in (VideoFile(path), VideoPart(path, 0.0, 1.0), VideoPart(path, 0.0, 2.0))
    }
    assert len(found) == 3


def test_frames_count_with_their_order_rate_and_span(tmp_path: Path) -> None:
    for name, colours in (("a", ("red", "blue")), ("b", ("blue", "red")), ("c", ("red", "blue"))):
        (tmp_path / name).mkdir()
        for i, colour in enumerate(colours):
            (tmp_path / name / f"{i}.png").write_bytes(png(colour))
    a, b, c = (str(tmp_path / name) for name in "abc")
    clips = [FrameFolder(a, 3.0), FrameFolder(b, 3.0), FrameFolder(a, 2.0), FrameFolder(a, 3.0, 0.0, 0.5)]
    assert len({digest(clip, video=True) for clip in clips}) == 4
    assert digest(FrameFolder(c, 3.0), video=True) == digest(FrameFolder(a, 3.0), video=True)


def test_recipes_and_texts_are_their_own_content() -> None:
    bars = [BarImage((3, 4), (0, 0)), BarImage((3, 5), (0, 0)), BarImage((3, 4), (0, 1))]
    assert len({digest(image) for image in bars}) == 3
    assert digest(BarClip((3, 4), (0, 0)), video=True) != digest(BarClip((4, 3), (0, 0)), video=True)
    assert digest(DataUrlImage("row", "data:,a")) != digest(DataUrlImage("row", "data:,b"))


def test_what_is_no_file_is_named_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in (
        ("pipe.png", "is no regular file"),
        ("", "is a folder"),
        ("none.png", "does not exist"),
    ):
        path = str(tmp_path / name)
        with pytest.raises(MediaError, match=rf"^image {re.escape(path)} {re.escape(reason)}$"):
            digest(ImageFile(path))


@dataclass(frozen=True)
class Counted:
    """A picture that notes when it is read."""

    name: str
    read: list[str] = field(default_factory=list, compare=False)

    def open(self) -> Any:
        raise AssertionError("a digest decodes nothing")

    def content(self) -> Iterator[bytes]:
        self.read.append(self.name)
        yield b"content"


def test_a_clip_of_three_questions_is_read_once() -> None:
    digests, shown = MediaDigests(), Counted("a")
    question = Question(id="q", text="", answer="", images=(shown, Counted("b")), video=shown)  # type: ignore[arg-type]
    first, second, third = digests.of(question)
    assert digests.of(question) == [first, second, third] and first == second == third
    assert shown.read == ["a"]
