from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import datasets
import numpy as np
import pytest
from PIL import Image

from harness.config.data import ColumnsConfig, DataConfig
from harness.data.hub import load_hub
from harness.data.images import ImageFile
from harness.errors import UserError
from harness.types import MediaLimits

GOOD = {"question": "1+1?", "answer": "2"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def hub(path: Any, **options: Any) -> DataConfig:
    return DataConfig(source="hub", path=str(path), **options)


def png(grey: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (4, 3), (grey, grey, grey)).save(data, "PNG")
    return data.getvalue()


def clip() -> bytes:
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(3):
            pixels = np.full((32, 32, 3), 50 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return data.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of two splits, laid out like one on the hub."""
    path = tmp_path / "sums"
    features = datasets.Features(
        {
            "problem": {"text": datasets.Value("string"), "picture": datasets.Image()},
            "answer": datasets.Value("float64"),
            "images": datasets.List(datasets.Image()),
            "video": datasets.Video(),
            "choices": datasets.List(datasets.Value("string")),
        }
    )
    records = [
        {
            "problem": {"text": "a?", "picture": {"bytes": png(1)}},
            "answer": 3.0,
            "images": [{"bytes": png(2)}, {"bytes": png(3)}],
            "video": {"bytes": clip()},
            "choices": ["x", "y"],
        },
        {"problem": {"text": None, "picture": None}, "answer": 1.0, "images": [], "video": None, "choices": None},
        {"problem": {"text": "b?", "picture": None}, "answer": 0.5, "images": None, "video": None, "choices": None},
    ]
    path.mkdir()
    for split, rows in (("train", records), ("test", records[:1])):
        data = datasets.Dataset.from_list(rows, features=features)
        data.to_parquet(path / f"{split}-00000-of-00001.parquet")
    return path


def test_rows_of_a_split_become_questions(folder: Path) -> None:
    rows = load_hub(hub(folder, columns=ColumnsConfig(question="problem.text"), max_bad_fraction=0.5))
    assert [(q.id, q.text, q.answer, q.source, q.metadata) for q in rows.questions] == [
        ("sums/1", "a?\n\nA. x\nB. y", "3", "sums", {"choices": ["x", "y"]}),
        ("sums/3", "b?", "0.5", "sums", {}),
    ]
    assert rows.messages() == [f"{folder}:2: 'problem.text' is empty"]
    first, last = rows.questions
    assert [image.name for image in first.images] == [f"{folder}:train:1:images[{i}]" for i in (0, 1)]
    assert [image.open().getpixel((0, 0)) for image in first.images] == [(2, 2, 2), (3, 3, 3)]
    assert first.video is not None
    frames = first.video.open(MediaLimits(num_frames=3)).frames_FHWC
    assert [round(frame.mean() / 50) for frame in frames] == [0, 1, 2]
    assert (last.images, last.video) == ((), None)
    assert len(load_hub(hub(folder, split="test", columns=ColumnsConfig(question="problem.text"))).questions) == 1


def test_part_of_a_split_and_nested_pictures(folder: Path) -> None:
    columns = ColumnsConfig(question="problem.text", images="problem.picture", video=None)
    (question,) = load_hub(hub(folder, split="train[2:]", columns=columns)).questions
    assert (question.text, question.images, question.video) == ("b?", (), None)
    (question,) = load_hub(hub(folder, split="train[:1]", columns=columns)).questions
    assert question.images[0].open().getpixel((0, 0)) == (1, 1, 1)


def test_paths_are_relative_to_a_local_folder(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"question": "1+1?", "answer": 2, "images": ["a.png"]}\n')
    (question,) = load_hub(hub(tmp_path)).questions
    assert (question.answer, question.images) == ("2", (ImageFile(f"{tmp_path}/a.png"),))


def test_a_folder_of_pictures_with_their_metadata(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for i in range(2):
        (tmp_path / "train" / f"{i}.png").write_bytes(png(i))
    lines = [f'{{"file_name": "{i}.png", "question": "{i}?", "answer": "{i}"}}\n' for i in range(2)]
    (tmp_path / "train" / "metadata.jsonl").write_text("".join(lines))
    questions = load_hub(hub(tmp_path, columns=ColumnsConfig(images="image"))).questions
    assert [(q.text, q.images[0].open().getpixel((0, 0))) for q in questions] == [("0?", (0, 0, 0)), ("1?", (1, 1, 1))]


def test_missing_column_and_column_without_media(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no column 'problem.txt': set data.columns.question .*'problem.text'"):
        load_hub(hub(folder, columns=ColumnsConfig(question="problem.txt")))
    columns = ColumnsConfig(question="problem.text", images="answer")
    with pytest.raises(UserError, match=r"column 'answer' is double, neither paths nor encoded bytes"):
        load_hub(hub(folder, columns=columns))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"split": "dev"}, '(split=dev) cannot be loaded (Unknown split "dev". Should be one of ['),
        ({"config_name": "hard"}, "(split=train, config_name=hard) cannot be loaded (BuilderConfig 'hard' not found."),
    ],
)
def test_unknown_split_and_configuration(folder: Path, options: Any, reason: str) -> None:
    with pytest.raises(UserError) as error:
        load_hub(hub(folder, **options))
    assert reason in str(error.value)
    assert "check data.path, data.split, data.config_name" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_holds_nothing_usable(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"data set {tmp_path} \(split=train\) cannot be loaded"):
        load_hub(hub(tmp_path))
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no parquet at all PAR1")
    with pytest.raises(UserError, match=rf"data set {tmp_path} \(split=train\) cannot be loaded \(Parquet"):
        load_hub(hub(tmp_path))


def test_offline_is_told_in_one_line(tmp_path: Path) -> None:
    code = """
from harness.config.data import DataConfig
from harness.data.hub import load_hub
from harness.errors import UserError
try:
    load_hub(DataConfig(source="hub", path="nobody/no-such-data-set", revision="v1"))
except UserError as error:
    print(error)
"""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=offline, check=False)
    assert answer.stdout.count("\n") == 1, answer.stderr
    assert answer.stdout.startswith("data set nobody/no-such-data-set (split=train, revision=v1) cannot be loaded (")
    assert "offline, data.path can be a local folder" in answer.stdout
