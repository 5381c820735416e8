"""What is logged is printable, whoever logs it and wherever it goes: our handlers, and those of libraries."""

from __future__ import annotations

import logging
import sys
import traceback
from types import TracebackType

from reports.runs.text import message, printable_lines


class PrintableFormatter(logging.Formatter):
    """Tracebacks too; what comes after a first line is indented."""

    def format(self, record: logging.LogRecord) -> str:
        return message(super().format(record))


class PrintableRecord(logging.LogRecord):
    """A record whose message every handler gets in printable form."""

    def getMessage(self) -> str:
        return printable_lines(super().getMessage())


def log_printable() -> None:
    """For the records of this process from now on."""
    logging.setLogRecordFactory(PrintableRecord)


def print_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """For `sys.excepthook`: a traceback whose message may hold anything."""
    sys.stderr.write(printable_lines("".join(traceback.format_exception(kind, error, trace))))
