r"""The final answer of a response: the content of its last `\boxed{...}`."""

from __future__ import annotations

import re

# Escaped braces are characters, not groups. `\\boxed` (JSON-escaped text) still opens a box.
_TOKEN = re.compile(r"(?P<box>\\boxed\s*\{)|\\(?:[{}]|\\(?!boxed))|(?P<brace>[{}])")


_CLOSING = " \t\r\n.,;:!*_\"'`$)]\\\u3002"
"""What may follow a last box: punctuation, and what closes a formula or an emphasis."""


def last_boxed(text: str) -> str | None:
    r"""Content of the last complete `\boxed{...}`, stripped; None without one. "Last" is the one that starts last.

    An unclosed box does not count: the last complete one before it is taken. Linear in the length of `text`.
    """
    span = _last_span(text)
    return None if span is None else text[slice(*span)].strip()


def ends_with_box(text: str) -> bool:
    """Whether the last complete box ends the text, but for punctuation and what closes a formula."""
    span = _last_span(text)
    return span is not None and not text[span[1] + 1 :].strip(_CLOSING)


def _last_span(text: str) -> tuple[int, int] | None:
    """Where the content of the last complete box starts and ends."""
    start = text.rfind("\\boxed")
    if start < 0:
        return None
    tail = _last_complete(text, start)
    return tail if tail is not None else _last_complete(text, 0)


def _last_complete(text: str, start: int) -> tuple[int, int] | None:
    stack: list[int | None] = []  # where the content of an open box starts; None for a plain brace
    best: tuple[int, int] | None = None
    for token in _TOKEN.finditer(text, start):
        if token["box"]:
            stack.append(token.end())
        elif token["brace"] == "{":
            stack.append(None)
        elif token["brace"] == "}" and stack:
            content = stack.pop()
            if content is not None and (best is None or content > best[0]):
                best = (content, token.start())
    return best
