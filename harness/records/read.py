"""Reading what a run wrote. What is damaged is a user's error that names the file. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from harness.errors import UserError, first_line


class Damaged(UserError):
    """A file of a run folder that cannot be read."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} cannot be read ({reason}): put a good copy in its place, or remove the run folder to start anew"
        )


def read_json(path: Path) -> dict[str, Any]:
    """An object of a file; empty where there is no file. Raises Damaged."""
    return _object(path, json.loads)


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping of a file; empty where there is no file. Raises Damaged."""
    return _object(path, yaml.safe_load)


def read_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a file with one a line, and how many lines are none. No file has no rows. Raises Damaged."""
    rows, num_damaged = [], 0
    for line in _text(path).splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            num_damaged += 1
    return rows, num_damaged


def _object(path: Path, parse: Any) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = parse(_text(path))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise Damaged(path, first_line(error)) from error
    if not isinstance(found, dict) or not found:
        raise Damaged(path, "it is empty" if not found else f"it holds a {type(found).__name__}")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except UnicodeDecodeError as error:
        raise Damaged(path, "it is no UTF-8 text") from error
    except OSError as error:
        raise Damaged(path, str(error.strerror)) from error
