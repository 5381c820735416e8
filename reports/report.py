"""`zppo report STUDY ...`: everything that a report has, from run folders or from the published scores.

report.md and index.html for reading; scores.csv, table-*.{csv,tex}, bootstrap.csv, significance.csv, cost.csv and
equal_cost.csv to go on with; the figures as PNG and SVG.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

from reports.aggregates import aggregate_table, scale_table
from reports.bootstrap import SUBJECT, bootstrap_table
from reports.cost import cost_table, equal_cost, equal_cost_markdown
from reports.cost import to_csv as cost_csv
from reports.cost import to_markdown as cost_markdown
from reports.figures import draw_figures
from reports.page.page import PageFigure, collect_page_runs, write_page
from reports.page.rollouts import collect_rollouts
from reports.plots.style import Figure
from reports.published import STUDY as PUBLISHED
from reports.published import published_scores
from reports.runs.answers import read_answers
from reports.runs.collect import BASE, Run, find_runs, long_table, with_study
from reports.runs.damage import damage
from reports.sections import bootstrap_markdown, comparison_section, overall_sections, page_tables
from reports.significance import significance_table
from reports.tables import Comparison, compare, to_csv, to_latex
from reports.training_data import training_data

TINY_NOTE = "Tiny models prove that the plumbing works; their numbers say nothing about the paper's claims."
MANY = 12
"""Runs from which on drawing has a process of its own."""
SCORE_COLUMNS = (
    "study", "label", "method", "student", "teacher", "seed", "suite", "family", "benchmark", "score", "n", "stderr",
    "card", "note",
)  # fmt: skip
"""Columns of scores.csv: one row a run and benchmark, scores and standard errors in percent."""


@dataclass(frozen=True)
class Report:
    """What a report was made of, and where it lies."""

    folder: Path
    text: str
    """The tables as Markdown, for the terminal."""


def write_report(
    studies: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    delta: tuple[str, str] | None = None,
    baseline: str | None = None,
    with_published: bool = False,
) -> Report:
    """Write the report of one or several studies; `published` is the paper's own scores.

    It goes to `out`, by default `report/` in the study's folder. `delta` = (A, B) chooses the delta row
    (`reports.tables.compare`), `baseline` the label that the others are tested against (default: zppo where there is
    one, else base). Raises ValueError, one line, for what a user can fix.
    """
    sources = [_source(study) for study in studies]
    runs = [run for found, _ in sources for run in found]
    scores = _joined([table for _, table in sources])
    folder = _folder(studies, out)
    tables = compare(scores, delta)
    _check_baseline(scores, baseline)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        drawn = _drawing(runs, scores, folder, stack)
        bootstrap = bootstrap_table(scores)
        chosen = _baseline(scores, baseline)
        tests, unread = _tests(runs, scores, chosen)
        costs = [("cost", cost_table(runs, scores)), ("equal_cost", equal_cost(runs, scores))] if runs else []
        rollouts, remarks = collect_rollouts(runs)
        figures = drawn()
    for table, name in zip(tables, names(tables), strict=True):
        stem = re.sub(r"[^\w.+=,-]+", "_", f"table-{'-'.join(name)}")
        _write(folder / f"{stem}.csv", to_csv(table))
        _write(folder / f"{stem}.tex", to_latex(table, ", ".join(name)))
    _write(folder / "scores.csv", _csv(scores.rename(columns={"protocol": "card"})[list(SCORE_COLUMNS)]))
    _write(folder / "bootstrap.csv", _csv(bootstrap))
    if not tests.empty:
        _write(folder / "significance.csv", _csv(tests))
    title = " and ".join(_study_name(study) for study in studies)
    paper = compare(_source(PUBLISHED)[1]) if with_published else []
    sections = _table_sections(tables, tests, _paper_beside(tables, paper))
    aggregates, profiles = aggregate_table(scores, chosen)
    scales, data = scale_table(scores), training_data(runs)
    overall = overall_sections(aggregates, scales, data)
    named = {"aggregates": aggregates, "profiles": profiles, "scales": scales, "data": data}
    for stem, found in named.items():
        if not found.empty:
            _write(folder / f"{stem}.csv", _csv(found))
    incomplete = [*_incomplete(runs), *_damaged(runs, unread)]
    tiny = [TINY_NOTE] if any(str(run.info["student"]).startswith("tiny") for run in runs) else []
    parts = [f"# {title}", *sections]
    if not bootstrap.empty:
        parts.append(bootstrap_markdown(bootstrap))
    parts += [*incomplete, *tiny]
    parts += [f"## {f.title}\n\n![{f.title}]({f.name}.png)\n\n{f.caption}" for f in figures]
    parts += [section.text for section in overall]
    for kind, costs_table in costs:
        _write(folder / f"{kind}.csv", cost_csv(costs_table))
    if costs:
        parts.append("## Cost\n\nMeans over the runs of a row.\n\n" + cost_markdown(costs[0][1]))
        parts.append("## At equal cost\n\n" + equal_cost_markdown(costs[1][1]))
    _write(folder / "report.md", "\n\n".join(parts) + "\n")
    notes = [line for note in [*incomplete, *tiny, *remarks] for line in note.splitlines()]
    write_page(
        folder,
        title=title,
        tables=page_tables(tables, names(tables), tests, bootstrap, costs, overall),
        figures=[PageFigure(f.title, f.caption, folder / f"{f.name}.svg") for f in figures],
        runs=collect_page_runs(runs),
        rollouts=rollouts,
        notes=[line for line in notes if line and not line.startswith("#")],
    )
    text = "\n\n".join([*sections, *incomplete, *tiny, f"Written: {folder / 'report.md'} and index.html"])
    return Report(folder, text)


def names(tables: Sequence[Comparison]) -> list[list[str]]:
    """What tells the tables apart: the student, the suite where there are several, the family where the runs say."""
    several = len({table.suite for table in tables}) > 1
    named = [(table.student, table.suite if several else "", table.family) for table in tables]
    return [list(filter(None, name)) for name in named]


def _source(study: str | Path) -> tuple[list[Run], pd.DataFrame]:
    """The runs of a study and its long table."""
    if str(study) == PUBLISHED:
        return [], published_scores().assign(note="")
    runs = find_runs(Path(study))
    return runs, long_table(runs).assign(study=_study_name(study))


def _study_name(study: str | Path) -> str:
    return PUBLISHED if str(study) == PUBLISHED else Path(study).resolve().name


def _joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One long table; where two studies have a row of the same name, all rows say which study they are of."""
    scores = pd.concat(tables, ignore_index=True)
    if scores.duplicated(["label", "student", "seed", "suite", "benchmark"]).any():
        scores["label"] = scores["study"] + "/" + scores["label"]
    return scores


def _folder(studies: Sequence[str | Path], out: str | Path | None) -> Path:
    if out is not None:
        return Path(out)
    if len(studies) > 1 or str(studies[0]) == PUBLISHED:
        raise ValueError("several studies, or the published scores, have no folder of their own: --out DIR")
    return Path(studies[0]) / "report"


def _check_baseline(scores: pd.DataFrame, baseline: str | None) -> None:
    labels = list(dict.fromkeys(scores["label"]))
    if baseline is not None and baseline not in labels:
        raise ValueError(f"--baseline {baseline}: no run is labelled so; labels here: {', '.join(labels)}")


def _baseline(scores: pd.DataFrame, baseline: str | None) -> str | None:
    """What the others are tested against: the label that was named, zppo, or base."""
    labels = set(scores["label"])
    return baseline or next((label for label in (SUBJECT, BASE) if label in labels), None)


def _tests(runs: Sequence[Run], scores: pd.DataFrame, chosen: str | None) -> tuple[pd.DataFrame, list[str]]:
    """Tests against the baseline, and which rows are damaged. Empty where there is nothing to compare."""
    labels = list(dict.fromkeys(scores["label"]))
    if chosen is None or not runs or len(labels) < 2:
        return pd.DataFrame(), []
    known = set(labels)
    named = runs if all(run.info["label"] in known for run in runs if run.incomplete is None) else with_study(runs)
    answers, damaged = read_answers(named)
    return significance_table(scores, answers, chosen), damaged


def _paper_beside(tables: Sequence[Comparison], paper: Sequence[Comparison]) -> dict[tuple[str, str], Comparison]:
    """The paper's table of the same student and family, if there is one: another evaluation, so never in one column."""
    known = {(table.student, table.family): table for table in paper}
    return {key: known[key] for table in tables if (key := (table.student, table.family)) in known}


def _table_sections(
    tables: Sequence[Comparison], tests: pd.DataFrame, paper: dict[tuple[str, str], Comparison]
) -> list[str]:
    sections = []
    for table, name in zip(tables, names(tables), strict=True):
        sections.append(comparison_section(table, ", ".join(name), tests))
        if (key := (table.student, table.family)) in paper:
            title = f"{', '.join(name)}: as published"
            sections.append(comparison_section(paper[key], title, pd.DataFrame()))
    return sections


def _incomplete(runs: Sequence[Run]) -> list[str]:
    lines = [f"- {run.name}: {run.incomplete}" for run in runs if run.incomplete is not None]
    if not lines:
        return []
    return [f"## Incomplete\n\n{len(lines)} of {len(runs)} runs are in no table.\n\n" + "\n".join(lines)]


def _damaged(runs: Sequence[Run], unread: Sequence[str]) -> list[str]:
    lines = [f"- {run.name}: {phrase}" for run in runs for phrase in damage(run.folder, run.info)]
    lines += [line for line in unread if not any(line.partition(": ")[0] in other for other in lines)]
    if not lines:
        return []
    return ["## Damaged\n\nWhat is missing or cannot be read is left out of figures and tests.\n\n" + "\n".join(lines)]


def _drawing(
    runs: Sequence[Run], scores: pd.DataFrame, folder: Path, stack: ExitStack
) -> Callable[[], Sequence[Figure]]:
    """Gives the figures. Drawing many runs takes as long as all the rest, so both run at the same time."""
    if len(runs) < MANY:  # another process takes longer to start
        return partial(draw_figures, runs, scores, folder)
    pool = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))  # Arrow's threads do not survive a fork
    return pool.submit(draw_figures, runs, scores, folder).result


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, lineterminator="\n")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
