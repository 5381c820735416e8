"""Reading what a run wrote. What is damaged is a user's error that names the file. Imports no torch."""

from __future__ import annotations

import hashlib
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


def read_config(run_dir: Path) -> dict[str, Any]:
    """What config.yaml of a run says; empty where there is none.

    run.json has the file's checksum, since half of a configuration is YAML as well; earlier versions wrote none. Raises
    Damaged.
    """
    file, written = run_dir / "config.yaml", read_json(run_dir / "run.json").get("config_sha256")
    if written is not None and digest(_text(file)) != written:
        raise Damaged(file, "it is not what the run wrote" if file.exists() else "it is missing")
    return read_yaml(file)


def digest(text: str) -> str:
    """SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


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
    text = _text(path)
    if not text and not path.exists():
        return {}
    try:
        found = parse(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise Damaged(path, first_line(error)) from error
    if not isinstance(found, dict) or not found:
        raise Damaged(path, "it is empty" if not found else f"it holds a {type(found).__name__}")
    return found


def _text(path: Path) -> str:
    """Its content with line ends as they are; empty where there is no file."""
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise Damaged(path, "it is no UTF-8 text") from error
    except OSError as error:
        raise Damaged(path, str(error.strerror)) from error
