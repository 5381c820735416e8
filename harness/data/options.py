"""The options of a multiple choice in the forms of published data sets, and which of them an answer names.

A list; a record by letters; `{"text": [...], "label": [...]}`. An answer is a letter, a label, a text or the place of
the right one, counted from 0.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.data.scalars import text_of
from harness.rewards.choice import LETTERS, lettered

_LABELLED = re.compile(r"\s*[(\[]?([A-Z])\s*[)\].:]\s*(?=\S)")
_SHORT = 3
"""An option of fewer characters may stand in a question by chance."""


@dataclass(frozen=True)
class Options:
    """The texts of the options, and the labels that the data set gives them."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    are_numbers: bool = False
    """Numbers and no texts, so that a number that is an answer is one of them and no place."""

    def letter(self, answer: Any) -> str | None:
        """The letter of the option that an answer names by place, label or text; None where it names none of them."""
        is_place = isinstance(answer, int) and not isinstance(answer, bool) and not self.are_numbers
        if is_place and not all(map(str.isdecimal, self.labels)):
            return LETTERS[answer] if 0 <= answer < len(self.texts) else None
        text = text_of(answer)
        label = text.strip("()[]. ")
        for names, name in ((self.labels, label), (self.texts, text)):
            if names.count(name) == 1:
                return LETTERS[names.index(name)]
        if label.isdecimal() and not self.are_numbers and not all(map(str.isdecimal, self.labels)):
            return LETTERS[int(label)] if int(label) < len(self.texts) else None
        return None

    def shown_in(self, question: str) -> bool:
        """Whether a question holds the text of every option already, in their order."""
        plain, position = " ".join(question.split()), 0
        for letter, text in zip(LETTERS, self.texts, strict=False):
            wanted = re.escape(" ".join(text.split()))
            label = rf"(?:\(?{letter}\)|{letter}\s*[.:])\s*" if len(text) < _SHORT else ""
            found = re.compile(rf"(?<!\w){label}{wanted}(?!\w)", re.IGNORECASE).search(plain, position)
            if found is None:
                return False
            position = found.end()
        return True

    def shown(self) -> str:
        return lettered(self.texts)


def options(value: Any) -> Options | None:
    """The options of a value; None where there are no two. Raises ValueError, which says what an entry is."""
    if isinstance(value, str):
        value = _literal(value)
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        texts = _texts(value["text"])
        labels = _texts(value["label"]) if isinstance(value.get("label"), list) else list(LETTERS[: len(texts)])
        if len(labels) != len(texts):
            raise ValueError(f"has {len(texts)} texts and {len(labels)} labels")
    elif isinstance(value, dict):
        present = {str(key): entry for key, entry in value.items() if entry is not None}
        texts, labels = _texts(list(present.values())), list(present)
    elif isinstance(value, list):
        texts, labels = _of_list(value)
    else:
        return None
    if len(texts) > len(LETTERS):
        raise ValueError(f"has {len(texts)} options: at most {len(LETTERS)} are read")
    are_numbers = isinstance(value, list) and all(isinstance(entry, int | float) for entry in value)
    return Options(tuple(texts), tuple(labels), are_numbers) if len(texts) > 1 else None


def _of_list(value: Sequence[Any]) -> tuple[list[str], list[str]]:
    """A list of texts, of `A) text`, or of `{"label": ..., "text": ...}`."""
    if value and all(isinstance(entry, dict) and "text" in entry for entry in value):
        labels = [str(entry.get("label", LETTERS[i % len(LETTERS)])) for i, entry in enumerate(value)]
        return _texts([entry["text"] for entry in value]), labels
    texts = _texts(value)
    letters = list(LETTERS[: len(texts)])
    found = [_LABELLED.match(text) for text in texts]
    if len(texts) > 1 and [match and match[1] for match in found] == letters:
        texts = [text[match.end() :] for text, match in zip(texts, found, strict=True) if match]
    return texts, letters


def _texts(values: Sequence[Any]) -> list[str]:
    return [text_of(value) for value in values]


def _literal(text: str) -> Any:
    """A list that is written as a text: JSON's or Python's."""
    if not text.strip().startswith(("[", "{")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None
