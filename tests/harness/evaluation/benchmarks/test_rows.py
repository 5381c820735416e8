"""Reading rows of local copies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets
import pytest

from harness.config.evaluation import BenchmarkOptions
from harness.errors import UserError
from harness.evaluation.benchmarks.columns import columns
from harness.evaluation.benchmarks.rows import NoGold, Row, load_rows

AIME26 = columns()["aime26"]


def write(root: Path, *answers: int) -> None:
    folder = root / "MathArena" / "aime_2026"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"problem_idx": i, "problem": "Compute.", "answer": answer} for i, answer in enumerate(answers)]
    datasets.Dataset.from_list(rows).to_parquet(folder / "train-00000-of-00001.parquet")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n"
                                      "    path: train-*.parquet\n---\n")  # fmt: skip


def answers(root: Path) -> list[Any]:
    return [row["answer"] for row in load_rows(AIME26, BenchmarkOptions(), str(root))]


def test_rows_are_those_of_the_folder_and_of_now(tmp_path: Path) -> None:
    """The cache of `datasets` knows a folder by its last name."""
    write(tmp_path / "one", 1, 2)
    write(tmp_path / "two", 3, 4)
    assert (answers(tmp_path / "one"), answers(tmp_path / "two")) == ([1, 2], [3, 4])
    write(tmp_path / "one", 5, 6)
    file = tmp_path / "one" / "MathArena" / "aime_2026" / "train-00000-of-00001.parquet"
    os.utime(file, (file.stat().st_atime, file.stat().st_mtime + 5))
    assert answers(tmp_path / "one") == [5, 6]


def test_a_cell_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (row,) = load_rows(AIME26, BenchmarkOptions(), str(tmp_path))
    assert row.id == "0" and row["answer"] == 1
    with pytest.raises(UserError, match=r"^aime26: MathArena/aime_2026 has no column 'solution' \(answer, problem, "):
        row["solution"]


@pytest.mark.parametrize(
    ("cell", "is_gold"),
    [
        (0, True), (0.0, True), (False, True), ("0", True), (["a", None], True),
        (None, False), ("", False), (" \n", False), (float("nan"), False), ([], False), (["", None], False),
    ],
)  # fmt: skip
def test_an_index_of_0_is_a_gold_answer_and_nothing_is_none(cell: Any, is_gold: bool) -> None:
    row = Row(column=AIME26, config="", split="", position=7, cells={"answer": cell}, options=BenchmarkOptions())
    if is_gold:
        assert row.gold("answer") is cell
    else:
        with pytest.raises(NoGold, match=r"^aime26: row 7 of MathArena/aime_2026 has no gold answer in 'answer'$"):
            row.gold("answer")


def test_a_missing_copy_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hf download --repo-type dataset MathArena/aime_2026 --local-dir"):
        answers(tmp_path)


def test_a_missing_clip_names_the_places(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (row,) = load_rows(AIME26, BenchmarkOptions(), str(tmp_path))
    with pytest.raises(UserError, match=r"has no video a\.mp4 or b/a\.mp4: unpack the archives of MathArena/aime_2026"):
        row.video("a.mp4", "b/a.mp4")


@pytest.mark.parametrize(
    "error",
    [
        datasets.exceptions.DatasetNotFoundError("Dataset 'MathArena/aime_2026' is a gated dataset on the Hub."),
        ConnectionError("Couldn't reach the Hub"),
        ValueError("Unknown split \"train\". Should be one of ['test']."),
    ],
)
def test_data_that_cannot_be_had_are_one_line_with_the_remedy(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(
        UserError, match=r"^aime26: MathArena/aime_2026 \(.*\) cannot be loaded .*hf auth login"
    ) as caught:
        list(load_rows(AIME26, BenchmarkOptions()))
    assert str(error) in str(caught.value) and "eval.data_root=<folder" in str(caught.value)
    assert "\n" not in str(caught.value)
