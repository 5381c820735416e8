from __future__ import annotations

import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.config import ColumnsConfig, DataConfig, MediaConfig
from harness.data.files import load_jsonl, load_parquet, text_of
from harness.data.media import ImageFile, MediaError
from harness.data.video import VideoFile
from harness.errors import UserError
from harness.types import MediaLimits, Question

GOOD = {"question": "1+1?", "answer": "2"}


def write_jsonl(path: Path, lines: list[Any]) -> Path:
    """Records become JSON, text is written as it stands."""
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
    return path


def jsonl(path: Path, **options: Any) -> DataConfig:
    return DataConfig(source="jsonl", path=str(path), **options)


def parquet(path: Path, **options: Any) -> DataConfig:
    return DataConfig(source="parquet", path=str(path), **options)


def png(grey: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (4, 3), (grey, grey, grey)).save(data, "PNG")
    return data.getvalue()


def greys(question: Question) -> list[Any]:
    """How bright each of its pictures is."""
    return [image.open().getpixel((0, 0))[0] for image in question.images]  # type: ignore[index]


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
    assert (question.id, question.text, question.answer, question.answer_type) == ("17", "Which?", "B", "choice")
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


def test_parquet_rows_become_questions(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    records = [
        {"q": {"text": "a?", "lang": "en"}, "extra.gold": 3.0, "choices": ["x", "y"], "image": b"\x00"},
        {"q": {"text": None, "lang": "en"}, "extra.gold": 1.0, "choices": None, "image": b"\x00"},
        {"q": {"text": "b?", "lang": "en"}, "extra.gold": 0.5, "choices": None, "image": b"\x00"},
    ]
    pq.write_table(pa.Table.from_pylist(records), path, row_group_size=2)
    columns = ColumnsConfig(question="q.text", answer="extra.gold")
    rows = load_parquet(parquet(path, columns=columns, max_bad_fraction=0.5))
    assert [(q.id, q.text, q.answer, q.metadata) for q in rows.questions] == [
        ("train/1", "a?", "3", {"choices": ["x", "y"]}),
        ("train/3", "b?", "0.5", {}),
    ]
    assert rows.messages() == [f"{path}:2: 'q.text' is empty"]


def test_parquet_names_missing_columns_and_unreadable_files(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"questions": ["a?"], "answer": ["1"]}), path)
    with pytest.raises(UserError, match=r"no column 'question': .*'questions'"):
        load_parquet(parquet(path))
    pq.write_table(pa.table({"question": pa.array([], pa.string()), "answer": pa.array([], pa.string())}), path)
    with pytest.raises(UserError, match="is empty"):
        load_parquet(parquet(path))
    path.write_bytes(b"PAR1 no parquet at all PAR1")
    with pytest.raises(UserError, match="is not readable parquet"):
        load_parquet(parquet(path))


def test_parquet_with_a_damaged_page_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"question": [f"{i}?" for i in range(500)], "answer": ["1"] * 500}), path)
    data = bytearray(path.read_bytes())
    data[4:400] = b"\xff" * 396  # the first page: header and compressed values
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="is not readable parquet"):
        load_parquet(parquet(path))


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
        ({"images": ["a.png", {"path": "b.png"}]}, "'images' holds a dict, not the path of an image"),
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


def test_parquet_pictures_with_features(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "train.parquet"
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "answer": datasets.Value("string"),
            "picture": datasets.Image(),
            "images": datasets.List(datasets.Image()),
        }
    )
    records = [
        {"picture": {"bytes": png(1)}, "images": [{"bytes": png(2)}, {"bytes": png(3)}]},
        {"picture": None, "images": []},
        {"picture": {"bytes": png(4)}, "images": None},
    ]
    datasets.Dataset.from_list([GOOD | r for r in records], features=features).to_parquet(path)
    rows = load_parquet(parquet(path))
    assert [greys(q) for q in rows.questions] == [[2, 3], [], []]
    assert [image.name for image in rows.questions[0].images] == [f"{path}:1:images[0]", f"{path}:1:images[1]"]
    assert rows.questions[0].limits == MediaConfig().limits()
    single = load_parquet(parquet(path, columns=ColumnsConfig(images="picture"))).questions
    assert [greys(q) for q in single] == [[1], [], [4]]
    assert single[2].images[0].name == f"{path}:3:picture"
    with pytest.raises(UserError, match=r"no column 'pictures': set data.columns.images .*'picture'"):
        load_parquet(parquet(path, columns=ColumnsConfig(images="pictures")))


def test_parquet_pictures_without_features(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "a.parquet"
    (tmp_path / "b.png").write_bytes(png(2))
    records = [
        GOOD | {"images": [{"bytes": png(1), "path": "x.png"}, {"bytes": None, "path": "b.png"}], "video": b"clip"},
        GOOD | {"images": None, "video": None},
        GOOD | {"images": [{"bytes": None, "path": None}], "video": None},
        GOOD | {"images": [{"bytes": None, "path": "c.png"}], "video": b""},
    ]
    pq.write_table(pa.Table.from_pylist(records), path, row_group_size=2)
    rows = load_parquet(parquet(path, max_bad_fraction=0.5))
    assert rows.bad == {3: "an entry of 'images' is empty"}
    first, second, last = rows.questions
    assert (greys(first), second.images, second.video) == ([1, 2], (), None)
    assert first.video is not None and first.video.name == f"{path}:1:video"
    with pytest.raises(MediaError, match=r"^video .*a.parquet:1:video cannot be decoded"):
        first.video.open(MediaLimits())
    with pytest.raises(MediaError, match=r"^image .*a.parquet:4:images\[0\] \(.*c.png\) does not exist"):
        last.images[0].open()


@pytest.mark.parametrize("column", ["deep.image", "image"])
def test_parquet_of_raw_bytes_nested_or_not(tmp_path: Path, cache: Path, column: str) -> None:
    path = tmp_path / "a.parquet"
    records = [
        {"deep": {"q": f"{i}?", "image": png(i)}, "image": png(i), "answer": str(i), "choices": ["x"]} for i in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(records), path)
    rows = load_parquet(parquet(path, columns=ColumnsConfig(question="deep.q", images=column)))
    assert [(q.text, greys(q)) for q in rows.questions] == [("0?", [0]), ("1?", [1]), ("2?", [2])]
    assert rows.questions[0].metadata == {"choices": ["x"]}
    if column == "image":
        tables = list(cache.rglob("*.arrow"))
        assert len(tables) == 1  # only the pictures are copied to where single rows can be read
        assert datasets.Dataset.from_file(str(tables[0])).column_names == ["image"]


def test_parquet_paths_need_no_table(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "a.parquet"
    records = [GOOD | {"images": ["a.png", "b.png"], "video": "c.mp4"}, GOOD | {"images": None, "video": None}]
    pq.write_table(pa.Table.from_pylist(records), path)
    first, second = load_parquet(parquet(path)).questions
    assert first.images == (ImageFile(f"{tmp_path}/a.png"), ImageFile(f"{tmp_path}/b.png"))
    assert first.video == VideoFile(f"{tmp_path}/c.mp4")
    assert (second.images, second.video) == ((), None)
    assert not cache.exists()


def test_parquet_column_of_another_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([GOOD | {"images": 3}]), path)
    with pytest.raises(UserError) as error:
        load_parquet(parquet(path))
    assert str(error.value) == (
        f"{path}: column 'images' is int64, neither paths nor encoded bytes: "
        "set data.columns.images to another column, or to null to ignore it"
    )
    assert load_parquet(parquet(path, columns=ColumnsConfig(images=None))).questions[0].images == ()


def test_a_changed_parquet_file_is_read_anew(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "a.parquet"
    for grey in (5, 6):
        pq.write_table(pa.Table.from_pylist([GOOD | {"images": png(grey)}]), path)
        assert greys(load_parquet(parquet(path)).questions[0]) == [grey]


def test_references_of_a_large_table_hold_no_pictures(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "a.parquet"
    records = [GOOD | {"images": [bytes(50_000)] * 4} for _ in range(200)]
    pq.write_table(pa.Table.from_pylist(records), path, row_group_size=20)  # 40 MB of pictures
    load_parquet(parquet(path))  # fills the cache
    before = pa.total_allocated_bytes()
    rows = load_parquet(parquet(path))
    assert len(rows.questions) == 200 and len(rows.questions[0].images) == 4
    assert pa.total_allocated_bytes() - before < 1_000_000


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
