"""The recorded rollouts of a run: which steps there are, and rows of one step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

RUN_PATTERNS = ("seed*/run.json", "*/seed*/run.json", "*/*/seed*/run.json")
"""Where runs lie below a student's, a label's and a study's folder."""


def rollout_files(run_dir: Path) -> dict[int, Path]:
    """The rollouts of a run by step, ascending. Raises ValueError, one line, where there is no run or it has none."""
    if not run_dir.is_dir():
        raise ValueError(f"no run folder {run_dir}: name one, such as outputs/quickstart/zppo/tiny_s/seed0")
    if not (run_dir / "run.json").exists():
        inside = sorted(str(file.parent) for pattern in RUN_PATTERNS for file in run_dir.glob(pattern))
        remedy = f"name one of the runs inside: {', '.join(inside)}" if inside else "it has no run.json"
        raise ValueError(f"{run_dir} is not the folder of a run: {remedy}")
    files = {
        int(file.stem.removeprefix("step-")): file
        for file in (run_dir / "rollouts").glob("step-*.parquet")
        if file.stem.removeprefix("step-").isdecimal()
    }
    if not files:
        raise ValueError(f"{run_dir} has no rollouts: the run made none, as a base run, or they were removed")
    return dict(sorted(files.items()))


def has_column(file: Path, name: str) -> bool:
    """Whether a step's file has a column; not where an earlier version wrote it, or it cannot be read."""
    try:
        return name in pq.read_schema(file).names
    except (pa.ArrowException, OSError):
        return False


def read_rollouts(file: Path, columns: Sequence[str], filters: list[tuple[str, str, Any]]) -> list[dict[str, Any]]:
    """Rows of one step that pass all filters, in recorded order. Raises ValueError, one line, where a column lacks."""
    try:
        names = pq.read_schema(file).names
        missing = [name for name in columns if name not in names]
        if missing:
            raise ValueError(f"{file} has no column '{missing[0]}': an earlier version wrote it, repeat the run")
        return pq.read_table(file, columns=list(columns), filters=filters or None).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{file} cannot be read: {str(error).splitlines()[0].rstrip('.')}: put a good copy in its place, or remove "
            "it to leave its step out"
        ) from error
