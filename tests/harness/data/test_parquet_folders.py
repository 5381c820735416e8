"""A folder of parquet files with the same columns is one table."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness.config import DataConfig
from harness.data.files import UNFINISHED, load_parquet
from harness.errors import UserError
from harness.types import Question

GOOD = {"question": "1+1?", "answer": "2"}


def parquet(path: Path) -> DataConfig:
    return DataConfig(source="parquet", path=str(path))


def png(grey: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (4, 3), (grey, grey, grey)).save(data, "PNG")
    return data.getvalue()


def greys(question: Question) -> list[Any]:
    """How bright each of its pictures is."""
    return [image.open().getpixel((0, 0))[0] for image in question.images]  # type: ignore[index]


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
    with pytest.raises(UserError, match=r"train-00002.parquet has other columns than .*train-00000-of-00002.parquet"):
        load_parquet(parquet(folder))
    (folder / UNFINISHED).mkdir()
    with pytest.raises(UserError, match="whose build has not ended: launch its zppo data build again"):
        load_parquet(parquet(folder))
