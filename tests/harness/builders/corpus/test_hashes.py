"""Texts and pictures that count as the same, as alike, and as neither."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from harness.builders.corpus.fixture import _bars
from harness.builders.corpus.hashes import (
    MIN_TEXT_CHARS,
    BenchmarkHashes,
    NearDuplicates,
    digest,
    image_hash,
    normal_question,
    text_hash,
)
from harness.data.images import ImageFile, decode_image
from harness.errors import UserError
from harness.types import Question

LONG = "Which of the three boats is nearest to the lighthouse?"


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("<image>\nFind  x.", "findx"),
        ("find X", "findx"),
        ("Find \uff58 !", "findx"),
        ("Solve x-1=0", "solvex-1=0"),
        ("Solve x+1=0", "solvex+1=0"),
        ("a<video>b <image>", "ab"),
        ("", ""),
    ],
)
def test_normal_questions(text: str, normal: str) -> None:
    assert normal_question(text) == normal


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("<>image video.! \n"))))
def test_a_normal_question_is_normal(text: str) -> None:
    normal = normal_question(text)
    assert normal_question(normal) == normal
    assert not any(char.isspace() for char in normal) and "<image>" not in normal


@given(st.text(), st.lists(st.sampled_from([" ", "\n", "<image>", "\u3000"]), max_size=3))
def test_marks_and_spaces_do_not_matter(text: str, around: list[str]) -> None:
    assert normal_question("".join(around) + text + "".join(around)) == normal_question(text)


def test_short_texts_have_no_hash() -> None:
    assert text_hash("x" * (MIN_TEXT_CHARS - 1)) is None
    assert text_hash("What is the value of x?") is None
    assert text_hash("x" * MIN_TEXT_CHARS) is not None
    assert text_hash(LONG.upper()) == text_hash(f"<image>{LONG} ") != text_hash(LONG.replace("three", "four"))


@given(st.lists(st.text(max_size=5), max_size=3), st.lists(st.text(max_size=5), max_size=3))
def test_digests_tell_sequences_apart(a: list[str], b: list[str]) -> None:
    assert (digest(*a) == digest(*b)) == (a == b)


def test_a_picture_is_like_itself_in_another_size_and_format() -> None:
    image = _bars(1)
    data = io.BytesIO()
    image.resize((300, 250)).save(data, "JPEG", quality=60)
    other = decode_image(data.getvalue(), "other")
    bits = [bin(int(image_hash(image), 16) ^ int(image_hash(x), 16)).count("1") for x in (image, other, _bars(2))]
    assert bits[0] == 0
    assert bits[1] <= 4 < bits[2]


def test_near_pictures_are_those_within_the_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = BenchmarkHashes(images={f"{0b1111:016x}": "far", f"{0b0111 << 60:016x}": "near"})
    # 0x7 << 60 is 0x7000000000000000: against 0x3000000000000000 one bit differs, against 0xf six.
    monkeypatch.setattr("harness.builders.corpus.hashes.image_hash", lambda image: "3000000000000000")
    image = Image.new("RGB", (4, 4))
    assert NearDuplicates(hashes, 1).of_image(image) == "near"
    assert NearDuplicates(hashes, 0).of_image(image) is None
    assert NearDuplicates(BenchmarkHashes(), 32).of_image(image) is None


def test_questions_of_benchmarks_are_stored_and_found(tmp_path: Path) -> None:
    _bars(1).save(tmp_path / "a.png")
    asked = [
        Question(id="b/1", text=LONG, answer="1", images=(ImageFile(str(tmp_path / "a.png")),)),
        Question(id="b/2", text="Short?", answer="1"),
    ]
    hashes = BenchmarkHashes(missing={"c": "gated"})
    hashes.add("b", asked)
    hashes.save(tmp_path / "h.json")
    again = BenchmarkHashes.load(tmp_path / "h.json")
    assert again == hashes
    assert again.columns == {"b": 2} and len(again.texts) == len(again.images) == 1
    near = NearDuplicates(again, 4)
    assert near.of_text(f"<image>\n{LONG}") == "b/1"
    assert near.of_text("Short?") is None
    assert near.of_image(_bars(1).resize((200, 200))) == "b/1"


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"format": 1}), json.dumps({"format": 0, "texts": {}})])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "h.json"
    path.write_text(content)
    with pytest.raises(UserError, match="zppo data hash --out"):
        BenchmarkHashes.load(path)
