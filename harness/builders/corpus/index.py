"""The state of a build, in a file: which rows there are, what became of each, and those that are in the corpus.

SQLite keeps the state on disk, so that memory does not grow with the sources, and changes it in transactions. A build
that is killed at any moment finds the state after its last `commit`. The state does not depend on the order of rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.builders.corpus.reasons import KEPT
from harness.errors import UserError

MAX_EXAMPLES = 3
"""Messages that are kept of each reason, the first in alphabetical order; rows are all counted."""
CACHE_KIB = 16_384

SCHEMA = """
CREATE TABLE IF NOT EXISTS build (fingerprint TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS read_files (file INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS rows (
    content BLOB PRIMARY KEY, rank BLOB NOT NULL, subset TEXT NOT NULL, source INTEGER NOT NULL, raw TEXT NOT NULL,
    key BLOB NOT NULL, file INTEGER NOT NULL, position INTEGER NOT NULL, status TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS rows_by_key ON rows (subset, status, source, key);
CREATE TABLE IF NOT EXISTS counts (
    source INTEGER NOT NULL, raw TEXT NOT NULL, subset TEXT NOT NULL, reason TEXT NOT NULL, number INTEGER NOT NULL,
    PRIMARY KEY (source, raw, subset, reason)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS examples (reason TEXT NOT NULL, message TEXT NOT NULL, PRIMARY KEY (reason, message))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept (
    key BLOB PRIMARY KEY, id TEXT NOT NULL, question TEXT NOT NULL, answer TEXT NOT NULL, answer_type TEXT NOT NULL,
    image BLOB NOT NULL, subset TEXT NOT NULL, tier INTEGER NOT NULL, source TEXT NOT NULL, source_subset TEXT NOT NULL,
    source_id TEXT, pass_rate REAL, prompt_tokens INTEGER NOT NULL
);
"""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A row that passed what is looked at in every row.

    `content` tells question and picture apart from all others. Of rows with the same content the one of lowest `rank`
    stays. `key` is its place in the order of its sub-dataset, drawn by the seed.
    """

    content: bytes
    rank: bytes
    subset: str
    source: int
    raw: str
    key: bytes
    file: int
    position: int


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A row of the corpus, in the order of its columns."""

    key: bytes
    id: str
    question: str
    answer: str
    answer_type: str
    image: bytes
    subset: str
    tier: int
    source: str
    source_subset: str
    source_id: str | None
    pass_rate: float | None
    prompt_tokens: int


class Index:
    """Opens or begins the state of a build. One process at a time holds it."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        """Raises UserError where another build holds it, and for the state of a build of other options or sources."""
        self._path = path
        self._db = sqlite3.connect(path, isolation_level=None, timeout=1.0)
        with _errors(self._path):
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")  # so no shared memory, which network disks lack
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")  # a commit lost with the machine's power is made again
            self._db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            self._db.execute("BEGIN EXCLUSIVE")
            self._db.executescript(SCHEMA)  # commits
            self._db.execute("BEGIN IMMEDIATE")
            stored = self._db.execute("SELECT fingerprint FROM build").fetchone()
            if stored is None:
                self._db.execute("INSERT INTO build VALUES (?)", (fingerprint,))
            self._db.execute("COMMIT")
        if stored is not None and stored[0] != fingerprint:
            self._db.close()
            raise UserError(
                f"{path.parent} holds an unfinished build of other options, sources or versions: go on with those, "
                "choose another --out, or start anew with --force"
            )

    @contextmanager
    def commit(self) -> Iterator[None]:
        """Everything that is written inside, or nothing."""
        with _errors(self._path):
            self._db.execute("BEGIN")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()

    def is_read(self, file: int) -> bool:
        return self._db.execute("SELECT 1 FROM read_files WHERE file = ?", (file,)).fetchone() is not None

    def set_read(self, file: int) -> None:
        self._db.execute("INSERT INTO read_files VALUES (?)", (file,))

    def count(self, source: int, raw: str, subset: str, reason: str, number: int = 1) -> None:
        self._db.execute(
            "INSERT INTO counts VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET number = number + excluded.number",
            (source, raw, subset, reason, number),
        )

    def example(self, reason: str, message: str) -> None:
        """Remember a message, if it is one of the first."""
        self._db.execute("INSERT OR IGNORE INTO examples VALUES (?, ?)", (reason, message))
        self._db.execute(
            "DELETE FROM examples WHERE reason = ?1 AND message NOT IN "
            "(SELECT message FROM examples WHERE reason = ?1 ORDER BY message LIMIT ?2)",
            (reason, MAX_EXAMPLES),
        )

    def add(self, row: Candidate) -> None:
        """Note a candidate; of two with the same content the one of higher rank is counted as a duplicate."""
        query = "SELECT rank, source, raw, subset FROM rows WHERE content = ?"
        other = self._db.execute(query, (row.content,)).fetchone()
        if other is not None and other[0] <= row.rank:
            self.count(row.source, row.raw, row.subset, "duplicate")
            return
        if other is not None:
            _, source, raw, subset = other
            self.count(source, raw, subset, "duplicate")
        values = (*asdict(row).values(), None)
        self._db.execute("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def num_kept(self, subset: str) -> int:
        query = "SELECT count(*) FROM rows WHERE subset = ? AND status = ?"
        return self._db.execute(query, (subset, KEPT)).fetchone()[0]

    def next_rows(self, subset: str, number: int) -> list[Candidate]:
        """The first so many candidates of a sub-dataset that nothing has become of, by source, then by key."""
        query = (
            "SELECT content, rank, subset, source, raw, key, file, position FROM rows "
            "WHERE subset = ? AND status IS NULL ORDER BY source, key LIMIT ?"
        )
        names = tuple(Candidate.__dataclass_fields__)
        found = self._db.execute(query, (subset, number)).fetchall()
        return [Candidate(**dict(zip(names, values, strict=True))) for values in found]

    def decide(self, content: bytes, status: str) -> None:
        self._db.execute("UPDATE rows SET status = ? WHERE content = ?", (status, content))

    def keep(self, row: Kept) -> None:
        values = tuple(asdict(row).values())
        self._db.execute(f"INSERT INTO kept VALUES ({', '.join('?' * len(values))})", values)

    def kept_rows(self, start: int, number: int) -> Iterator[Kept]:
        """Rows of the corpus by their place in its order."""
        names = tuple(Kept.__dataclass_fields__)
        keys = self._db.execute("SELECT key FROM kept ORDER BY key LIMIT ? OFFSET ?", (number, start)).fetchall()
        for (key,) in keys:
            values = self._db.execute("SELECT * FROM kept WHERE key = ?", (key,)).fetchone()
            yield Kept(**dict(zip(names, values, strict=True)))

    def table(self) -> list[tuple[int, str, str, str, int]]:
        """(source, its name for the sub-dataset, canonical name or "", reason, number of rows), in order."""
        query = (
            "SELECT source, raw, subset, reason, sum(number) FROM ("
            "SELECT source, raw, subset, reason, number FROM counts UNION ALL "
            "SELECT source, raw, subset, coalesce(status, 'over_cap'), 1 FROM rows) "
            "GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4"
        )
        return self._db.execute(query).fetchall()

    def examples(self) -> Mapping[str, Sequence[str]]:
        found: dict[str, list[str]] = {}
        for reason, message in self._db.execute("SELECT reason, message FROM examples ORDER BY reason, message"):
            found.setdefault(reason, []).append(message)
        return found


def refuse_if_held(path: Path) -> None:
    """Raise UserError where another process has this state open; one that is damaged is nobody's."""
    db = sqlite3.connect(path, isolation_level=None, timeout=1.0)
    try:
        db.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        raise _held(path) from error
    except sqlite3.DatabaseError:
        pass
    finally:
        db.close()


def _held(path: Path) -> UserError:
    return UserError(f"another build is writing {path.parent}: wait for it, or choose another --out")


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Raise errors of SQLite as UserError: the user can fix them."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise _held(path) from error
        raise UserError(
            f"{path}: {error}: free room on the disk and launch the same command again; it goes on"
        ) from error
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} is damaged ({error}): start anew with --force") from error
