"""The second launch on the same file: what it takes from the first, and when it does not."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.config.data import ColumnsConfig, DataConfig
from harness.data.index import ENDS_BYTES, KEPT, folders, key_of
from harness.data.sampler import QuestionSampler
from harness.data.sources import LoadedQuestions, load_questions
from harness.errors import UserError
from harness.types import Question
from tests.harness.data.test_files_parquet import png

PIXEL = Path(__file__).parents[2] / "fixtures" / "data" / "image_base64.jsonl"


class Loader:
    """Loads as a run does, and counts the questions that are checked and measured."""

    def __init__(self) -> None:
        self.checked = self.measured = 0

    def gold_errors(self, questions: Sequence[Question]) -> list[str | None]:
        self.checked += len(questions)
        return ["no number" if q.answer == "bad" else None for q in questions]

    def measure(self, question: Question) -> int:
        self.measured += 1
        for image in question.images:
            image.open()
        return len(question.text)

    def __call__(self, path: Path | list[Path], depends: str = "d", **options: Any) -> LoadedQuestions:
        source = "parquet" if str(path).endswith(".parquet") else "jsonl"
        where = [str(one) for one in path] if isinstance(path, list) else str(path)
        made = DataConfig(source=source, path=where, **options)
        return load_questions(
            made,
            gold_errors=self.gold_errors,
            measure=self.measure,
            max_prompt_tokens=100,
            depends=None if depends is None else lambda: depends,
        )


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf"))
    return tmp_path / "home"


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    path = tmp_path / "ten.jsonl"
    rows = [
        {
            "question": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"q{i}?"}],
            "answer": [str(i), "0"],
            "choices": ["a", "b"],
            "unit": {"deep": [1, None, "é"]},
        }
        for i in range(10)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_second_launch_reads_nothing_and_gives_the_same(ten: Path) -> None:
    first, second, plain = Loader(), Loader(), Loader()
    options: dict[str, Any] = {"columns": ColumnsConfig(extra=["unit"]), "closing": "Now.", "seed": 3, "pool_size": 7}
    before, after = first(ten, **options), second(ten, **options)
    assert (first.checked, first.measured, second.checked, second.measured) == (10, 10, 0, 0)
    every = plain(ten, depends=None, **options)  # type: ignore[arg-type]
    assert list(before.questions) == list(after.questions) == list(every.questions)
    assert [q.extra for q in after.questions] == [{"unit": {"deep": [1, None, "é"]}}] * 7
    assert [q.metadata for q in after.questions] == [{"choices": ["a", "b"]}] * 7
    assert after.questions[0].closing == "Now." and after.questions[-1] == every.questions[-1]
    assert after.num_tokens.tolist() == every.num_tokens.tolist()
    assert (after.num_rows, after.num_bad, after.num_unused, after.num_duplicates) == (10, 0, 3, 0)
    assert [path.name for path in ten.parent.glob("*.zppo-index")] == ["ten.jsonl.zppo-index"]


@pytest.mark.parametrize(
    "change",
    [
        {"depends": "other"}, {"closing": ""}, {"answer_type": "text"}, {"system": "Hm."}, {"recheck": True},
        {"columns": ColumnsConfig(choices=None)}, {"reward": "tests.support.scorers:contains"},
    ],
)  # fmt: skip
def test_what_values_depend_on_makes_another_index(ten: Path, change: dict[str, Any]) -> None:
    Loader()(ten)
    changed = Loader()
    changed(ten, **change)
    assert changed.checked == 10
    again = Loader()
    again(ten, **change)
    assert again.checked == (10 if "recheck" in change else 0)


@pytest.mark.parametrize("change", [{"seed": 9}, {"pool_size": 4}, {"batch_size": 2}, {"max_bad_fraction": 0.5}])
def test_what_decides_nothing_about_a_row_takes_the_same_index(ten: Path, change: dict[str, Any]) -> None:
    Loader()(ten)
    changed = Loader()
    changed(ten, **change)
    assert changed.checked == 0


def test_another_file_is_read_anew(ten: Path) -> None:
    Loader()(ten)
    text, status = ten.read_text(encoding="utf-8"), ten.stat()
    for new, times in (
        (text.replace("q3?", "q4!"), (status.st_atime_ns, status.st_mtime_ns)),  # same size and time
        (text, (0, 1)),
        (text + text.replace("q3?", "q5?"), None),
    ):
        ten.write_text(new, encoding="utf-8")
        if times:
            os.utime(ten, ns=times)
        loader = Loader()
        loader(ten)
        assert loader.checked == len(new.splitlines())


def test_a_change_in_the_middle_of_a_large_file_needs_a_recheck(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    rows = [json.dumps({"question": "?", "answer": "1", "note": "x" * ENDS_BYTES}) for _ in range(3)]
    path.write_text("\n".join(rows))
    Loader()(path)
    status = path.stat()
    path.write_text("\n".join([rows[0], rows[1].replace('"1"', '"2"'), rows[2]]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [q.answer for q in Loader()(path).questions] == ["1", "1", "1"]
    assert [q.answer for q in Loader()(path, recheck=True).questions] == ["1", "2", "1"]
    assert [q.answer for q in Loader()(path).questions] == ["1", "2", "1"]


def test_the_users_cache_is_taken_where_the_folder_is_not_writable(
    ten: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, cache = folders(ten)
    beside.write_text("")  # a file, in which nothing can be made: root may write anywhere
    Loader()(ten)
    assert len(list(cache.glob("*.arrow"))) == 1 and cache.is_relative_to(home)
    again = Loader()
    again(ten)
    assert again.checked == 0
    cache.rename(cache.with_name("gone"))
    cache.write_text("")
    nowhere = Loader()
    assert len(nowhere(ten).questions) == 10 and nowhere.checked == 10


@pytest.mark.parametrize("damage", ["cut", "json", "garbage"])
def test_a_damaged_index_is_made_anew(ten: Path, damage: str) -> None:
    Loader()(ten)
    (data,), (about,) = (list(folders(ten)[0].glob(f"*.{end}")) for end in ("arrow", "json"))
    if damage == "cut":
        data.write_bytes(data.read_bytes()[:-100])
    elif damage == "json":
        about.write_text("{")
    else:
        data.write_bytes(bytes(data.stat().st_size))
    loader = Loader()
    assert len(loader(ten).questions) == 10 and loader.checked == 10


def test_a_refused_file_leaves_nothing(ten: Path, home: Path) -> None:
    ten.write_text(ten.read_text(encoding="utf-8") + json.dumps({"question": "q?", "answer": "bad"}) + "\n")
    with pytest.raises(UserError, match=r"ten.jsonl:11: no number \(1 of 11 rows are bad"):
        Loader()(ten)
    assert not folders(ten)[0].exists() and not home.exists()
    Loader()(ten, max_bad_fraction=0.5)
    with pytest.raises(UserError, match=r"ten.jsonl:11: no number \(1 of 11 rows are bad"):
        Loader()(ten)  # from the index


def test_older_indices_go(ten: Path) -> None:
    for i in range(KEPT + 2):
        Loader()(ten, depends=str(i))
    assert len(list(folders(ten)[0].iterdir())) == 2 * KEPT


def test_pictures_are_opened_once_and_found_again(tmp_path: Path) -> None:
    table = tmp_path / "a.parquet"
    rows = [{"question": f"q{i}", "answer": str(i), "images": [{"bytes": png(i), "path": None}]} for i in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), table)
    lines = tmp_path / "lines.jsonl"
    lines.write_text(PIXEL.read_text(encoding="utf-8"), encoding="utf-8")
    array = tmp_path / "array.json"
    array.write_text("[" + ",".join(lines.read_text(encoding="utf-8").splitlines()) + "]", encoding="utf-8")
    for path, number in ((table, 3), (lines, 8), (array, 8)):
        first, second = Loader(), Loader()
        before, after = first(path), second(path)
        assert (first.measured, second.measured) == (number, 0)
        shown = [[b"".join(i.content()) for q in found.questions for i in q.images] for found in (before, after)]
        assert shown[0] == shown[1] and len(set(shown[0])) == number
        assert [q.images[0].name for q in before.questions] == [q.images[0].name for q in after.questions]


def test_golds_and_further_columns_of_any_form_reach_a_scorer(tmp_path: Path) -> None:
    table = tmp_path / "a.parquet"
    row = {"question": "Sort.", "answer": {"tests": [[3, 1], [1, 3]]}, "made": datetime.date(2026, 1, 2), "raw": b"abc"}
    pq.write_table(pa.Table.from_pylist([row]), table)
    options = {"columns": ColumnsConfig(extra=["made", "raw"]), "reward": "tests.support.scorers:contains"}
    for _ in range(2):
        (question,) = Loader()(table, **options).questions
        assert json.loads(question.answer) == {"tests": [[3, 1], [1, 3]]}
        assert question.extra == {"made": "2026-01-02", "raw": "3 bytes"}


def test_weights_take_shares_of_several_files(tmp_path: Path) -> None:
    paths = []
    for name, number in (("a", 100), ("b", 10)):
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps({"question": f"{name}{i}", "answer": i}) + "\n" for i in range(number)))
    loaded = Loader()(paths, weights=[2, 1])
    assert [sum(q.source == name for q in loaded.questions) for name in "ab"] == [20, 10]
    assert loaded.num_unused == 80 and len({q.id for q in loaded.questions}) == 30
    small = Loader()(paths, weights=[1, 2], pool_size=7)
    assert [sum(q.source == name for q in small.questions) for name in "ab"] == [2, 5]
    with pytest.raises(UserError, match=r"take 20 of the 10 usable questions of path 2.* \(15 questions can be had"):
        Loader()(paths, weights=[1, 2], pool_size=30)
    assert len(Loader()(paths).questions) == 110


def test_a_cursor_over_stored_questions_goes_on(ten: Path) -> None:
    def sampler(questions: Sequence[Question]) -> QuestionSampler:
        return QuestionSampler(questions, batch_size=3, epochs=2, shuffle=True, seed=0)

    stored, plain = sampler(Loader()(ten).questions), sampler(list(Loader()(ten).questions))
    assert [q.id for q in stored.next_batch()] == [q.id for q in plain.next_batch()]
    again = sampler(Loader()(ten).questions)
    again.load_state_dict(stored.state_dict())
    assert [q.id for q in again.next_batch()] == [q.id for q in plain.next_batch()]
    again.load_state_dict(plain.state_dict())  # a checkpoint of an earlier version
    assert stored.questions["ten/4"].text.startswith("q3?") and "ten/11" not in stored.questions
    assert len(stored.questions) == 10 and not stored.has_media
    other = sampler(Loader()(ten, closing="Now.").questions)
    with pytest.raises(UserError, match="other questions"):
        other.load_state_dict(stored.state_dict() | {"fingerprint": "0"})


def test_the_key_names_files_and_options(ten: Path) -> None:
    made = DataConfig(source="jsonl", path=str(ten))
    keys = {key_of([ten], name, made, depends) for name in ("a", "b") for depends in ("x", "y")}
    assert len(keys) == 4
