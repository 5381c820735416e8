"""A benchmark that a YAML file describes: its name, and where its questions are, in the options of `data.`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from harness.config.data import SOURCES, DataConfig, check_data
from harness.config.evaluation import DESCRIPTIONS
from harness.config.values import Text
from harness.data.rows import Rows
from harness.data.sources import LOADERS
from harness.errors import UserError, did_you_mean, first_line
from harness.types import OwnBenchmark
from methods.options import validated


@dataclass
class Description:
    """The keys of the file."""

    name: Text
    family: Literal["LLM", "VLM", "Video"]
    data: DataConfig = field(default_factory=DataConfig)
    judged: bool = False


def is_description(entry: str) -> bool:
    """Whether an entry of `eval.benchmarks` names a file."""
    return entry.endswith(DESCRIPTIONS)


def described_benchmark(entry: str) -> OwnBenchmark:
    """The benchmark of a file. A path in it is relative to the file.

    Example of a file: `{name: sums, family: LLM, data: {source: jsonl, path: sums.jsonl}}`. Raises UserError for what
    is no such file, and for rows that cannot be used.
    """
    file, option = Path(entry).expanduser(), f"eval.benchmarks={entry}"
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{option} cannot be read ({first_line(error)}): it names a YAML file") from error
    found = _checked(option, values)
    data = found.data
    if data.path and data.source in ("jsonl", "parquet"):
        paths = [data.path] if isinstance(data.path, str) else data.path
        located = [str(file.parent / Path(path).expanduser()) for path in paths]
        data = replace(data, path=located[0] if isinstance(data.path, str) else located)
    rows = SOURCES.call(data.source, data, ours=LOADERS)
    if isinstance(rows, Rows):
        rows.check(data.max_bad_fraction)
        rows = rows.questions
    return OwnBenchmark(name=found.name, family=found.family, questions=list(rows), judged=found.judged)


def _checked(option: str, values: Any) -> Description:
    if not isinstance(values, dict):
        raise UserError(f"{option} is no mapping: write name, family and data, as docs/adding_parts.md does")
    try:
        found = validated(Description, values, lambda key: f"has an unknown key '{key}'.{did_you_mean(key, _KEYS)}")
        check_data(found.data)
    except (ValueError, TypeError) as error:
        raise UserError(f"{option} {first_line(error)}") from error
    except UserError as error:
        raise UserError(f"{option}: {error}") from error
    return found


_KEYS = ("name", "family", "data", "judged")
