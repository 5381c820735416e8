"""What an earlier launch read and checked, next to the file or in the user's cache: the next launch maps it.

An index is named by a hash of the files (size, time, first and last MiB) and of all that its values depend on. Whatever
differs makes another index.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.config.data import DataConfig

FORMAT = 1
"""Raised where an index holds other values than before, as when rows are read in another way."""
SUFFIX = ".zppo-index"
ENDS_BYTES = 1 << 20
KEPT = 4
"""Indices of a file that stay, the newest ones."""
NO_PART = (
    "path", "weights", "batch_size", "epochs", "shuffle", "pool_size", "seed", "num_questions", "levels", "tasks",
    "dataset", "dataset_config", "max_bad_fraction", "recheck",
)  # fmt: skip
"""Options of `data` that decide nothing about a row."""


def key_of(files: Sequence[Path], name: str, config: DataConfig, depends: str) -> str:
    """32 hex digits. `name` begins the ids, `depends` is what prompts and grader depend on."""
    options = {key: value for key, value in asdict(config).items() if key not in NO_PART}
    digest = hashlib.sha256(json.dumps([FORMAT, name, options, depends], sort_keys=True).encode())
    for file in files:
        status = file.stat()
        digest.update(json.dumps([str(file.resolve()), status.st_size, status.st_mtime_ns]).encode())
        with file.open("rb") as content:
            digest.update(content.read(ENDS_BYTES))
            content.seek(max(status.st_size - ENDS_BYTES, 0))
            digest.update(content.read(ENDS_BYTES))
    return digest.hexdigest()[:32]


def folders(place: Path) -> list[Path]:
    """Where the indices of a file or folder may be: next to it, and in the user's cache."""
    place = place.resolve()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "zppo-bench" / "index"
    unique = hashlib.sha256(str(place).encode()).hexdigest()[:16]
    return [place.with_name(place.name + SUFFIX), cache / f"{place.name}-{unique}"]


def find(place: Path, key: str) -> tuple[Path, dict[str, Any]] | None:
    """An index and what is known about it; None where there is none, or a damaged one."""
    for folder in folders(place):
        data, about = folder / f"{key}.arrow", folder / f"{key}.json"
        try:
            known = json.loads(about.read_text(encoding="utf-8"))
            if isinstance(known, dict) and known.get("num_bytes") == data.stat().st_size:
                return data, known
        except (OSError, ValueError):
            continue
    return None


@contextmanager
def new_file(place: Path) -> Iterator[Path]:
    """A file for an index that is being made; what is still there in the end is removed."""
    file = _writable(place)
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)
        with suppress(OSError):
            file.parent.rmdir()  # if it is empty


def keep(file: Path, key: str, about: dict[str, Any]) -> Path:
    """Give an index that is complete its name, and remove older ones of the same file."""
    final = file.with_name(f"{key}.arrow")
    described = json.dumps(about | {"num_bytes": file.stat().st_size})
    os.replace(file, final)
    unfinished = file.with_suffix(".tmp")
    unfinished.write_text(described, encoding="utf-8")
    os.replace(unfinished, final.with_suffix(".json"))
    others = sorted(final.parent.glob("*.json"), key=lambda other: other.stat().st_mtime_ns, reverse=True)
    for other in others[KEPT:]:
        other.unlink(missing_ok=True)
        other.with_suffix(".arrow").unlink(missing_ok=True)
    return final


def _writable(place: Path) -> Path:
    """A new file in the first folder that takes one; else in the temporary folder of the system."""
    name = f"making-{os.getpid()}.part"
    for folder in folders(place):
        made = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        except OSError:
            if made:
                with suppress(OSError):
                    folder.rmdir()
            continue
        return folder / name
    return Path(tempfile.mkdtemp(prefix="zppo-index-")) / name
