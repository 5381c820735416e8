from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config.data import ColumnsConfig, DataConfig
from harness.config.evaluation import MediaConfig
from harness.data.files import load_jsonl, load_parquet, text_of
from harness.data.images import ImageFile
from harness.data.video import VideoFile
from harness.errors import UserError
from harness.types import MediaLimits

GOOD = {"question": "1+1?", "answer": "2"}


def write_jsonl(path: Path, lines: list[Any]) -> Path:
    """Records become JSON, text is written as it stands."""
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
    return path


def jsonl(path: Path, **options: Any) -> DataConfig:
    return DataConfig(source="jsonl", path=str(path), **options)


def test_jsonl_rows_become_questions(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "train.jsonl", [GOOD, "", "   ", {"question": " 2+2? ", "answer": 4.0}])
    rows = load_jsonl(jsonl(path))
    assert [(q.id, q.text, q.answer, q.answer_type, q.source, q.metadata) for q in rows.questions] == [
        ("train/1", "1+1?", "2", "math", "train", {}),
        ("train/4", "2+2?", "4", "math", "train", {}),
    ]
    assert (rows.numbers, rows.bad) == ([1, 4], {})


def test_byte_order_mark_and_windows_line_ends_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + '{"question": "Größe?", "answer": "7"}\r\n'.encode())
    assert load_jsonl(jsonl(path)).questions[0].text == "Größe?"


def test_columns_are_mapped_and_nested(tmp_path: Path) -> None:
    record = {"prompt": {"text": "Which?"}, "extra.gold": "B", "key": 17, "kind": "choice", "choices": ["x", 2, 2.5]}
    path = write_jsonl(tmp_path / "a.jsonl", [record])
    columns = ColumnsConfig(question="prompt.text", answer="extra.gold", id="key", answer_type="kind")
    question = load_jsonl(jsonl(path, columns=columns)).questions[0]
    assert (question.id, question.text, question.answer, question.answer_type) == (
        "17",
        "Which?\n\nA. x\nB. 2\nC. 2.5",
        "B",
        "choice",
    )
    assert question.metadata == {"choices": ["x", "2", "2.5"]}


def test_choices_that_are_no_list_are_left_alone(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD | {"choices": "A or B"}])
    assert load_jsonl(jsonl(path)).questions[0].metadata == {}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"question": ', "not JSON (Expecting value at column 13)"),
        ("[1, 2]", "not a JSON object"),
        ('{"answer": "2"}', "no column 'question'"),
        ('{"question": "1+1?"}', "no column 'answer'"),
        ('{"question": "", "answer": "2"}', "'question' is empty"),
        ('{"question": "1+1?", "answer": "  "}', "'answer' is empty"),
        ('{"question": "1+1?", "answer": null}', "'answer' is empty"),
        ('{"question": ["1+1?"], "answer": "2"}', "'question' is a list, not text or a number"),
        ('{"question": "1+1?", "answer": {"a": 1}}', "'answer' is a dict, not text or a number"),
        ('{"question": "1+1?", "answer": NaN}', "'answer' is nan, not a finite number"),
        ('{"question": "\\ud83d", "answer": "2"}', "'question' holds half a surrogate pair, which no tokenizer takes"),
        ('{"question": "1+1?", "answer": "2", "choices": [[]]}', "an entry of 'choices' is a list"),
        ('{"question": "1+1?", "answer": ' + "1" * 5000 + "}", "not usable JSON"),
        ('{"question": ' + "[" * 200_000, "not usable JSON"),
    ],
)
def test_a_bad_row_is_skipped_and_named(tmp_path: Path, line: str, reason: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD, line, GOOD])
    rows = load_jsonl(jsonl(path, max_bad_fraction=0.5))
    assert [q.id for q in rows.questions] == ["a/1", "a/3"]
    assert len(rows.messages()) == 1
    assert rows.messages()[0].startswith(f"{path}:2: {reason}")


def test_a_line_that_is_not_utf8_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"question": "\xff", "answer": "2"}\n')
    assert load_jsonl(jsonl(path, max_bad_fraction=0.5)).bad == {2: "not UTF-8"}


def test_duplicate_id_is_a_bad_row(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD | {"id": 1}, GOOD | {"id": "1"}, GOOD | {"id": 2}])
    rows = load_jsonl(jsonl(path, columns=ColumnsConfig(id="id"), max_bad_fraction=0.5))
    assert [q.id for q in rows.questions] == ["1", "2"]
    assert rows.bad == {2: "id '1' was used before, in row 1"}


@pytest.mark.parametrize("kind", ["maths", "reasoning_gym"])
def test_unknown_answer_type_is_a_bad_row(tmp_path: Path, kind: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD | {"kind": "text"}, GOOD | {"kind": kind}])
    rows = load_jsonl(jsonl(path, columns=ColumnsConfig(answer_type="kind"), max_bad_fraction=0.5))
    assert [q.answer_type for q in rows.questions] == ["text"]
    assert rows.bad[2].startswith(f"answer type '{kind}' is not known.")


def test_share_of_bad_rows_is_inclusive_and_names_the_first(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD] * 71 + ["{", "["] + ["x"] * 27)
    # 29 of 100; 0.29 * 100 is 28.999... in floating point and must not refuse the file
    assert len(load_jsonl(jsonl(path, max_bad_fraction=0.29)).bad) == 29
    with pytest.raises(UserError) as error:
        load_jsonl(jsonl(path, max_bad_fraction=0.28))
    assert str(error.value) == (
        f"{path}:72: not JSON (Expecting property name enclosed in double quotes at column 2) "
        "(29 of 100 rows are bad, data.max_bad_fraction=0.28): fix the rows or raise data.max_bad_fraction"
    )


def test_missing_column_suggests_the_nearest(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"problem": "1+1?", "extra": {"answer": "2"}}])
    with pytest.raises(UserError, match=r"no column 'problems': set data.columns.question .*Did you mean 'problem'\?"):
        load_jsonl(jsonl(path, columns=ColumnsConfig(question="problems", answer="extra.answer")))
    with pytest.raises(UserError, match=r"set data.columns.answer .*'extra.answer'"):
        load_jsonl(jsonl(path, columns=ColumnsConfig(question="problem", answer="extra.answers")))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match="is empty"):
        load_jsonl(jsonl(path))


@pytest.mark.parametrize("load", [load_jsonl, load_parquet])
def test_missing_file_and_folder_are_refused(tmp_path: Path, load: Any) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError, match="is not a file"):
            load(jsonl(path))


def test_jsonl_rows_name_their_media(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    media: list[dict[str, Any]] = [
        {"images": "a.png"},
        {"images": ["sub/a.png", "/abs/b.png", "~/c.png"], "video": "clip.mp4"},
        {"images": [], "video": None},
        {"images": None, "video": ""},
        {},
        {"video": ["d.mp4"]},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD | m for m in media])
    questions = load_jsonl(jsonl(path, media=MediaConfig(4, 9, None, 8, 16))).questions
    assert [q.images for q in questions] == [
        (ImageFile(f"{tmp_path}/a.png"),),
        (ImageFile(f"{tmp_path}/sub/a.png"), ImageFile("/abs/b.png"), ImageFile("/home/someone/c.png")),
        (),
        (),
        (),
        (),
    ]
    clips = [None if q.video is None else q.video.name for q in questions]
    assert clips == [None, f"{tmp_path}/clip.mp4", None, None, None, f"{tmp_path}/d.mp4"]
    assert isinstance(questions[1].video, VideoFile)
    assert {q.limits for q in questions} == {MediaLimits(4, 9, None, 8, 16)}


def test_media_columns_are_mapped_ignored_and_missed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD | {"images": 3, "extra": {"picture": "a.png"}}])
    question = load_jsonl(jsonl(path, columns=ColumnsConfig(images="extra.picture"))).questions[0]
    assert question.images == (ImageFile(f"{tmp_path}/a.png"),)
    assert load_jsonl(jsonl(path, columns=ColumnsConfig(images=None))).questions[0].images == ()
    with pytest.raises(UserError, match=r"no column 'extra.pictures': set data.columns.images .*'extra.picture'"):
        load_jsonl(jsonl(path, columns=ColumnsConfig(images="extra.pictures")))
    with pytest.raises(UserError, match=r"no column 'clip': set data.columns.video"):
        load_jsonl(jsonl(path, columns=ColumnsConfig(images=None, video="clip")))


@pytest.mark.parametrize(
    ("media", "reason"),
    [
        ({"images": 3}, "'images' holds a int, not the path of an image"),
        ({"images": ["a.png", {"name": "b.png"}]}, "'images' holds a record without bytes and path"),
        ({"images": ["a.png", None]}, "an entry of 'images' is empty"),
        ({"images": [""]}, "an entry of 'images' is empty"),
        ({"video": 1.5}, "'video' is a float, not the path of a video"),
        ({"video": ["a.mp4", "b.mp4"]}, "'video' holds 2 videos: a question has one"),
    ],
)
def test_media_that_are_no_paths_are_bad_rows(tmp_path: Path, media: Any, reason: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD, GOOD | media])
    rows = load_jsonl(jsonl(path, max_bad_fraction=0.5))
    assert rows.messages() == [f"{path}:2: {reason}"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (" 1,000 ", "1,000"),
        (7, "7"),
        (-3.0, "-3"),
        (100.0, "100"),
        (0.1, "0.1"),
        (1e-7, "0.0000001"),
        (1e21, "1" + "0" * 21),
        (Decimal("2.50"), "2.5"),
        (True, "True"),
    ],
)
def test_text_of_scalars(value: Any, text: str) -> None:
    assert text_of(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers())
@settings(max_examples=60, deadline=None)
def test_text_of_keeps_the_number(value: float | int) -> None:
    assert type(value)(text_of(value)) == value
