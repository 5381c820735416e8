"""`zppo report STUDY`: tables, training curves, costs and what is missing, as Markdown, CSV and PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from reports.collect import Run, collect, find_runs, seconds_of
from reports.figures import draw_curves, load_metrics
from reports.tables import Comparison, compare, markdown_table, to_csv, to_markdown

TINY_NOTE = "Tiny models prove that the plumbing works; their numbers say nothing about the paper's claims."


def write_report(study_dir: Path, delta: tuple[str, str] | None = None) -> Path:
    """Write `<study>/report/` and return its report.md; beside it are scores.csv (long), a CSV a table and curves.png.

    `delta` = (A, B) chooses the delta row, see `reports.tables.compare`. Raises ValueError, one line, where there is no
    study or no run, where `delta` names no label, and for files that cannot be read as a run's.
    """
    runs, scores = find_runs(study_dir), collect(study_dir)
    tables = compare(scores, delta)
    folder = study_dir / "report"
    folder.mkdir(exist_ok=True)
    scores.to_csv(folder / "scores.csv", index=False)
    for table, name in zip(tables, _names(tables), strict=True):
        (folder / f"table-{'-'.join(name)}.csv").write_text(to_csv(table), encoding="utf-8")
    sections = [f"# {study_dir.resolve().name}", _tables_section(runs, tables)]
    if draw_curves(load_metrics(runs), folder / "curves.png"):
        sections.append(
            "## Training\n\n![Training curves](curves.png)\n\n"
            "Lines are means over the seeds that reached the step; bands reach from the lowest to the highest."
        )
    sections.append("## Cost\n\nMeans over the runs of a row.\n\n" + cost_table(runs))
    file = folder / "report.md"
    file.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return file


def report_command(study_dir: str | Path, delta: tuple[str, str] | None = None) -> str:
    """Write the report and return what the command prints: the tables as Markdown and where the report lies."""
    file = write_report(Path(study_dir), delta)
    runs, scores = find_runs(Path(study_dir)), collect(Path(study_dir))
    return f"{_tables_section(runs, compare(scores, delta))}\n\nWritten: {file}"


def _tables_section(runs: list[Run], tables: list[Comparison]) -> str:
    """Tables, runs that are not in them, and the note on tiny models."""
    parts = [_table_section(table, ", ".join(name)) for table, name in zip(tables, _names(tables), strict=True)]
    incomplete = [f"- {run.name}: {run.incomplete}" for run in runs if run.incomplete is not None]
    if incomplete:
        parts.append(
            f"## Incomplete\n\n{len(incomplete)} of {len(runs)} runs are in no table.\n\n" + "\n".join(incomplete)
        )
    if any(str(run.info["student"]).startswith("tiny") for run in runs):
        parts.append(TINY_NOTE)
    return "\n\n".join(parts)


def _names(tables: list[Comparison]) -> list[list[str]]:
    """What tells the tables apart: the student, the suite where there are several, the family where the runs say."""
    several = len({table.suite for table in tables}) > 1
    names = [(table.student, table.suite if several else "", table.family) for table in tables]
    return [list(filter(None, name)) for name in names]


def _table_section(table: Comparison, title: str) -> str:
    counts = sorted(set(table.num_questions)) or [0]
    questions = f"{counts[0]:.0f}" if len(counts) == 1 else f"{counts[0]:.0f} to {counts[-1]:.0f}"
    note = f"Accuracy in percent, {questions} questions a benchmark"
    if not pd.isna(table.max_stderr):
        note += f"; the standard error of a single score is up to {table.max_stderr:.1f}"
    parts = [f"## {title}", to_markdown(table), note + "."]
    if table.refused:
        parts.append("\n".join(f"- {line}" for line in table.refused))
    return "\n\n".join(parts)


def cost_table(runs: list[Run]) -> str:
    """Wall time, training time, tokens and FLOPs of finished runs by student and label, as far as they are known."""
    rows: dict[tuple[str, str], list[dict[str, float | None]]] = {}
    for run in sorted(runs, key=lambda run: str(run.info["student"])):
        if run.info["status"] == "done":
            rows.setdefault((run.info["student"], run.info["label"]), []).append(_cost(run.info))
    if not rows:
        return "No run is done."
    means = {key: pd.DataFrame(costs).astype(float).mean().to_dict() for key, costs in rows.items()}
    known = [name for name in _FORMATS if any(not pd.isna(mean[name]) for mean in means.values())]
    cells = [
        [student, label, str(len(costs)), *(_FORMATS[name](means[student, label][name]) for name in known)]
        for (student, label), costs in rows.items()
    ]
    return markdown_table(["student", "method", "runs", *known], cells, num_left=2)


def _cost(info: dict[str, Any]) -> dict[str, float | None]:
    cost = info["cost"] if info.get("cost") else {}
    flops = [value for name, value in cost.items() if name.startswith("flops/")]
    return {
        "wall time": seconds_of(info),
        "training": cost.get("time/step"),
        "student tokens": cost.get("tokens/student_generated"),
        "teacher tokens": cost.get("tokens/teacher_generated"),
        "FLOPs": sum(flops) if flops else None,
    }


def _duration(seconds: float) -> str:
    if pd.isna(seconds):
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _count(number: float) -> str:
    return "-" if pd.isna(number) else f"{number:,.0f}"


def _scientific(number: float) -> str:
    return "-" if pd.isna(number) else f"{number:.2g}"


_FORMATS = {
    "wall time": _duration,
    "training": _duration,
    "student tokens": _count,
    "teacher tokens": _count,
    "FLOPs": _scientific,
}
