"""Made-up sources in the schemas of the real ones, a few hundred rows that meet every filter, for trying the builder.

Pictures are drawn by code. The questions are additions, which the tiny family can solve; the pictures only have to be
shown. Sub-datasets, names and counts are the same each time.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.builders.corpus.hashes import BenchmarkHashes
from harness.builders.corpus.tables import MAX_ANSWER_CHARS, MIN_SIDE, NOT_LISTED, SUB_DATASETS
from harness.data.images import decode_image
from harness.records.files import write_atomically
from harness.types import Question

TIER1_CAP, TIER2_CAP = 7, 6
NUM_ROWS = 8
"""Rows without fault of each name of the first source that the paper takes a sub-dataset from."""
NUM_SHARED = 2
"""Rows of each name whose sub-dataset comes from the source before."""
SCARCE = "vqarad"
"""The sub-dataset that has fewer rows than its cap, so that all of its faulty rows are looked at."""
NUM_SCARCE = 3
UNKNOWN = "stem-made_up_vqa"
NUM_LEFT_OUT = 2
"""Rows of one name that the paper does not list, and of one that is in no table, in each source that has such."""
NUM_FILES = 4
HASHES = "hashes.json"
BENCHMARK_TEXT = "Which of the seven coloured bars in the picture is the tallest one of all?"


@dataclass(frozen=True, kw_only=True)
class FixtureRow:
    """A row before it has a source's schema."""

    name: str
    id: int
    question: str | None
    answer: str | None
    image: bytes | None
    pass_rate: float | None = 0.25


def write_fixture(folder: Path) -> dict[str, Path]:
    """Write both sources and the hashes of a made-up benchmark; returns where each is, by the option that takes it."""
    vero, mmfinereason = list(_vero_rows()), list(_mmfinereason_rows())
    write_vero(folder / "vero", vero)
    write_mmfinereason(folder / "mmfinereason", mmfinereason)
    hashes = BenchmarkHashes()
    hashes.add("made_up", [Question(id="made_up/0", text=BENCHMARK_TEXT, answer="red", images=(_Drawn(_bars(-1)),))])
    hashes.save(folder / HASHES)
    return {"vero": folder / "vero", "mmfinereason": folder / "mmfinereason", "near_duplicates": folder / HASHES}


def write_vero(folder: Path, rows: Sequence[FixtureRow]) -> None:
    """A configuration a sub-dataset with splits `train` and `val`, as the card of the data set lists them."""
    import datasets

    text, image = datasets.Value("string"), datasets.Image()
    features = datasets.Features(
        {
            "id": text,
            "data_source": text,
            "image": image,
            "prompt": datasets.List({"role": text, "content": text}),
            "ability": text,
            "reward_model": {"ground_truth": text, "style": text},
            "extra_info": {"answer": text, "index": datasets.Value("int64"), "question": text, "reward_type": text},
        }
    )
    configs = {name: [row for row in rows if row.name == name] for name in sorted({row.name for row in rows})}
    for name, members in configs.items():
        _write(folder / name / "train-00000-of-00001.parquet", features, map(_vero_record, members))
        _write(folder / name / "val-00000-of-00001.parquet", features, map(_vero_record, members[:1]))
    listed = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train-*\n"
        f"  - split: val\n    path: {name}/val-*\n"
        for name in configs
    )
    write_atomically(folder / "README.md", f"---\nconfigs:\n{listed}---\n")


def write_mmfinereason(folder: Path, rows: Sequence[FixtureRow], num_files: int = NUM_FILES) -> None:
    """All sub-datasets in one table, divided over several files."""
    import datasets

    text = datasets.Value("string")
    features = datasets.Features(
        {
            "source": text,
            "id": datasets.Value("int64"),
            "original_question": text,
            "original_answer": text,
            "image": datasets.Image(),
            "question": text,
            "answer": text,
            "qwen3vl_235b_instruct_caption": text,
            "qwen3vl_235b_thinking_response": text,
            "pass_rate": datasets.Value("float64"),
            "is_consistent": datasets.Value("bool"),
            "consistency_analysis": text,
        }
    )
    for file in range(num_files):
        path = folder / "data" / f"train-{file:05d}-of-{num_files:05d}.parquet"
        _write(path, features, map(_mmfinereason_record, rows[file::num_files]))


def plain_row(name: str, number: int, **changes: Any) -> FixtureRow:
    """A row without fault: an addition that no other row asks, with a picture of its own."""
    rng = random.Random(f"{name}/{number}")
    terms = [rng.randint(10, 99), *(rng.randint(1, 9) for _ in range(2))]
    values: dict[str, Any] = {
        "question": f"<image>\nCompute {'+'.join(map(str, terms))}. The picture is number {number} of {name}.",
        "answer": str(sum(terms)),
        "image": encoded(_bars(_number(name, number))),
        "pass_rate": (0.0, 0.25, 0.5)[number % 3],
    }
    return FixtureRow(name=name, id=_number(name, number), **values | changes)


def encoded(image: Any, kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    image.save(data, kind)
    return data.getvalue()


def _vero_rows() -> Iterator[FixtureRow]:
    for subset in SUB_DATASETS:
        for name in subset.vero:
            if not name.endswith("multihop_qa"):  # the other name of a sub-dataset that has one
                yield from (plain_row(name, i) for i in range(NUM_SCARCE if subset.name == SCARCE else NUM_ROWS))
    scarce = f"stem-{SCARCE}"
    yield plain_row(scarce, 20, answer=r"\{")
    yield plain_row(scarce, 21, question=f"<image>\n{BENCHMARK_TEXT.upper()}")
    yield plain_row(scarce, 22, image=encoded(_bars(-1).resize((150, 120)), "JPEG"))
    yield plain_row(scarce, 23, image=plain_row(scarce, 23).image[:-200])  # type: ignore[index]
    yield plain_row(scarce, 24, question="<image> and <image>\nCompute 1+2.")
    yield plain_row(scarce, 25, question="<image>\n" + "Compute 1+2. " * 1000)
    geo, chart = "stem-geo170k", "chart_ocr-evochart"
    yield plain_row(geo, 0)
    yield plain_row(geo, 30, question=" ")
    yield plain_row(geo, 31, image=None)
    yield plain_row(chart, 32, image=b"no picture")
    yield plain_row(chart, 33, image=_huge_png(11_000))
    yield plain_row(chart, 34, image=encoded(_bars(34, (MIN_SIDE - 1, 140))))
    yield plain_row(chart, 35, answer="1" * (MAX_ANSWER_CHARS + 1))
    for name in (NOT_LISTED["vero"][0], UNKNOWN):
        yield from (plain_row(name, i) for i in range(NUM_LEFT_OUT))


def _mmfinereason_rows() -> Iterator[FixtureRow]:
    for subset in SUB_DATASETS:
        for name in subset.mmfinereason:
            if name not in ("Geo3K", "Geometry3K"):  # the paper's names of a sub-dataset that has one
                yield from (plain_row(name, i) for i in range(NUM_SHARED if subset.vero else NUM_ROWS))
    yield from (plain_row("MMR1", 40 + i, pass_rate=0.75) for i in range(3))
    yield plain_row("BMMR", 43, pass_rate=None)
    yield from (plain_row("LLaVA-CoT", 44 + i, answer=None) for i in range(2))
    copied = plain_row("stem-geo170k", 1)
    yield plain_row("MMR1", 46, question=copied.question, answer=copied.answer, image=copied.image)
    yield from (plain_row(NOT_LISTED["mmfinereason"][0], i) for i in range(NUM_LEFT_OUT))


def _vero_record(row: FixtureRow) -> dict[str, Any]:
    return {
        "id": f"{row.name}_{row.id}",
        "data_source": row.name.partition("-")[2],
        "image": None if row.image is None else {"bytes": row.image, "path": f"{row.id}.png"},
        "prompt": [{"role": "user", "content": row.question}],
        "ability": row.name.partition("-")[0],
        "reward_model": {"ground_truth": row.answer, "style": "rule"},
        "extra_info": {"answer": row.answer, "index": row.id, "question": row.question, "reward_type": "numeric"},
    }


def _mmfinereason_record(row: FixtureRow) -> dict[str, Any]:
    return {
        "source": row.name,
        "id": row.id,
        "original_question": row.question,
        "original_answer": f"The answer is {row.answer}.",
        "image": None if row.image is None else {"bytes": row.image, "path": None},
        "question": row.question,
        "answer": row.answer,
        "qwen3vl_235b_instruct_caption": "Bars.",
        "qwen3vl_235b_thinking_response": "<think>I add.</think><answer>It is the sum.</answer>",
        "pass_rate": row.pass_rate,
        "is_consistent": True,
        "consistency_analysis": "",
    }


def _write(path: Path, features: Any, records: Iterator[Mapping[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(records), schema=features.arrow_schema), path, row_group_size=16)


@dataclass(frozen=True)
class _Drawn:
    image: Any

    @property
    def name(self) -> str:
        return "drawn"

    def open(self) -> Any:
        return decode_image(encoded(self.image), self.name)

    def content(self) -> Iterator[bytes]:
        yield encoded(self.image)


def _bars(number: int, size: tuple[int, int] = (112, 112)) -> Any:
    """Seven bars next to each other on a background; `number` is the seed."""
    from PIL import Image, ImageDraw

    rng = random.Random(number)
    image = Image.new("RGB", size, tuple(rng.randint(0, 90) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    width = size[0] // 7
    for bar in range(7):
        top = rng.randint(0, size[1] - 8)
        draw.rectangle(
            (bar * width, top, (bar + 1) * width - 2, size[1]), fill=tuple(rng.randint(120, 255) for _ in range(3))
        )
    return image


def _number(name: str, number: int) -> int:
    """A number of its own for each row."""
    return zlib.crc32(name.encode()) % 100_000 * 100 + number


def _huge_png(side: int) -> bytes:
    """A PNG file that says how large it is and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
