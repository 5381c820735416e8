"""What is logged is printable: a message, its traceback, and what a library's own handler prints."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from harness.process.logs import PrintableFormatter, log_printable, print_uncaught

EVIL = "\x1b]0;PWN\x07\nERROR forged \u202e"


@pytest.fixture
def records() -> Iterator[None]:
    before = logging.getLogRecordFactory()
    log_printable()
    yield
    logging.setLogRecordFactory(before)


def logged(formatter: logging.Formatter) -> str:
    stream, logger = io.StringIO(), logging.Logger("theirs")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger.addHandler(handler)
    try:
        raise ValueError(EVIL)
    except ValueError:
        logger.exception("skipped %s", EVIL)
    return stream.getvalue()


def test_a_log_line_and_its_traceback_are_printable(records: None) -> None:
    lines = logged(PrintableFormatter("%(levelname)s %(message)s")).removesuffix("\n").split("\n")
    assert lines[0] == "ERROR skipped \\x1b]0;PWN\\x07"
    assert lines[1:3] == ["  ERROR forged \\u202e", "  Traceback (most recent call last):"]
    assert lines[-2:] == ["  ValueError: \\x1b]0;PWN\\x07", "  ERROR forged \\u202e"]


def test_the_handler_of_a_library_gets_a_printable_message(records: None) -> None:
    assert logged(logging.Formatter("[lib] %(message)s")).startswith(
        "[lib] skipped \\x1b]0;PWN\\x07\nERROR forged \\u202e"
    )


def test_an_uncaught_error_is_printed_in_printable_form(capsys: pytest.CaptureFixture[str]) -> None:
    error = RuntimeError(EVIL)
    print_uncaught(RuntimeError, error, None)
    assert capsys.readouterr().err == "RuntimeError: \\x1b]0;PWN\\x07\nERROR forged \\u202e\n"
