"""The state of a build: what it says does not depend on the order in which rows come."""

from __future__ import annotations

import random
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.builders.corpus.index import MAX_EXAMPLES, Candidate, Index
from harness.builders.corpus.reasons import KEPT
from harness.errors import UserError


@contextmanager
def opened(folder: Path, fingerprint: str = "f") -> Iterator[Index]:
    index = Index(folder / "state.sqlite", fingerprint)
    try:
        yield index
    finally:
        index.close()


def candidate(content: str, rank: str, subset: str = "mmk12", source: int = 0, key: str = "") -> Candidate:
    return Candidate(
        content=content.encode(), rank=rank.encode(), subset=subset, source=source, raw=f"raw-{subset}",
        key=(key or content + subset).encode(), file=0, position=0,
    )  # fmt: skip


def test_rows_are_taken_by_source_and_key(tmp_path: Path) -> None:
    with opened(tmp_path) as index, index.commit():
        for content, source, key in [("a", 1, "1"), ("b", 0, "9"), ("c", 0, "2"), ("d", 1, "0")]:
            index.add(candidate(content, content, source=source, key=key))
        index.add(candidate("e", "e", subset="tqa"))
        assert [row.content for row in index.next_rows("mmk12", 3)] == [b"c", b"b", b"d"]
        index.decide(b"c", KEPT)
        index.decide(b"b", "long_prompt")
        assert index.num_kept("mmk12") == 1
        assert [row.content for row in index.next_rows("mmk12", 9)] == [b"d", b"a"]
        assert index.table() == [
            (0, "raw-mmk12", "mmk12", KEPT, 1),
            (0, "raw-mmk12", "mmk12", "long_prompt", 1),
            (0, "raw-tqa", "tqa", "over_cap", 1),
            (1, "raw-mmk12", "mmk12", "over_cap", 2),
        ]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["0x", "0y", "1x"])), max_size=12), st.randoms())
@settings(max_examples=12, deadline=None)
def test_duplicates_do_not_depend_on_the_order(rows: list[tuple[str, str]], rng: random.Random) -> None:
    """Of equal contents the lowest rank stays; every other row is counted under its own name."""

    def result(order: list[tuple[str, str]]) -> object:
        with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as index, index.commit():
            for content, rank in order:
                index.add(candidate(content, rank, subset=f"s{rank[1]}", source=int(rank[0])))
            return index.table(), [index.next_rows(subset, 9) for subset in ("sx", "sy")]

    shuffled = list(rows)
    rng.shuffle(shuffled)
    assert result(shuffled) == result(rows)
    table, kept = result(rows)  # type: ignore[misc]
    assert sum(number for *_, number in table) == len(rows)
    best = {content: min(rank for other, rank in rows if other == content) for content, _ in rows}
    assert {(row.content.decode(), row.rank.decode()) for part in kept for row in part} == set(best.items())


def test_the_first_messages_of_a_reason_are_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as index, index.commit():
        for number in (5, 3, 9, 1, 3, 7):
            index.example("bad_image", f"row {number}")
        index.example("no_answer", "row 0")
        assert index.examples() == {"bad_image": ["row 1", "row 3", "row 5"], "no_answer": ["row 0"]}
        assert MAX_EXAMPLES == 3


def test_what_is_not_committed_is_gone(tmp_path: Path) -> None:
    with opened(tmp_path) as index:
        with index.commit():
            index.set_read(0)
        with pytest.raises(KeyboardInterrupt), index.commit():
            index.set_read(1)
            index.count(0, "raw", "mmk12", "no_answer")
            raise KeyboardInterrupt
        assert index.is_read(0) and not index.is_read(1) and index.table() == []
    with opened(tmp_path) as index:
        assert index.is_read(0) and not index.is_read(1)


def test_a_build_of_something_else_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    with pytest.raises(UserError, match=r"unfinished build of other options, sources or versions.*--force"):
        Index(tmp_path / "state.sqlite", "other")


def test_one_build_at_a_time(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(UserError, match="another build is writing"):
        Index(tmp_path / "state.sqlite", "f")
    with opened(tmp_path):
        pass


def test_a_damaged_state_and_a_full_disk_are_named(tmp_path: Path) -> None:
    (tmp_path / "state.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(UserError, match=r"state.sqlite is damaged .* --force"):
        Index(tmp_path / "state.sqlite", "f")
    other = tmp_path / "other"
    other.mkdir()
    with opened(other) as index:
        index._db.execute("PRAGMA max_page_count = 20")
        with pytest.raises(UserError, match="free room on the disk"), index.commit():
            for number in range(1000):
                index.add(candidate(f"{number:0100d}", "r"))
        assert index.table() == []


def test_it_is_sqlite(tmp_path: Path) -> None:
    """A build that has not ended can be looked into with the ordinary tool, once nobody holds it."""
    with opened(tmp_path) as index, index.commit():
        index.add(candidate("a", "a"))
    with sqlite3.connect(tmp_path / "state.sqlite") as db:
        assert db.execute("SELECT subset, status FROM rows").fetchall() == [("mmk12", None)]
