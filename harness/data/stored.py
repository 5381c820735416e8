"""Questions on disk: written once, mapped into memory, and made again one by one when they are asked for.

A million questions as objects take a gigabyte. Here a question costs 28 bytes of memory; the rest stays in the file.
"""

from __future__ import annotations

import base64
import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from harness.config.data import DataConfig
from harness.data.images import ImageFile
from harness.data.pictures import EncodedImage, LineImage, Place
from harness.data.tables import MediaTable, TableImage, TableVideo
from harness.data.video import VideoFile
from harness.types import Question

Table = Callable[[], MediaTable]
"""The table that pictures and clips of a stream are in, opened when one of them is."""


class Writer:
    """Writes blocks of questions with their prompt tokens to a file."""

    def __init__(self, path: Path, origin: str) -> None:
        import pyarrow as pa

        self._origin = origin
        self._schema = pa.schema(
            [
                ("question", pa.binary()), ("num_tokens", pa.int32()), ("content", pa.uint64()),
                ("digest", pa.uint64()), ("id", pa.uint64()), ("has_media", pa.bool_()),
            ]
        )  # fmt: skip
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, self._schema)

    def add(self, questions: Sequence[Question], num_tokens: Sequence[int]) -> None:
        import pyarrow as pa

        if not questions:
            return
        encoded = [_encoded(question, self._origin) for question in questions]
        columns = [
            pa.array(encoded, pa.binary()),
            pa.array(num_tokens, pa.int32()),
            pa.array([content_hash(question) for question in questions], pa.uint64()),
            pa.array([_hash(payload) for payload in encoded], pa.uint64()),
            pa.array([_hash(question.id.encode()) for question in questions], pa.uint64()),
            pa.array([bool(question.images) or question.video is not None for question in questions], pa.bool_()),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()
        self._sink.close()


class StoredQuestions(Sequence[Question]):
    """The questions of such a file. `config` is that of the run that reads them, `table` has their media."""

    def __init__(self, path: Path, origin: str, config: DataConfig, table: Table | None) -> None:
        """Raises ValueError, as pyarrow's errors are, for a file that is none of these or is cut off."""
        import pyarrow as pa

        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._origin, self._table = origin, table
        self._common: dict[str, Any] = {
            "limits": config.media.limits(), "closing": config.closing, "scorer": config.reward or "",
        }  # fmt: skip
        self._batches = [self._reader.get_batch(i) for i in range(self._reader.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)]).tolist()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, position: int) -> Question: ...
    @overload
    def __getitem__(self, position: slice) -> list[Question]: ...
    def __getitem__(self, position: int | slice) -> Question | list[Question]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        if not -len(self) <= position < len(self):
            raise IndexError(position)
        position %= len(self)
        number = bisect_right(self._starts, position) - 1
        payload = self._batches[number].column(0)[position - self._starts[number]].as_py()
        return self._decoded(json.loads(payload))

    @cached_property
    def num_tokens(self) -> np.ndarray:
        return self._column("num_tokens", np.int32)

    @cached_property
    def content(self) -> np.ndarray:
        """Hashes of what each question asks."""
        return self._column("content", np.uint64)

    @cached_property
    def digests(self) -> np.ndarray:
        """Hashes of all that a question is."""
        return self._column("digest", np.uint64)

    @cached_property
    def ids(self) -> np.ndarray:
        """Hashes of the ids."""
        return self._column("id", np.uint64)

    @cached_property
    def has_media(self) -> np.ndarray:
        return self._column("has_media", np.bool_)

    def _column(self, name: str, kind: type) -> np.ndarray:
        place = self._reader.schema.get_field_index(name)
        parts = [batch.column(place).to_numpy(zero_copy_only=False) for batch in self._batches]
        return np.concatenate([np.empty(0, kind), *parts]).astype(kind)

    def _decoded(self, row: list[Any]) -> Question:
        name, text, answer, others, kind, messages, source, metadata, extra, images, video = row
        return Question(
            id=name,
            text=text,
            answer=answer,
            other_answers=tuple(others),
            answer_type=kind,
            messages=tuple(messages),
            source=source,
            metadata=metadata,
            extra=extra,
            images=tuple(self._reference(image, ImageFile, TableImage) for image in images),
            video=None if video is None else self._reference(video, VideoFile, TableVideo),
            **self._common,
        )

    def _reference(self, value: list[Any], in_file: type, in_table: type) -> Any:
        kind, *rest = value
        if kind == "file":
            return in_file(*rest)
        if kind == "line":
            number, offset, steps = rest
            return LineImage(Place(self._origin, number, offset), tuple(steps))
        if kind == "bytes":
            return EncodedImage(rest[0], base64.b64decode(rest[1]))
        assert self._table is not None, f"{self._origin} has media in a table that is not there"
        return in_table(self._table(), *rest)


class Chosen(Sequence[Question]):
    """Some of the questions of several sources: `positions` count through all of them, one after the other."""

    def __init__(self, parts: Sequence[StoredQuestions], positions: np.ndarray) -> None:
        self._parts, self._positions = parts, positions
        self._starts = np.cumsum([0, *map(len, parts)]).tolist()

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, position: int) -> Question: ...
    @overload
    def __getitem__(self, position: slice) -> list[Question]: ...
    def __getitem__(self, position: int | slice) -> Question | list[Question]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        place = int(self._positions[position])
        number = bisect_right(self._starts, place) - 1
        return self._parts[number][place - self._starts[number]]

    @property
    def has_media(self) -> bool:
        return bool(self._of("has_media").any())

    def digest(self) -> bytes:
        """Of all that these questions are, in their order."""
        return hashlib.sha256(self._of("digests").tobytes()).digest()

    @cached_property
    def by_id(self) -> Mapping[str, Question]:
        return _ById(self, self._of("ids"))

    def _of(self, name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in self._parts])[self._positions]


class _ById(Mapping[str, Question]):
    """Questions by id, found by the hashes of ids."""

    def __init__(self, questions: Chosen, ids: np.ndarray) -> None:
        self._questions = questions
        self._order = np.argsort(ids, kind="stable")
        self._sorted = ids[self._order]

    def __getitem__(self, name: str) -> Question:
        wanted = np.uint64(_hash(name.encode()))
        start = int(np.searchsorted(self._sorted, wanted))
        while start < len(self._sorted) and self._sorted[start] == wanted:
            if (question := self._questions[int(self._order[start])]).id == name:
                return question
            start += 1
        raise KeyError(name)

    def __iter__(self) -> Any:
        return (question.id for question in self._questions)

    def __len__(self) -> int:
        return len(self._questions)


def content_hash(question: Question) -> int:
    """A hash of what a question asks, by the names of its media."""
    names = [image.name for image in question.images] + ([question.video.name] if question.video is not None else [])
    return _hash(json.dumps([question.text, question.messages, names]).encode())


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _encoded(question: Question, origin: str) -> bytes:
    row = [
        question.id, question.text, question.answer, question.other_answers, question.answer_type, question.messages,
        question.source, question.metadata, question.extra, [_place(image, origin) for image in question.images],
        None if question.video is None else _place(question.video, origin),
    ]  # fmt: skip
    return json.dumps(row, separators=(",", ":")).encode()


def _place(reference: Any, origin: str) -> list[Any]:
    """A reference as JSON values."""
    if isinstance(reference, ImageFile | VideoFile):
        return ["file", reference.path]
    if isinstance(reference, LineImage):
        assert reference.place.origin == origin
        return ["line", reference.place.number, reference.place.offset, reference.steps]
    if isinstance(reference, EncodedImage):
        return ["bytes", reference.name, base64.b64encode(reference.data).decode()]
    assert isinstance(reference, TableImage | TableVideo), f"{type(reference).__name__} is of no file"
    return ["table", reference.row, reference.column, reference.index]
