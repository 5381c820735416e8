"""A finished run in a folder that somebody else may have written: what it decides, and that it leads nowhere else."""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.config.foreign import foreign_values, option_fields, stored_value
from harness.config.names import check_name
from harness.config.schema import RunConfig
from harness.errors import UserError, first_line
from harness.process.regular import open_regular, read_regular
from harness.records.files import altered
from harness.records.folder import RunFolder
from harness.records.read import digest

logger = logging.getLogger(__name__)
MAX_CONFIG_BYTES = 1 << 18
MAX_INFO_BYTES = 1 << 24
SECTIONS = ("student.", "eval.", "reward.", "rollout.")
"""What an evaluation reads of a configuration."""
SILENT = ("student.name", "student.path", "student.revision", "eval.every", "rollout.")
"""What the folder itself answers, or training alone reads."""


@dataclass(frozen=True, kw_only=True)
class ForeignRun:
    """What is read of a run: its names, and the marked options of its configuration by key."""

    label: str
    student: str
    options: dict[str, Any]
    stored: Any
    """The configuration as it is in the file, to say what of it was not taken."""

    def left_out(self, used: Any) -> list[str]:
        """Keys that decide an evaluation and that the folder sets otherwise than `used`, nested records."""
        keys = [key for key, _, marked in option_fields(RunConfig) if not marked and key.startswith(SECTIONS)]
        there = [key for key in keys if not key.startswith(SILENT) and stored_value(self.stored, key) is not MISSING]
        return [key for key in there if stored_value(self.stored, key) != stored_value(used, key)]


def read_foreign(path: Path) -> ForeignRun:
    """Raises UserError for a folder without a finished run, for damaged records, and for links that lead out of it."""
    _check_inside(path, ("run.json", "config.yaml", "model", "eval"))
    try:
        if (path / "run.json").exists():
            open_regular(path / "run.json", MAX_INFO_BYTES).close()
    except OSError as error:
        raise UserError(
            f"{path / 'run.json'} is damaged ({first_line(error)}): take another copy of the run"
        ) from error
    info = RunFolder.read_info(path)
    if info.get("status") != "done":
        raise UserError(f"{path} is no finished run ({info.get('status', 'no run.json')}): zppo eval run=FOLDER")
    for key in ("label", "student"):
        if not isinstance(info.get(key), str):
            raise UserError(f"{path / 'run.json'} has no {key}: take another copy of the run")
        check_name(f"{key} of {path / 'run.json'}", info[key])
    if problem := altered(path / "model"):
        raise UserError(f"{path / 'model'}: {problem}: take another copy of the run")
    stored = _read_config(path / "config.yaml", info.get("config_sha256"))
    try:
        found = foreign_values(stored, RunConfig)
    except UserError as error:
        raise UserError(f"{path / 'config.yaml'}: {error}") from error
    options = {key: value for key, value in found.items() if key.startswith(SECTIONS)}
    return ForeignRun(label=info["label"], student=info["student"], options=options, stored=stored)


def _read_config(file: Path, written: Any) -> Any:
    """`written` is the checksum that run.json has; of an earlier version's run, None.

    What somebody has edited is taken, with a warning. Half a file is not: its keys would stand at their defaults.
    """
    try:
        text = read_regular(file, MAX_CONFIG_BYTES).decode()
        stored = yaml.load(text, _NoAliases)
        if written is not None and digest(text) != written:
            sections = [key for key, _, _ in option_fields(RunConfig) if key.startswith(SECTIONS)]
            if gone := [key for key in sections if stored_value(stored, key) is MISSING]:
                raise ValueError(f"it is not what the run wrote, and has no {gone[0]}")
            logger.warning("%s is not what the run wrote: what it says now is taken", file)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)}): take another copy of the run") from error
    return stored


class _NoAliases(yaml.SafeLoader):
    """No run writes them, and a few lines of aliases of aliases stand for billions."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases")
        return super().compose_node(parent, index)


def _check_inside(run: Path, names: tuple[str, ...]) -> None:
    """These entries and all below them: the evaluation reads them and writes among them."""
    root, waiting = run.resolve(), [run / name for name in names]
    while waiting:
        entry = waiting.pop()
        try:
            kind = entry.lstat().st_mode
            if stat.S_ISLNK(kind):
                if not Path(os.path.realpath(entry)).is_relative_to(root):
                    raise UserError(f"{entry} is a link that leads out of the run: put a copy of what it names there")
            elif stat.S_ISDIR(kind):
                waiting += [entry / name for name in os.listdir(entry)]
            elif not stat.S_ISREG(kind):
                raise UserError(f"{entry} is neither a file nor a folder: remove it")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(
                f"{str(entry)[:500]} cannot be read ({error.strerror}): take another copy of the run"
            ) from error
