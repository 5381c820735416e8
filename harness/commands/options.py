"""What several commands share: words for overrides and studies, and where a command logs."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import NoReturn

from harness.errors import UserError
from harness.process.logs import PrintableFormatter, log_printable
from reports.runs.text import printable_lines


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command as every other error is said: one line, with the remedy."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see {self.prog} --help")


def add_overrides(parser: argparse.ArgumentParser, text: str = "key=value, Hydra's grammar") -> None:
    parser.add_argument("overrides", nargs="*", default=[], help=text)
    parser.add_argument("--config-dir", help="a folder with further options, <group>/<name>.yaml")


def add_study_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, help="runs at a time; default one a GPU, else one a core")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and stop")
    parser.add_argument("--force", action="store_true", help="remove the run folders and start anew")


def show(text: object) -> None:
    """Print what a command has to say, which may quote what others wrote."""
    print(printable_lines(str(text)))


def start_logging(*, quiet: bool = False) -> None:
    """Log to standard error. A `quiet` process, a rank other than 0, only says why it has to end."""
    log_printable()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.CRITICAL if quiet else logging.INFO, handlers=[handler])
    for noisy in (
        "httpx",
        "httpx2",
        "urllib3",
        "filelock",
        "fsspec",
        "lm_eval",
        "datasets",
        "accelerate",
        "matplotlib",
        "numexpr",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)
