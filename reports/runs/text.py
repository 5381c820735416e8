"""Text of others (data, models, servers, labels) for a terminal or a log: nothing in it acts or hides."""

from __future__ import annotations

INDENT = "  "
LONGEST_LINE = 5000
"""Characters of a line of a message. What it quotes may be of any length."""


def printable(text: str) -> str:
    r"""Text without characters that a terminal may act on or hide: control, bidi, zero-width and odd spaces.

    Example: an escape character, a line break and a no-break space become `\x1b`, `\n` and `\xa0`.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def printable_lines(text: str) -> str:
    """`printable`, line by line: of text that we have put into lines."""
    return "\n".join(map(printable, text.split("\n")))


def message(text: str) -> str:
    """A message of which parts come from others: further lines are indented, so that none reads as another message.

    Of a line that is too long the middle is left out: the remedy stands at the end.
    """
    return f"\n{INDENT}".join(printable(_shortened(line)) for line in text.split("\n"))


def _shortened(line: str) -> str:
    if len(line) <= LONGEST_LINE:
        return line
    half = LONGEST_LINE // 2
    return f"{line[:half]} [... {len(line) - 2 * half} characters ...] {line[-half:]}"
