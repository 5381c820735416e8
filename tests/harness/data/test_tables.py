"""Pictures and clips in the cells of tables: their names, opened when they are read, never kept."""

from __future__ import annotations

import gc
import pickle
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from harness.data.images import ImageFile, MediaError
from harness.data.tables import MediaTable, TableImage, TableVideo
from harness.types import MediaLimits
from tests.harness.data.conftest import shown, write_clip


@pytest.fixture
def table(tmp_path: Path) -> MediaTable:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 6), (7, 7, 7)).save(path)
    clip = write_clip(tmp_path / "a.mp4", num_frames=5).read_bytes()
    data = path.read_bytes()
    dataset = datasets.Dataset.from_dict(
        {
            "image": [data, None, b"", b"x"],
            "images": [
                [{"bytes": data, "path": None}, {"bytes": None, "path": "a.png"}],
                [],
                None,
                [None, {"bytes": None, "path": "b.png"}],
            ],
            "deep": [{"clip": {"bytes": clip, "path": "x.mp4"}}, None, {"clip": None}, {"clip": {"bytes": b"x"}}],
        }
    )
    return MediaTable.of(dataset, origin="t", folder=str(tmp_path))


def names(values: Any) -> list[Any]:
    def name(value: Any) -> Any:
        return [name(v) for v in value] if isinstance(value, list) else value and value.name

    return [name(value) for value in values]


def test_cells_are_named_and_the_empty_ones_are_none(table: MediaTable) -> None:
    assert names(table.references("image", "images")) == ["t:1:image", None, "t:3:image", "t:4:image"]
    assert names(table.references("images", "images")) == [
        ["t:1:images[0]", "t:1:images[1]"],
        [],
        None,
        [None, "t:4:images[1]"],
    ]
    assert names(table.references("deep.clip", "video")) == ["t:1:deep.clip", None, None, "t:4:deep.clip"]


def test_cells_are_read_when_they_are_opened(table: MediaTable) -> None:
    for image in (
        TableImage(table, 1, "image", None),
        TableImage(table, 1, "images", 0),
        TableImage(table, 1, "images", 1),
    ):
        assert image.open().getpixel((0, 0)) == (7, 7, 7)
    assert shown(TableVideo(table, 1, "deep.clip", None).open(MediaLimits(num_frames=2))) == [0, 4]


def test_bad_cells_are_named(table: MediaTable, tmp_path: Path) -> None:
    for image, message in (
        (TableImage(table, 3, "image", None), "image t:3:image is no image"),
        (TableImage(table, 4, "image", None), "image t:4:image is no image"),
        (TableImage(table, 4, "images", 1), f"image t:4:images[1] ({tmp_path / 'b.png'}) does not exist"),
    ):
        with pytest.raises(MediaError) as error:
            image.open()
        assert str(error.value).startswith(message)
    with pytest.raises(MediaError, match=r"^video t:4:deep.clip cannot be decoded"):
        TableVideo(table, 4, "deep.clip", None).open(MediaLimits())


def test_cells_have_a_place_in_sets_and_travel_to_other_processes(table: MediaTable) -> None:
    cell = TableImage(table, 1, "images", 1)
    copy = pickle.loads(pickle.dumps(cell))
    assert len({cell, copy, TableImage(table, 1, "images", 1), TableImage(table, 1, "images", 0)}) == 2
    assert copy.open().size == (8, 6)


def test_opened_pictures_are_not_kept(table: MediaTable, tmp_path: Path) -> None:
    Image.new("RGB", (1000, 1000)).save(tmp_path / "large.png")
    references = [ImageFile(str(tmp_path / "large.png")), TableImage(table, 1, "image", None)] * 10
    references[0].open()
    tracemalloc.start()
    opened = [weakref.ref(reference.open()) for reference in references]
    gc.collect()
    assert [picture() for picture in opened] == [None] * 20
    assert tracemalloc.get_traced_memory()[0] < 500_000
    tracemalloc.stop()
