"""Which files a path means: itself, or those of a folder. Of a folder with splits only those of training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.data.formats import SUFFIXES
from harness.errors import UserError

UNFINISHED = ".unfinished"
"""A folder of parquet files with this in it is still being written."""
_SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)(?:[-_.]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Files:
    """`read` are those that are read, in the order of their names; `left_out` belong to other splits."""

    path: Path
    read: tuple[Path, ...]
    left_out: tuple[Path, ...] = ()

    @property
    def folder(self) -> Path:
        """Where relative paths of media start."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def name(self) -> str:
        """What ids begin with."""
        return self.path.resolve().name if self.path.is_dir() else _stem(self.path)


def files_of(path: str, source: str) -> Files:
    """The files that an entry of `data.path` means. Raises UserError where there are none."""
    place = Path(path).expanduser()
    suffixes = (".parquet",) if source == "parquet" else tuple(s + end for s in SUFFIXES for end in ("", ".gz"))
    if not place.is_dir():
        if not place.is_file():
            raise UserError(f"data.path={path} is not a file: give the path of a {source} file")
        return Files(place, (place,))
    if (place / UNFINISHED).exists():
        raise UserError(f"data.path={place} is a corpus whose build has not ended: launch its zppo data build again")
    found = _in(place, suffixes) or _in(place / "data", suffixes)
    if not found:
        raise _none(place, suffixes)
    chosen = _training(found)
    if not chosen:
        raise UserError(f"data.path={place} has {found[0].name} and no train-*: give the file that is to be trained on")
    return Files(place, chosen, tuple(file for file in found if file not in chosen))


def is_saved(name: str) -> bool:
    """Whether a path is a folder that `save_to_disk` wrote."""
    path = Path(name).expanduser()
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _in(folder: Path, suffixes: Sequence[str]) -> tuple[Path, ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted(f for f in folder.iterdir() if f.name.lower().endswith(tuple(suffixes)) and f.is_file()))


def _training(found: Sequence[Path]) -> tuple[Path, ...]:
    """The files of training where names tell splits apart; all where none of them is of another split."""
    splits = {file: match[1].lower() for file in found if (match := _SPLIT.match(file.name))}
    if training := tuple(file for file in found if splits.get(file) == "train"):
        return training if set(splits.values()) != {"train"} else tuple(found)
    return () if len(set(splits.values())) > 1 else tuple(found)


def _none(place: Path, suffixes: Sequence[str]) -> UserError:
    kind = "parquet" if ".parquet" in suffixes else "jsonl"
    other = "jsonl" if kind == "parquet" else "parquet"
    below = sorted(folder.name for folder in place.iterdir() if folder.is_dir() and _in(folder, suffixes))
    if below:
        return UserError(f"data.path={place} has its files in {', '.join(below[:5])}: give one of these folders")
    others = (".parquet",) if kind == "jsonl" else tuple(s + end for s in SUFFIXES for end in ("", ".gz"))
    if _in(place, others) or _in(place / "data", others):
        return UserError(f"data.path={place} has no {kind} files in it but others: use data={other}")
    shown = "*.parquet" if kind == "parquet" else "*.jsonl"
    return UserError(f"data.path={place} is not a file and has no {shown} in it: give a file or a folder of them")


def _stem(path: Path) -> str:
    return path.with_suffix("").stem if path.suffix == ".gz" else path.stem
