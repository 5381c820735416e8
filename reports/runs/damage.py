"""Which files of a run are damaged or incomplete: a report leaves them out and says so."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any


def json_rows(file: Path, *, is_written: bool = False) -> tuple[list[dict[str, Any]], int]:
    """The objects of a file with one a line, and how many lines are none. No file has no rows.

    A run that is writing right now may have half a last line: it counts only where `is_written`.
    """
    try:
        *lines, rest = file.read_bytes().split(b"\n")
    except OSError:
        return [], 0
    rows, num_damaged = [], 0
    for line in [*lines, rest] if rest and (is_written or _object(rest) is not None) else lines:
        found = _object(line)
        if found is None:
            num_damaged += 1
        else:
            rows.append(found)
    return rows, num_damaged


KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("status", "label", "method", "student", "teacher", "started", "finished"), (str, type(None))),
    **dict.fromkeys(("error", "last_error"), (str, type(None))),
    **dict.fromkeys(("seed", "num_steps", "most_steps"), (int, type(None))),
    **dict.fromkeys(("cost", "versions"), (dict,)),
    "lost_records": (dict, type(None)),
    "rollouts_from": (int,),
    "seconds": (int, float),
}
"""What the fields of run.json hold, where they are there; who needs one says so where it is null."""


def info_problem(info: dict[str, Any]) -> str | None:
    """Which field of run.json holds what no run writes, in half a line; None where none does."""
    wrong = [name for name, kinds in KINDS.items() if name in info and not _is_a(info[name], kinds)]
    if not wrong:
        cost, lost = info.get("cost", {}), info.get("lost_records") or {}
        wrong += [f"cost of {name}" for name, value in cost.items() if not _is_a(value, (int, float))]
        wrong += [f"lost_records of {name}" for name, steps in lost.items() if not isinstance(steps, list)]
    return f"its {wrong[0]} is no value that a run writes" if wrong else None


def _is_a(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def config_problem(folder: Path, info: dict[str, Any]) -> str | None:
    """Why config.yaml is not the one of the run; None where it is, or an earlier version wrote no checksum of it."""
    try:
        content = (folder / "config.yaml").read_bytes()
    except FileNotFoundError:
        return "no config.yaml"
    except OSError:
        return "config.yaml cannot be read"
    written = info.get("config_sha256")
    is_other = written is not None and hashlib.sha256(content).hexdigest() != written
    return "config.yaml is not what the run wrote" if is_other else None


def damage(folder: Path, info: dict[str, Any]) -> tuple[str, ...]:
    """What is missing or cannot be read of a run's records, a phrase each; empty where all is there."""
    found = [f"lost: {_lost(info['lost_records'])}"] if isinstance(info.get("lost_records"), dict) else []
    if "config_sha256" in info and (problem := config_problem(folder, info)):
        found.append(problem)
    done = info.get("status") == "done"
    metrics, num_damaged = json_rows(folder / "metrics.jsonl", is_written=done)
    steps = [row["step"] for row in metrics if isinstance(row.get("step"), int)]
    saved = [int(path.name[5:11]) for path in folder.glob("checkpoints/step-??????")] if done else []
    last = max([*steps, *saved, 0])
    if num_damaged or len(set(steps)) < last:
        found.append(f"metrics.jsonl has {len(set(steps))} of {max(last, len(steps) + num_damaged)} steps")
    events, num_damaged = json_rows(folder / "buffer.jsonl", is_written=done)
    num_events = sum(int(row.get("buffer/events", 0)) for row in metrics)
    if num_damaged or (done and len(events) < num_events):
        found.append(f"buffer.jsonl has {len(events)} of {max(num_events, len(events) + num_damaged)} events")
    first = max(1, info.get("rollouts_from", 1))
    gone = [n for n in range(first, last + 1) if not (folder / "rollouts" / f"step-{n:06d}.parquet").exists()]
    if done and gone:
        found.append(f"no rollouts of {len(gone)} of {last + 1 - first} steps, the first is {gone[0]}")
    for scores in sorted(folder.glob("eval/*/scores.csv")):
        if (num_scores := len(_score_rows(scores))) < (expected := _num_described(scores)):
            found.append(f"{scores.relative_to(folder)} has {num_scores} of {expected} benchmarks")
        rows = scores.with_name("rows.jsonl")
        if "config_sha256" in info and not rows.exists() and _num_rows(scores):
            found.append(f"no {rows.relative_to(folder)}")
        if rows.exists() and (num_lines := rows.read_bytes().count(b"\n")) < (expected := _num_rows(scores)):
            found.append(f"{rows.relative_to(folder)} has {num_lines} of {expected} rows")
    return tuple(found)


def _lost(steps: dict[str, Any]) -> str:
    return "; ".join(f"{name} of step {', '.join(map(str, numbers))}" for name, numbers in steps.items())


def _num_rows(scores: Path) -> int:
    """The responses that a score file counts; 0 where it does not say."""
    try:
        return sum(int(float(row.get("n") or 0)) for row in _score_rows(scores))
    except ValueError:
        return 0


def _score_rows(scores: Path) -> list[dict[str, str]]:
    try:
        with scores.open(encoding="utf-8", newline="") as lines:
            return list(csv.DictReader(lines))
    except (ValueError, OSError, csv.Error):
        return []


def _num_described(scores: Path) -> int:
    """The benchmarks that protocol.json describes or misses; 0 where it does not say, as earlier versions' did not."""
    try:
        said = json.loads(scores.with_name("protocol.json").read_text(encoding="utf-8"))
        return len(said["cards"]) + len(said["holes"])
    except (ValueError, OSError, LookupError, TypeError):
        return 0


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
