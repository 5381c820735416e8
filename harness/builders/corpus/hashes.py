"""Hashes by which a row is recognised: exactly, within the corpus, and nearly, among the questions of benchmarks.

A near duplicate has the same text but for case, spacing and end punctuation, or a picture that looks alike. The
perceptual hashes (pHash, 64 bits of the low frequencies of the grey picture) of the two differ in a few bits.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.builders.corpus.tables import fold
from harness.errors import UserError
from harness.records.files import write_atomically

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from harness.types import Question

FORMAT = 1
MIN_TEXT_CHARS = 40
"""Fewest characters of a normal text: shorter questions ("What is the value of x?") are asked of many pictures."""

_MARK = re.compile(r"<(?:image|video)>")
_END = ".,;:!?\"'"


def normal_question(text: str) -> str:
    """A question without marks for media, case, spaces and surrounding punctuation; signs inside it stay.

    Example: `<image>\\nFind  x.` and `find x` are `findx`; `x-1` and `x+1` stay apart. Twice is the same as once.
    """
    # Again until nothing changes: what goes can bring a mark together, or a letter and its accent.
    while (simpler := _MARK.sub("", "".join(fold(text).split())).strip(_END)) != text:
        text = simpler
    return text


def text_hash(text: str) -> str | None:
    """16 hex digits of the normal question; None where it is too short to be one of its kind."""
    normal = normal_question(text)
    return hashlib.blake2b(normal.encode(), digest_size=8).hexdigest() if len(normal) >= MIN_TEXT_CHARS else None


def image_hash(image: Image) -> str:
    """16 hex digits of the picture's perceptual hash."""
    import imagehash

    return str(imagehash.phash(image))


def digest(*parts: str | bytes) -> bytes:
    """16 bytes that tell sequences of parts apart."""
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        made.update(len(data).to_bytes(8, "big"))
        made.update(data)
    return made.digest()


@dataclass(kw_only=True)
class BenchmarkHashes:
    """The questions of benchmarks as hashes. `texts` and `images`: from a hash to the id of a question that has it."""

    columns: dict[str, int] = field(default_factory=dict)
    """How many questions of each benchmark are in it."""
    missing: dict[str, str] = field(default_factory=dict)
    """Benchmarks whose data were not there, and why."""
    texts: dict[str, str] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)

    def add(self, column: str, questions: Iterable[Question]) -> None:
        """Raises MediaError for a picture that cannot be decoded."""
        for question in questions:
            self.columns[column] = self.columns.get(column, 0) + 1
            if hashed := text_hash(question.text):
                self.texts.setdefault(hashed, question.id)
            for image in question.images:
                self.images.setdefault(image_hash(image.open()), question.id)

    def save(self, path: Path) -> None:
        write_atomically(path, json.dumps({"format": FORMAT, **vars(self)}, indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, path: Path) -> BenchmarkHashes:
        """Raises UserError for a file that `save` has not written."""
        try:
            stored: Any = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(stored, Mapping) or stored.get("format") != FORMAT:
                raise ValueError(f"it is not of format {FORMAT}")
            parts = {name: stored[name] for name in ("columns", "missing", "texts", "images")}
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{path} is no file of hashes ({error}): make it anew with zppo data hash --out {path}"
            ) from error
        return cls(**parts)


class NearDuplicates:
    """Looks rows up among the questions of benchmarks."""

    def __init__(self, hashes: BenchmarkHashes, distance: int) -> None:
        import numpy as np

        self._texts = hashes.texts
        self._ids = list(hashes.images.values())
        self._images: np.ndarray = np.array([int(key, 16) for key in hashes.images], dtype=np.uint64)
        self._distance = distance

    def of_text(self, text: str) -> str | None:
        """The id of a benchmark's question with this text."""
        hashed = text_hash(text)
        return None if hashed is None else self._texts.get(hashed)

    def of_image(self, image: Image) -> str | None:
        """The id of a benchmark's question whose picture looks most like this one, within the distance."""
        import numpy as np

        if not self._ids:
            return None
        distances = np.bitwise_count(self._images ^ np.uint64(int(image_hash(image), 16)))
        nearest = int(distances.argmin())
        return self._ids[nearest] if distances[nearest] <= self._distance else None
