"""Text of others (data, models, servers, labels) for a terminal or a log: nothing in it acts or hides."""

from __future__ import annotations

INDENT = "  "


def printable(text: str) -> str:
    r"""Text without characters that a terminal may act on or hide: control, bidi, zero-width and odd spaces.

    Example: an escape character, a line break and a no-break space become `\x1b`, `\n` and `\xa0`.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def printable_lines(text: str) -> str:
    """`printable`, line by line: of text that we have put into lines."""
    return "\n".join(map(printable, text.split("\n")))


def message(text: str) -> str:
    """A message of which parts come from others: further lines are indented, so that none reads as another message."""
    return f"\n{INDENT}".join(map(printable, text.split("\n")))
