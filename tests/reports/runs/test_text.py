"""Text of others acts on no terminal, hides nothing, and reads as no line of ours."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from reports.runs.text import INDENT, LONGEST_LINE, message, printable, printable_lines


def test_what_a_terminal_acts_on_or_hides_is_written_out() -> None:
    assert printable("\x1b\n\u00a0 a") == "\\x1b\\n\\xa0 a"
    assert (
        printable("\x1b]52;c;cHduZWQ=\x07\u202eevil\ud800\x9b2J") == "\\x1b]52;c;cHduZWQ=\\x07\\u202eevil\\ud800\\x9b2J"
    )
    assert printable("Übung 漢字 😀 é") == "Übung 漢字 😀 é"


def test_lines_that_we_made_stay_and_those_of_a_message_are_indented() -> None:
    assert printable_lines("a\x1b\nb\r") == "a\\x1b\nb\\r"
    assert message("error: a\nerror: b\u2028c") == "error: a\n  error: b\\u2028c"


@settings(max_examples=40)
@given(st.text())
def test_nothing_else_than_printable_characters_is_left(text: str) -> None:
    assert printable(text).isprintable()
    assert all(line.isprintable() for line in printable_lines(text).split("\n"))
    first, *others = message(text).split("\n")
    assert all(line.startswith("  ") for line in others) and printable(first) == first


def test_a_message_that_quotes_a_book_is_short_and_keeps_its_remedy() -> None:
    text = message("a gold answer " + "x" * 1_000_000 + ": remove it\n" + "y" * LONGEST_LINE)
    first, second = text.split("\n")
    assert len(first) < LONGEST_LINE + 50 and first.startswith("a gold answer x") and first.endswith("x: remove it")
    assert " [... 995025 characters ...] " in first and second == INDENT + "y" * LONGEST_LINE
