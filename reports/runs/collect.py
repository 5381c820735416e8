"""From run folders to tables: one row a score, one row a run. Reads files only, imports nothing of the harness."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from reports.runs.damage import info_problem

BASE = "base"
"""`method` of a run without training."""

ORDER = (
    BASE, "sft", "off_policy_kd", "off_policy_kd_replay", "on_policy_kd", "on_policy_kd_replay", "grpo", "grpo_replay",
    "grpo_teacher_response", "grpo_both", "grpo_replay_bcq", "grpo_replay_ncq", "hint", "prefix", "zppo",
    "grpo_equal_tokens", "grpo_random_reward", "zppo_foreign_ncq", "zppo_wrong_teacher",
)  # fmt: skip
"""The methods as tables list them: the paper's rows, then the control arms. Others come last, by name."""


@dataclass(frozen=True)
class Column:
    """One column of the long table: its name, the file it comes from, its name there, and whether it may be missing."""

    name: str
    source: Literal["run.json", "scores.csv"]
    field: str
    required: bool = True


COLUMNS = (
    Column("label", "run.json", "label"),
    Column("method", "run.json", "method"),
    Column("student", "run.json", "student"),
    Column("teacher", "run.json", "teacher", required=False),
    Column("seed", "run.json", "seed"),
    Column("learning_rate", "run.json", "learning_rate", required=False),
    Column("benchmark", "scores.csv", "benchmark"),
    Column("family", "scores.csv", "family", required=False),
    Column("score", "scores.csv", "score"),
    Column("stderr", "scores.csv", "stderr", required=False),
    Column("n", "scores.csv", "n"),
    Column("num_judged", "scores.csv", "num_judged", required=False),
    Column("num_malformed", "scores.csv", "num_malformed", required=False),
    Column("protocol", "scores.csv", "protocol"),
)
"""`score` and `stderr` are in percent. Added: `suite` (the folder's name), and `note`: why a score is missing, or what
the data of its benchmark lacked."""
ADDED = ("suite", "note")


@dataclass(frozen=True)
class Run:
    """One run folder: its `run.json`, and why it is not in the tables (None where it is)."""

    folder: Path
    info: dict[str, Any]
    incomplete: str | None

    @property
    def name(self) -> str:
        return f"{self.info['label']} {self.info['student']} seed{self.info['seed']}"


def find_runs(study_dir: Path) -> list[Run]:
    """Every run of a study, by method (`ORDER`), label, student and seed.

    One that cannot be read, of another version or half written, is incomplete and says so. Raises ValueError where the
    folder does not exist or has no run.
    """
    if not study_dir.is_dir():
        raise ValueError(f"no study folder {study_dir}: name one, such as outputs/quickstart")
    runs = [_run(file) for file in sorted(study_dir.glob("*/*/seed*/run.json"))]
    runs += [_recordless(file.parent) for file in sorted(study_dir.glob("*/*/seed*/config.yaml"))
             if not (file.parent / "run.json").exists()]  # fmt: skip
    known = {run.folder for run in runs}
    runs += [run for run in _refused(study_dir) if run.folder not in known]
    if not runs:
        raise ValueError(f"{study_dir} has no runs: start them with zppo sweep or zppo train")
    return sorted(runs, key=lambda run: (rank(run.info["method"]), by_number(run.info["label"]), run.info["student"],
                                         run.info["seed"]))  # fmt: skip


def by_number(label: str) -> list[tuple[float, str]]:
    """A key that puts `updates_per_step=4` before `updates_per_step=16`, and a rate of 6e-05 before 0.0001."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", label)
    return [(float(part), "") if i % 2 else (-1.0, part) for i, part in enumerate(parts)]


def rank(method: str) -> tuple[int, str]:
    """The place of a method in tables."""
    return (ORDER.index(method) if method in ORDER else len(ORDER), method)


def with_study(runs: Sequence[Run]) -> list[Run]:
    """The runs with their study's name in front of their labels."""
    return [
        replace(run, info=run.info | {"label": f"{run.folder.resolve().parents[2].name}/{run.info['label']}"})
        for run in runs
    ]


def collect(study_dir: Path) -> pd.DataFrame:
    """The long table of a study: one row for each complete run, suite and benchmark, in the order of `find_runs`.

    Scores of evaluations during training (`eval/<suite>/step-000010/`) are not read. A score that is no percentage is
    left out, with a note. Raises ValueError as `find_runs`.
    """
    return long_table(find_runs(study_dir))


def long_table(runs: Sequence[Run]) -> pd.DataFrame:
    """`collect` for runs that were found already."""
    tables = [_scores(run, file) for run in runs if run.incomplete is None for file in score_files(run.folder)]
    names = [*(column.name for column in COLUMNS), *ADDED]
    return pd.concat(tables, ignore_index=True)[names] if tables else pd.DataFrame(columns=names)


def score_files(folder: Path) -> list[Path]:
    """`eval/<suite>/scores.csv` of a run."""
    return sorted(folder.glob("eval/*/scores.csv"))


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by dotted key; an empty mapping is a leaf, so that it is not lost."""
    if not isinstance(node, dict) or not node:
        return {prefix.removesuffix("."): node}
    return {key: leaf for name, child in node.items() for key, leaf in flatten(child, f"{prefix}{name}.").items()}


def seconds_of(info: dict[str, Any]) -> float | None:
    """The time that a run ran, over all its launches; of an earlier version's, from its first start to its end."""
    if "seconds" in info:
        return float(info["seconds"])
    if not info.get("finished"):
        return None
    return (datetime.fromisoformat(info["finished"]) - datetime.fromisoformat(info["started"])).total_seconds()


def _named(folder: Path) -> dict[str, Any]:
    label, student, seed = folder.parts[-3:]
    return {"label": label, "method": label.partition(",")[0], "student": student, "seed": _number(seed)}


def _recordless(folder: Path) -> Run:
    """A run that has begun, whose `run.json` was removed or was not copied with the rest."""
    info = _named(folder) | {"status": "unreadable"}
    return Run(folder, info, "run.json is missing: copy it, or launch the run again")


def _run(file: Path) -> Run:
    named = _named(file.parent)
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(info, dict):
            raise ValueError
    except (ValueError, RecursionError):
        return Run(file.parent, named | {"status": "unreadable"}, "run.json is no JSON: half written, or damaged")
    except OSError as error:
        return Run(file.parent, named | {"status": "unreadable"}, f"run.json cannot be read ({error.strerror})")
    wanted = ["status", *(column.field for column in COLUMNS if column.source == "run.json" and column.required)]
    missing = [name for name in wanted if info.get(name) is None]
    if missing:
        reason = f"run.json has no '{missing[0]}': of another version of this harness, run it again"
        return Run(file.parent, named | {"status": "unreadable"}, reason)
    if problem := info_problem(info):
        return Run(file.parent, named | {"status": "unreadable"}, f"run.json is damaged: {problem}")
    if info["status"] == "running":
        return Run(file.parent, info, "running, or killed while it ran: zppo status tells")
    if info["status"] != "done":
        said = info.get("error")
        return Run(file.parent, info, info["status"] + (f": {str(said).splitlines()[-1]}" if said else ""))
    return Run(file.parent, info, _why_not_scored(file.parent))


def _refused(study_dir: Path) -> list[Run]:
    """The cells of `refused.jsonl` that have no run, each with its newest line."""
    file, found = study_dir / "refused.jsonl", {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
        try:
            said = json.loads(line)
            label, student, seed, error = said["label"], said["student"], said["seed"], str(said["error"])
        except (ValueError, TypeError, KeyError):
            continue
        folder = study_dir / str(label) / str(student) / f"seed{seed}"
        named = {"label": str(label), "method": str(label).partition(",")[0], "student": str(student), "seed": seed}
        if not (folder / "run.json").exists():
            found[folder] = Run(folder, named | {"status": "refused"}, f"refused: {(error.splitlines() or [''])[0]}")
    return list(found.values())


def _number(seed: str) -> int:
    digits = seed.removeprefix("seed")
    return int(digits) if digits.isdecimal() else -1


def _why_not_scored(folder: Path) -> str | None:
    """Why a finished run has no scores; None if it has. Every score file has to have the required columns."""
    files = score_files(folder)
    for file in files:
        try:
            header = list(pd.read_csv(file, dtype=str).columns)  # all of it: what cannot be read is said here
        except (ValueError, OSError) as error:
            return f"{file.relative_to(folder)} cannot be read ({str(error).splitlines()[0]}): evaluate the run again"
        for column in COLUMNS:
            if column.source == "scores.csv" and column.required and column.field not in header:
                return f"{file.relative_to(folder)} has no column '{column.field}': evaluate the run again"
        try:
            _partial(file)
        except ValueError as error:
            return str(error)
    return None if files else "done, but not evaluated"


def _scores(run: Run, file: Path) -> pd.DataFrame:
    """The score file with the columns of `COLUMNS` and `ADDED`."""
    scores = pd.read_csv(file, dtype={"benchmark": str, "family": str, "protocol": str})
    values: dict[str, Any] = {
        column.name: (run.info if column.source == "run.json" else scores).get(column.field) for column in COLUMNS
    }
    table = pd.DataFrame(values, index=scores.index)  # at once: a column at a time costs ten times as much
    score = pd.to_numeric(table["score"], errors="coerce")
    wrong = table["score"].notna() & ~score.between(0.0, 100.0)
    notes = table["benchmark"].map(_partial(file)).fillna("")
    notes = notes.mask(table["score"].isna(), "not evaluated, see protocol.json")
    given = table["score"].astype(str)
    table["note"] = notes.mask(wrong, "its score " + given + " is no percentage")
    table["score"] = score.mask(wrong)
    return table.assign(suite=file.parent.name)


def _partial(scores: Path) -> dict[str, str]:
    """What the data of benchmarks lacked, by their names. Raises ValueError, one line, where nobody can read it."""
    file = scores.with_name("protocol.json")
    if not file.exists():
        return {}
    try:
        return {
            str(name): str(lacks)
            for name, lacks in json.loads(file.read_text(encoding="utf-8")).get("partial", {}).items()
        }
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file.parent.name}/{file.name} is damaged: evaluate the run again") from error
