"""Whole builds: counts by hand, the choice of rows, and what is refused before anything is written."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness.builders.corpus.build import build
from harness.builders.corpus.card import card_text
from harness.builders.corpus.fixture import FixtureRow, plain_row, write_mmfinereason, write_vero
from harness.builders.corpus.hashes import BenchmarkHashes
from harness.builders.corpus.options import BuildOptions
from harness.builders.corpus.reasons import KEPT, REASONS
from harness.config.compose import compose
from harness.config.schema import RunConfig, from_hydra
from harness.data.files import load_parquet
from harness.errors import UserError
from harness.types import Question
from tests.harness.builders.corpus.conftest import BuildRows, Built, run_build

# 40 sub-datasets. Vero has 29: 27 with one name of 8 rows, wemath with two names, vqarad with 3 rows; and 13 faulty
# rows (six of them in vqarad), 2 + 2 of names that are not used. MMFineReason has 11 of its own, a name of 8 rows each,
# 9 names of 2 rows whose sub-datasets Vero has (ai2d, geo170k, mmk12, three of wemath, tqa, visualwebinstruct, raven),
# 7 faulty rows, 2 of a name that is not used.
COUNTS = {
    "kept": 21 * 7 + 18 * 6 + 3,
    "not_listed": 2 + 2,
    "unknown": 2,
    "other_source": 9 * 2,
    "no_question": 1,
    "no_answer": 2,
    "long_answer": 1,
    "no_pass_rate": 1,
    "pass_rate": 3,
    "no_image": 1,
    "bad_image": 1 + 1 + 1,  # no picture, too large, cut off
    "small_image": 1,
    "duplicate": 1 + 1,  # in one sub-dataset, and in both sources
    "bad_answer": 1,
    "near_duplicate_text": 1,
    "near_duplicate_image": 1,
    "bad_marks": 1,
    "long_prompt": 1,
    "over_cap": 20 * 1 + (16 - 7) + 18 * 2,
}


@pytest.mark.clause("C103")
def test_every_filter_is_hit_and_counted(built: Built) -> None:
    assert built.card["reasons"] == COUNTS
    assert set(COUNTS) == {KEPT, *REASONS}
    rows = {name: source["num_rows"] for name, source in built.card["sources"].items()}
    assert rows == {"vero": 27 * 8 + 16 + 3 + 13 + 4, "mmfinereason": 11 * 8 + 9 * 2 + 7 + 2}
    assert sum(COUNTS.values()) == sum(rows.values())
    assert built.card["num_rows"] == len(built.rows()) == 258
    assert built.card["tiers"] == {"1": 147, "2": 111}
    assert built.card["near_duplicates_removed"] == 2


def test_counts_of_sub_datasets(built: Built) -> None:
    by_name = built.card["sub_datasets"]
    assert by_name["geo170k"] == {
        "tier": 1,
        "cap": 7,
        "num_rows": 7,
        "reasons": {"kept": 7, "other_source": 2, "no_question": 1, "no_image": 1, "duplicate": 1, "over_cap": 1},
    }
    assert by_name["wemath"]["reasons"] == {"kept": 7, "other_source": 6, "over_cap": 9}
    assert by_name["vqarad"]["reasons"] == {
        "kept": 3, "bad_image": 1, "bad_answer": 1, "near_duplicate_text": 1, "near_duplicate_image": 1,
        "bad_marks": 1, "long_prompt": 1,
    }  # fmt: skip
    assert by_name["mmr1"]["reasons"] == {"kept": 7, "pass_rate": 3, "duplicate": 1, "over_cap": 1}
    assert Counter(row["subset"] for row in built.rows()) == {name: s["num_rows"] for name, s in by_name.items()}
    names = {(entry["source"], entry["name"]): entry["reasons"] for entry in built.card["names"]}
    assert names["vero", "made_up_vqa"] == {"unknown": 2}
    assert names["mmfinereason", "WaltonColdStart"] == {"not_listed": 2}


def test_rows_have_the_bytes_of_the_source(built: Built) -> None:
    """An identifier is the content's, and pictures are never encoded again."""
    made = {row.image: row for name in ("stem-mmk12", "MMR1") for row in (plain_row(name, i) for i in range(8))}
    rows = [row for row in built.rows() if row["subset"] in ("mmk12", "mmr1")]
    assert len(rows) == 14
    for row in rows:
        source = made[row["images"]["bytes"]]
        assert (row["question"], row["answer"], row["answer_type"]) == (source.question, source.answer, "math")
        assert row["pass_rate"] == (source.pass_rate if row["subset"] == "mmr1" else None)
        assert row["source_id"] == (str(source.id) if row["subset"] == "mmr1" else f"stem-mmk12_{source.id}")
        assert row["id"].startswith(f"{row['subset']}/") and row["prompt_tokens"] > 49  # 7x7 tokens for 112x112 pixels
    assert len({row["id"] for row in built.rows()}) == 258


def test_the_card_says_what_was_done(built: Built) -> None:
    card = json.loads((built.folder / "card.json").read_text())
    assert card == built.card
    assert card["shards"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(built.folder.glob("*.parquet"))
    }
    assert list(card["shards"]) == [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    assert card["options"]["seed"] == 0 and card["prompt"]["student"] == "tiny:xs"
    assert card["near_duplicates"]["questions"] == {"made_up": 1}
    assert card["versions"]["pyarrow"] == pa.__version__
    assert any("stem-vqarad_" in message and "truncated" in message for message in card["examples"]["bad_image"])
    text = (built.folder / "README.md").read_text()
    assert text == card_text(card)
    assert "| geo170k | 1 | 7 | 7 | 2 other_source, 1 no_question, 1 no_image, 1 duplicate, 1 over_cap |" in text
    assert sorted(path.name for path in built.folder.iterdir()) == ["README.md", "card.json", *card["shards"]]


@pytest.mark.slow  # a killed build, and one of files in another order, come to the same bytes in the fast suite
def test_twice_is_the_same(built: Built, fixture_options: BuildOptions, config: RunConfig, tmp_path: Path) -> None:
    again = run_build(fixture_options, config, tmp_path / "again")
    assert again.card == built.card
    assert {p.name: p.read_bytes() for p in again.folder.iterdir()} == {
        p.name: p.read_bytes() for p in built.folder.iterdir()
    }


def test_a_corpus_that_is_there_is_not_built_again(
    built: Built, fixture_options: BuildOptions, config: RunConfig
) -> None:
    lines: list[str] = []
    assert build(replace(fixture_options, out=str(built.folder)), config, report=lines.append) == built.card
    assert lines[-1].endswith("is built already")


@pytest.mark.slow
def test_the_order_of_files_and_rows_does_not_matter(
    built: Built, fixture_options: BuildOptions, config: RunConfig, tmp_path: Path
) -> None:
    """The rows of MMFineReason backwards in three files instead of four, those of Vero's first file in two."""
    sources = tmp_path / "sources"
    shutil.copytree(fixture_options.vero, sources / "vero")
    files = sorted((Path(fixture_options.mmfinereason) / "data").iterdir())
    table = pa.concat_tables(map(pq.read_table, files))
    backwards = table.take(list(range(table.num_rows))[::-1])
    (sources / "mmfinereason").mkdir()
    for part in range(3):
        rows = backwards.slice(part * 40, 40)
        pq.write_table(rows, sources / "mmfinereason" / f"train-{part:05d}-of-00003.parquet", row_group_size=7)
    first = next((sources / "vero").rglob("train-*.parquet"))
    table = pq.read_table(first)
    pq.write_table(table.slice(5), first.with_name("train-00000-of-00002.parquet"))
    pq.write_table(table.slice(0, 5), first.with_name("train-00001-of-00002.parquet"))
    first.unlink()
    other = run_build(
        fixture_options, config, tmp_path / "out",
        vero=str(sources / "vero"), mmfinereason=str(sources / "mmfinereason"),
    )  # fmt: skip
    assert other.shards() == built.shards()
    assert {name: other.card[name] for name in ("reasons", "sub_datasets", "names", "examples")} == {
        name: built.card[name] for name in ("reasons", "sub_datasets", "names", "examples")
    }


def plain(name: str, number: int) -> list[FixtureRow]:
    return [plain_row(name, i) for i in range(number)]


def test_the_seed_chooses_the_rows(build_rows: BuildRows) -> None:
    vero, other = plain("stem-mmk12", 9), plain("MMR1", 1)
    chosen = {}
    for seed in (0, 1, 2):
        made = build_rows(vero, other, name=f"seed{seed}", seed=seed, tier1_cap=3)
        chosen[seed] = {row["source_id"] for row in made.rows() if row["subset"] == "mmk12"}
        assert len(chosen[seed]) == 3
    assert len({frozenset(ids) for ids in chosen.values()}) > 1


@pytest.mark.slow
def test_a_row_that_fails_makes_room_for_the_next(build_rows: BuildRows) -> None:
    """With a cap of all rows the order is seen; then the first in it fails, and the rest moves up."""
    vero, other = plain("stem-mmk12", 6), plain("MMR1", 1)
    ordered = [r["source_id"] for r in build_rows(vero, other, name="all").rows() if r["subset"] == "mmk12"]
    assert len(ordered) == 6
    made = build_rows(vero, other, name="three", tier1_cap=3)
    assert [r["source_id"] for r in made.rows() if r["subset"] == "mmk12"] == ordered[:3]
    # An answer is no part of the content by which rows are ordered.
    faulty = [replace(row, answer=r"\{") if f"stem-mmk12_{row.id}" in ordered[:2] else row for row in vero]
    made = build_rows(faulty, other, name="faulty", tier1_cap=3)
    assert [r["source_id"] for r in made.rows() if r["subset"] == "mmk12"] == ordered[2:5]
    assert made.card["sub_datasets"]["mmk12"]["reasons"] == {"kept": 3, "bad_answer": 2, "over_cap": 1}


@pytest.mark.clause("C101")
def test_what_both_sources_have(build_rows: BuildRows) -> None:
    """Vero alone, or Vero first and the other up to the cap: 2 + min(4, 5 - 2)."""
    vero, other = plain("stem-geo170k", 2), plain("FineVision-geo170k(qa)", 4)
    alone = build_rows(vero, other, name="alone", tier1_cap=5)
    assert alone.card["sub_datasets"]["geo170k"]["reasons"] == {"kept": 2, "other_source": 4}
    filled = build_rows(vero, other, name="filled", tier1_cap=5, shared="fill")
    assert filled.card["sub_datasets"]["geo170k"]["reasons"] == {"kept": 5, "over_cap": 1}
    assert Counter(row["source"] for row in filled.rows()) == {"vero": 2, "mmfinereason": 3}


def test_of_equal_rows_the_first_source_wins(build_rows: BuildRows) -> None:
    """Same question but for spacing, same picture, another answer: Vero's stays, whatever the sub-datasets are."""
    (row,) = plain("stem-vqarad", 1)
    copy = replace(
        plain("MMR1", 1)[0],
        question=f" {row.question} ".upper().replace("<IMAGE>", "<image>"),
        image=row.image,
        answer="1",
    )
    made = build_rows([row], [copy, *plain("BMMR", 1)])
    assert [(r["source"], r["answer"]) for r in made.rows() if r["subset"] != "bmmr"] == [("vero", row.answer)]
    assert made.card["sub_datasets"]["mmr1"]["reasons"] == {"duplicate": 1}


def test_near_duplicates_are_kept_unless_asked_for(build_rows: BuildRows, tmp_path: Path) -> None:
    asked = "Which of the three boats is nearest to the lighthouse?"
    hashes = BenchmarkHashes()
    hashes.add("boats", [Question(id="boats/1", text=asked, answer="1")])
    hashes.save(tmp_path / "hashes.json")
    vero, other = [plain_row("stem-mmk12", 0), plain_row("stem-mmk12", 1, question=asked.upper())], plain("MMR1", 1)
    made = build_rows(vero, other, name="kept")
    assert made.card["near_duplicates_removed"] is None and made.card["near_duplicates"] is None
    assert made.card["num_rows"] == 3
    assert "not looked for" in (made.folder / "README.md").read_text()
    made = build_rows(vero, other, name="dropped", near_duplicates=str(tmp_path / "hashes.json"))
    assert made.card["reasons"] == {"kept": 2, "near_duplicate_text": 1}
    assert made.card["near_duplicates_removed"] == 1
    assert "1 rows removed, by 1 questions of 1 benchmarks" in (made.folder / "README.md").read_text()


def test_pictures_that_cannot_be_shown(build_rows: BuildRows) -> None:
    """One side 201 times the other is refused by its header; a picture in another mode and format is taken as it is."""
    grey = io.BytesIO()
    Image.new("LA", (120, 130), (7, 200)).save(grey, "WEBP")
    wide = io.BytesIO()
    Image.new("L", (100 * 201, 100)).save(wide, "PNG")
    first, second = plain("stem-mmk12", 2)
    made = build_rows([replace(first, image=wide.getvalue()), replace(second, image=grey.getvalue())], plain("MMR1", 1))
    assert made.card["sub_datasets"]["mmk12"]["reasons"] == {"kept": 1, "bad_image": 1}
    (row,) = [row for row in made.rows() if row["subset"] == "mmk12"]
    assert row["images"]["bytes"] == grey.getvalue()


def refused(built: Any, tmp_path: Path, out: Path | None = None) -> str:
    """The message of a build that fails, with nothing written."""
    with pytest.raises(UserError) as error:
        built()
    assert not (out or tmp_path / "out").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_sub_dataset_that_is_in_no_table(build_rows: BuildRows, tmp_path: Path) -> None:
    vero, other = plain("stem-mmk12", 1) + plain("stem-mmk13", 2), plain("MMR1", 1)
    message = refused(lambda: build_rows(vero, other), tmp_path)
    assert "'mmk13' (2 rows)" in message and "--unknown skip" in message and "vero" in message
    made = build_rows(vero, other, unknown="skip")
    assert made.card["reasons"] == {"kept": 2, "unknown": 2}


@pytest.fixture
def small(tmp_path: Path) -> BuildOptions:
    """A row of each source."""
    write_vero(tmp_path / "vero", plain("stem-mmk12", 1))
    write_mmfinereason(tmp_path / "mmfinereason", plain("MMR1", 8))
    return BuildOptions(vero=str(tmp_path / "vero"), mmfinereason=str(tmp_path / "mmfinereason"))


def test_a_source_that_changed_its_schema(small: BuildOptions, config: RunConfig, tmp_path: Path) -> None:
    """Only the last of its files: all are looked at before any is read."""
    path = sorted((tmp_path / "mmfinereason" / "data").iterdir())[-1]
    table = pq.read_table(path)
    names = ["qwen3vl_4b_pass_rate" if name == "pass_rate" else name for name in table.column_names]
    pq.write_table(table.rename_columns(names), path)
    message = refused(lambda: run_build(small, config, tmp_path / "out"), tmp_path)
    assert "train-00003-of-00004.parquet has no column 'pass_rate'" in message and "qwen3vl_4b_pass_rate" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unknown": "ignore"}, "--unknown=ignore is not known"),
        ({"shared": "both"}, "--shared=both is not known"),
        ({"tier1_cap": 0}, "--tier1-cap must be at least 1"),
        ({"shard_rows": -1}, "--shard-rows must be at least 1"),
        ({"distance": 65}, "--distance is a number of bits from 0 to 32"),
        ({"near_duplicates": "/nowhere.json"}, "zppo data hash"),
        ({"vero": "/nowhere"}, "--vero: the data set /nowhere cannot be read"),
    ],
)
def test_options_are_checked_first(
    options: dict[str, Any], message: str, small: BuildOptions, config: RunConfig, tmp_path: Path
) -> None:
    assert message in refused(lambda: run_build(small, config, tmp_path / "out", **options), tmp_path)


def test_a_student_that_cannot_be_loaded(small: BuildOptions, config: RunConfig, tmp_path: Path) -> None:
    other = replace(config, student=replace(config.student, path="/no/model"))
    assert "/no/model" in refused(lambda: run_build(small, other, tmp_path / "out"), tmp_path)


def test_folders_with_something_else(small: BuildOptions, config: RunConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no corpus"):
        run_build(small, config, out)
    made = run_build(small, config, tmp_path / "other")
    with pytest.raises(UserError, match="holds a corpus of other options"):
        run_build(small, config, made.folder, seed=1)
    chosen = replace(small, out=str(made.folder), seed=1, shard_rows=5)
    broken = replace(config, student=replace(config.student, path="/no/model"))
    with pytest.raises(UserError, match="/no/model"):
        build(chosen, broken, force=True, report=lambda line: None)
    assert json.loads((made.folder / "card.json").read_text()) == made.card
    (made.folder / "letter.txt").write_text("mine")
    assert build(chosen, config, force=True, report=lambda line: None)["options"]["seed"] == 1
    assert sorted(path.name for path in made.folder.iterdir()) == [
        "README.md", "card.json", "letter.txt", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet",
    ]  # fmt: skip


def test_nothing_is_left(build_rows: BuildRows) -> None:
    rows = [plain_row("stem-mmk12", 0, answer=None)]
    with pytest.raises(UserError, match=r"no row of the sources is left: .*no_answer.*right data sets"):
        build_rows(rows, [plain_row("MMR1", 0, pass_rate=0.75)])


def test_the_preset_reads_the_identifiers_and_answer_types(built: Built) -> None:
    config = from_hydra(compose(["student=tiny_xs", "data=zppo77k", f"data.path={built.folder}"])).data
    questions, rows = load_parquet(config).questions, built.rows()
    assert [(q.id, q.text, q.answer, q.answer_type) for q in questions] == [
        (row["id"], row["question"], row["answer"], row["answer_type"]) for row in rows
    ]
    assert [q.images[0].open().size for q in questions[:3]] == [(112, 112)] * 3
    assert from_hydra(compose(["data=zppo77k"])).data.path == "outputs/zppo77k"
