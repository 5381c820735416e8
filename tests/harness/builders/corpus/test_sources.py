"""Which files are read, which schemas are refused, and which rows come out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.builders.corpus.fixture import plain_row, write_mmfinereason, write_vero
from harness.builders.corpus.sources import (
    OpenedSource,
    _commit,
    _name,
    check_schema,
    count_names,
    open_source,
    read_rows,
)
from harness.builders.corpus.tables import SOURCES
from harness.errors import UserError

NAMED = {source.name: source for source in SOURCES}
VERO, MMFINEREASON = NAMED["vero"], NAMED["mmfinereason"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sources")
    write_vero(made / "vero", [plain_row(name, i) for name in ("stem-mmk12", "stem-tqa") for i in range(3)])
    write_mmfinereason(made / "mmfinereason", [plain_row("MMR1", i) for i in range(90)], num_files=2)
    return made


def opened(folder: Path) -> OpenedSource:
    return open_source(MMFINEREASON, str(folder / "mmfinereason"), None)


def test_only_the_training_split_is_read(folder: Path) -> None:
    vero = open_source(VERO, str(folder / "vero"), None)
    names = [f"{config}/train-00000-of-00001.parquet" for config in ("stem-mmk12", "stem-tqa")]
    assert [(file.name, file.num_rows) for file in vero.files] == [(name, 3) for name in names]
    assert vero.revision is None
    assert count_names(vero) == {"mmk12": 3, "tqa": 3}


def test_files_of_the_hub_are_named_without_their_commit() -> None:
    url = "hf://datasets/owner/name@0123abc/stem-tqa/train-00000-of-00001.parquet"
    assert _name(url, None) == "stem-tqa/train-00000-of-00001.parquet"
    assert _commit(url) == "0123abc"
    assert _commit("/data/owner@home/a.parquet") is None


def test_rows_are_read_with_their_bytes_as_they_are(folder: Path) -> None:
    files = opened(folder).files
    rows = [row for batch in read_rows(MMFINEREASON, files[1]) for row in batch]
    # Of rows 0..89 the second of two files has the odd ones, in row groups of 16.
    assert [row.position for row in rows] == list(range(45))
    for index in (0, 20, 44):
        made = plain_row("MMR1", 2 * index + 1)
        assert rows[index].image_bytes() == made.image
        assert dict(rows[index].values) == {
            "subset": "MMR1", "id": made.id, "question": made.question, "answer": made.answer,
            "pass_rate": made.pass_rate,
        }  # fmt: skip


@given(st.sets(st.integers(0, 44)))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_at_positions(folder: Path, positions: set[int]) -> None:
    file = opened_once(folder).files[0]
    rows = [row for batch in read_rows(MMFINEREASON, file, sorted(positions)) for row in batch]
    assert [row.position for row in rows] == sorted(positions)
    assert [row.values["id"] for row in rows] == [plain_row("MMR1", 2 * p).id for p in sorted(positions)]


_opened: dict[Path, OpenedSource] = {}


def opened_once(folder: Path) -> OpenedSource:
    return _opened.setdefault(folder, opened(folder))


def columns(source: str) -> dict[str, pa.DataType]:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    if source == "mmfinereason":
        texts = dict.fromkeys(("source", "question", "answer"), pa.string())
        return {**texts, "id": pa.int64(), "image": image, "pass_rate": pa.float64()}
    return {
        "id": pa.string(),
        "data_source": pa.large_string(),
        "image": image,
        "reward_model": pa.struct([("ground_truth", pa.string())]),
        "extra_info": pa.struct([("question", pa.string())]),
    }


@pytest.mark.parametrize("source", [source.name for source in SOURCES])
def test_the_schemas_that_are_read(source: str) -> None:
    check_schema(NAMED[source], pa.schema(list(columns(source).items())), "a.parquet")
    without_id = [(name, kind) for name, kind in columns(source).items() if name != "id"]
    check_schema(NAMED[source], pa.schema(without_id), "a.parquet")


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("mmfinereason", {"pass_rate": None, "qwen3vl_4b_pass_rate": pa.float64()}, "no column 'pass_rate'"),
        ("mmfinereason", {"pass_rate": pa.string()}, "string in column 'pass_rate', not number"),
        ("mmfinereason", {"answer": None, "solution": pa.string()}, "no column 'answer'"),
        ("mmfinereason", {"source": pa.int64()}, "int64 in column 'source', not text"),
        ("mmfinereason", {"image": pa.list_(pa.struct([("bytes", pa.binary())]))}, "no column 'image.bytes'"),
        ("mmfinereason", {"image": pa.string()}, "no column 'image.bytes'"),
        ("mmfinereason", {"id": pa.float64()}, "double in column 'id', not id"),
        ("vero", {"extra_info": pa.string()}, "no column 'extra_info.question'"),
        ("vero", {"reward_model": pa.struct([("style", pa.string())])}, "no column 'reward_model.ground_truth'"),
        ("vero", {"image": pa.struct([("bytes", pa.string())])}, "string in column 'image.bytes', not image"),
        ("vero", {"data_source": None}, "no column 'data_source'"),
    ],
)
def test_changed_schemas_are_refused_by_name(source: str, changes: dict[str, Any], message: str) -> None:
    kinds = {name: kind for name, kind in (columns(source) | changes).items() if kind is not None}
    with pytest.raises(UserError) as error:
        check_schema(NAMED[source], pa.schema(list(kinds.items())), "here/a.parquet")
    assert "here/a.parquet" in str(error.value) and message in str(error.value)
    assert f"--{source}-revision" in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_training_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("nothing")
    with pytest.raises(UserError, match=r"--vero: .* has no parquet files of a split 'train'"):
        open_source(VERO, str(tmp_path), None)
    with pytest.raises(UserError, match="hf download"):
        open_source(VERO, str(tmp_path / "missing"), None)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_mmfinereason(tmp_path, [plain_row("MMR1", 1)], num_files=1)
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"train-00000-of-00001.parquet cannot be read .* downloaded anew"):
        open_source(MMFINEREASON, str(tmp_path), None)


def test_empty_cells_of_records_are_none(tmp_path: Path) -> None:
    made = columns("mmfinereason")
    record = {"source": "MMR1", "question": "q", "answer": None, "id": 1, "image": None, "pass_rate": None}
    (tmp_path / "data").mkdir()
    table = pa.Table.from_pylist([record], schema=pa.schema(list(made.items())))
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    file = open_source(MMFINEREASON, str(tmp_path), None).files[0]
    ((row,),) = read_rows(MMFINEREASON, file)
    assert row.image_bytes() is None and row.values["answer"] is None
