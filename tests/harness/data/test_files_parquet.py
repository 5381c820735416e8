"""Parquet: rows and pictures of a file, and a folder of files with the same columns, which is one table."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness.config.data import ColumnsConfig, DataConfig
from harness.config.evaluation import MediaConfig
from harness.data.files import UNFINISHED, load_parquet
from harness.data.images import ImageFile, MediaError
from harness.data.video import VideoFile
from harness.errors import UserError
from harness.types import MediaLimits, Question

GOOD = {"question": "1+1?", "answer": "2"}


def parquet(path: Path, **options: Any) -> DataConfig:
    return DataConfig(source="parquet", path=str(path), **options)


def png(grey: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (4, 3), (grey, grey, grey)).save(data, "PNG")
    return data.getvalue()


def greys(question: Question) -> list[Any]:
    """How bright each of its pictures is."""
    return [image.open().getpixel((0, 0))[0] for image in question.images]  # type: ignore[index]


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
        ("train/1", "a?\n\nA. x\nB. y", "3", {"choices": ["x", "y"]}),
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
        {"deep": {"q": f"{i}?", "image": png(i)}, "image": png(i), "answer": str(i), "choices": ["x", "y"]}
        for i in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(records), path)
    rows = load_parquet(parquet(path, columns=ColumnsConfig(question="deep.q", images=column)))
    assert [(q.text, greys(q)) for q in rows.questions] == [(f"{i}?\n\nA. x\nB. y", [i]) for i in range(3)]
    assert rows.questions[0].metadata == {"choices": ["x", "y"]}
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


def write_shards(folder: Path) -> Path:
    """Three rows in two files, the second of which has a picture in its first row only."""
    folder.mkdir()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("question", pa.string()), ("answer", pa.string()), ("images", kind)])
    pictures = [{"bytes": png(i), "path": None} for i in range(2)]
    rows = [{**GOOD, "question": f"q{i}", "images": image} for i, image in enumerate([*pictures, None])]
    pq.write_table(pa.Table.from_pylist(rows[:1], schema=schema), folder / "train-00000-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(rows[1:], schema=schema), folder / "train-00001-of-00002.parquet")
    return folder


def test_the_rows_of_a_folder_are_those_of_its_files(tmp_path: Path, cache: Path) -> None:
    rows = load_parquet(parquet(write_shards(tmp_path / "corpus.v1")))
    assert [(q.id, q.text, greys(q)) for q in rows.questions] == [
        ("corpus.v1/1", "q0", [0]), ("corpus.v1/2", "q1", [1]), ("corpus.v1/3", "q2", []),
    ]  # fmt: skip


def test_folders_that_are_no_table(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not a file and has no"):
        load_parquet(parquet(tmp_path / "empty"))
    folder = write_shards(tmp_path / "two")
    pq.write_table(pa.table({"question": ["q"], "answer": ["a"]}), folder / "train-00002.parquet")
    with pytest.raises(UserError, match=r"train-00002.parquet has no column 'images', which train-00000.*has"):
        load_parquet(parquet(folder))
    (folder / UNFINISHED).mkdir()
    with pytest.raises(UserError, match="whose build has not ended: launch its zppo data build again"):
        load_parquet(parquet(folder))
