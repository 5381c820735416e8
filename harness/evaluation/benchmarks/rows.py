"""Rows of a benchmark's data set, from the hub or from a local copy of its repository, in the hub's own schema.

Pictures stay where they are: a row holds references to them.
"""

from __future__ import annotations

import ast
import hashlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from harness.config.evaluation import BenchmarkOptions
from harness.data.tables import MediaTable, holds
from harness.data.video import VideoFile
from harness.errors import UserError
from harness.evaluation.benchmarks.columns import ALL_CONFIGS, Column
from harness.types import AnswerType, ImageRef, Message, Question, VideoRef

TABLE_SUFFIXES = (".parquet", ".arrow", ".json", ".jsonl", ".csv", ".tsv", ".md")


class NoGold(UserError):
    """A row without a gold answer, which nothing can be compared with."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a data set. Cells are plain values; those of picture columns are references, or lists of them."""

    column: Column
    config: str
    split: str
    position: int
    """Position from 0, in its configuration and split."""
    cells: Mapping[str, Any] = field(repr=False)
    options: BenchmarkOptions = field(repr=False)
    folder: Path | None = field(default=None, repr=False)
    """The local copy of the repository, if that is where the rows come from."""

    @property
    def id(self) -> str:
        """Where the row stands: `<config>/<split>/<position>`, the configuration only where there are several."""
        return "/".join(filter(None, (self.config, self.split, str(self.position))))

    def __getitem__(self, name: str) -> Any:
        """A cell. Raises UserError, which names the columns there are, for one that the data set lacks."""
        if name not in self.cells:
            raise UserError(
                f"{self.column.name}: {self.column.dataset} has no column '{name}' ({', '.join(sorted(self.cells))}): "
                "is it another version of the data set?"
            )
        return self.cells[name]

    def gold(self, name: str) -> Any:
        """The cell with the gold answer. Raises NoGold where there is nothing in it."""
        value = self[name]
        if _is_empty(value):
            raise NoGold(f"{self.column.name}: row {self.id} of {self.column.dataset} has no gold answer in '{name}'")
        return value

    def question(
        self,
        text: str,
        answer: str,
        *,
        answer_type: AnswerType = "text",
        choices: Sequence[str] = (),
        images: Sequence[ImageRef | None] = (),
        video: VideoRef | None = None,
        messages: Sequence[Message] = (),
        part: str = "",
        **metadata: Any,
    ) -> Question:
        """A question of this row; `part` tells several of one row apart.

        `metadata` is what the column's scorer, judge and aggregation read: JSON values. `text` has no instruction about
        the form of the answer: the closing instruction is added where all prompts are made.
        """
        return Question(
            id=f"{self.column.name}/{self.id}" + (f"/{part}" if part else ""),
            text=text,
            answer=answer,
            answer_type=answer_type,
            messages=tuple(messages),
            source=self.column.name,
            images=tuple(image for image in images if image is not None),
            video=video,
            metadata={"choices": list(choices), **metadata} if choices else metadata,
        )

    def video(self, *paths: str) -> VideoRef:
        """The clip at the first of these paths, inside the repository, that exists. Raises UserError if none does."""
        root = self.folder or media_folder(self.column.repository, self.column.revision)
        for path in paths:
            if (root / path).is_file():
                return VideoFile(str(root / path))
        named = " or ".join(paths)
        raise UserError(
            f"{self.column.name}: {root} has no video {named}: unpack the archives of {self.column.dataset}"
        )


def texts_of(cell: Any) -> list[str]:
    """The texts of a cell that holds a list, or the Python form of one; a list that is all of a list is unwrapped.

    Raises SyntaxError or ValueError for a text that is neither.
    """
    items = ast.literal_eval(cell.strip()) if isinstance(cell, str) else cell
    while len(items) == 1 and isinstance(items[0], Sequence) and not isinstance(items[0], str):
        items = items[0]
    return [str(item) for item in items]


def _is_empty(value: Any) -> bool:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(map(_is_empty, value))
    return value is None or value != value or not str(value).strip()  # a missing number is a NaN


def load_rows(column: Column, options: BenchmarkOptions, data_root: str | None = None) -> Iterator[Row]:
    """The rows of a column, configuration by configuration, split by split.

    With `data_root`, from the copy of the repository in `<data_root>/<owner>/<name>`. Raises UserError for data that
    are not there, gated, or unreachable.
    """
    folder = None if data_root is None else Path(data_root).expanduser() / column.repository
    if folder is not None and not folder.is_dir():
        raise UserError(
            f"{column.name}: there is no folder {folder}: hf download --repo-type dataset {column.repository} "
            f"--local-dir {folder}, or leave out eval.data_root"
        )
    configs = column.configs or ("",)
    if configs == (ALL_CONFIGS,):
        configs = tuple(_config_names(column, folder))
    for config in configs:
        for split in column.splits:
            named = config if len(configs) > 1 else ""
            yield from _rows_of(column, options, folder, config, named, split)


def _rows_of(
    column: Column, options: BenchmarkOptions, folder: Path | None, config: str, named: str, split: str
) -> Iterator[Row]:
    table = MediaTable.of(
        _load(column, folder, config, split),
        origin=":".join(filter(None, (column.dataset, config, split))),
        folder="" if folder is None else str(folder),
    )
    schema = table.dataset.features.arrow_schema
    pictures = [name for name in schema.names if holds(schema.field(name).type) == "embedded"]
    texts = [name for name in schema.names if name not in pictures]
    plain = (dict(zip(texts, row, strict=True)) for row in zip(*map(table.values, texts), strict=True))
    shown = zip(*(table.references(name, "images") for name in pictures), strict=True) if pictures else None
    for position, cells in enumerate(plain):
        references = dict(zip(pictures, next(shown), strict=True)) if shown is not None else {}
        yield Row(
            column=column,
            config=named,
            split=split if len(column.splits) > 1 else "",
            position=position,
            cells=cells | references,
            options=options,
            folder=folder,
        )


def _load(column: Column, folder: Path | None, config: str, split: str) -> Any:
    import datasets

    try:
        if folder is None:
            return datasets.load_dataset(column.repository, config or None, split=split, revision=column.revision)
        # Its cache would know a folder by its last name alone, and take the rows of another copy for this one's.
        cache_dir = Path(datasets.config.HF_DATASETS_CACHE) / "local" / _folder_hash(folder)
        return datasets.load_dataset(str(folder), config or None, split=split, cache_dir=str(cache_dir))
    except Exception as error:  # from a wrong split to whatever the network stack raises
        raise _unreachable(column, folder, f"configuration {config or 'default'}, split {split}", error) from error


def _folder_hash(folder: Path) -> str:
    """Changes with the place, the name, the size and the time of any file that may hold rows."""
    files = (path for path in folder.rglob("*") if path.suffix in TABLE_SUFFIXES)
    stats = sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return hashlib.sha256(repr((str(folder.resolve()), stats)).encode()).hexdigest()[:16]


def _config_names(column: Column, folder: Path | None) -> list[str]:
    import datasets

    try:
        return datasets.get_dataset_config_names(
            column.repository if folder is None else str(folder), revision=None if folder else column.revision
        )
    except Exception as error:
        raise _unreachable(column, folder, "configurations", error) from error


def _unreachable(column: Column, folder: Path | None, what: str, error: Exception) -> UserError:
    reason = str(error.__cause__ or error).split("\n")[0] or type(error).__name__
    remedy = (
        "is the copy complete?"
        if folder is not None
        else "a gated data set needs its conditions accepted and `hf auth login`; offline, "
        "eval.data_root=<folder with copies of the repositories>"
    )
    return UserError(f"{column.name}: {folder or column.dataset} ({what}) cannot be loaded ({reason}): {remedy}")


@cache
def media_folder(repository: str, revision: str | None) -> Path:
    """The files of a hub repository in the local cache, with its zip archives unpacked next to them, once."""
    from huggingface_hub import snapshot_download

    try:
        snapshot = Path(snapshot_download(repository, repo_type="dataset", revision=revision))
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"the videos of {repository} cannot be downloaded ({reason}): offline, eval.data_root=<folder>"
        ) from error
    for archive in sorted(snapshot.rglob("*.zip")):
        done = archive.with_name(archive.name + ".unpacked")
        if not done.exists():
            with zipfile.ZipFile(archive) as file:
                file.extractall(archive.parent)
            done.touch()
    return snapshot
