r"""From what a data set keeps as its answer to the short gold answer: after `####`, in the last box, by a pattern.

GSM8K ends a solution with `#### 7`, MATH boxes its answer, and others have their own words, which a pattern names.
"""

from __future__ import annotations

import re

from harness.rewards.boxed import last_boxed
from harness.rewards.values import is_plain_word

_LAST_LINE = re.compile(r"(?:^|\n)[ \t]*####[ \t]*(\S[^\n]*?)\s*$")
_FRAMED = re.compile(r"\\fbox(?=\s*\{)")
_BARE_BOX = re.compile(r"\\boxed\s+([^\s{}$.,;]+)")
_COUNT = re.compile(r"(-?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?)\s+([a-z]{2,}s)\.?")


class NoGold(ValueError):
    """An answer from which no gold answer can be taken; the text is a part of a sentence that begins with it."""


def short_gold(text: str, answer_type: str, pattern: str | None = None) -> str:
    r"""The gold answer in a text. With a pattern it is the group of its last match.

    Else it is what follows `####` in the last line, or the content of the last box, or all of the text. Of a count with
    a plain plural (`7 pens`) the plural becomes a unit. Raises NoGold where the pattern matches nowhere, where a box is
    not closed, and for mathematics that is a plain word (`proof`).
    """
    if pattern is not None:
        matches = [match[1] or "" for match in re.finditer(pattern, text)]
        if not matches or not matches[-1].strip():
            raise NoGold("holds nothing that data.answer_pattern matches")
        return matches[-1].strip()
    if last := _LAST_LINE.search(text):
        return last[1]
    framed = _FRAMED.sub(r"\\boxed", text)
    if boxed := last_boxed(framed):
        return boxed
    if bare := _BARE_BOX.search(framed):
        return bare[1]
    if "\\boxed" in framed:
        raise NoGold("has no complete box that is not empty")
    if answer_type == "math":
        if count := _COUNT.fullmatch(text):
            return f"{count[1]}\\text{{ {count[2]}}}"
        if is_plain_word(text):
            raise NoGold("is a word, no mathematics: give such rows the answer type text")
    return text
