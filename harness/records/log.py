"""run.log: what a run logs, from its preparation on."""

from __future__ import annotations

import logging
from logging.handlers import MemoryHandler
from pathlib import Path

from harness.process.logs import PrintableFormatter

CAPACITY = 10_000


class RunLog:
    """Keeps what is logged until the run begins and has a file for it; what was refused leaves no file."""

    def __init__(self) -> None:
        self._handler = MemoryHandler(CAPACITY, flushLevel=logging.CRITICAL + 1)
        self._file: logging.FileHandler | None = None
        logging.getLogger().addHandler(self._handler)

    def write_to(self, path: Path) -> None:
        """Append what was logged, and what will be, to a file."""
        self._file = logging.FileHandler(path, encoding="utf-8")
        self._file.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(message)s"))
        self._handler.setTarget(self._file)
        self._handler.flush()
        self._handler.capacity = 1  # from here on each line at once

    def close(self) -> None:
        logging.getLogger().removeHandler(self._handler)
        self._handler.close()
        if self._file is not None:
            self._file.close()
