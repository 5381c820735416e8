"""From results to what is read: Markdown sections and the tables of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports.bootstrap import BEST
from reports.cost import rows_of as cost_rows
from reports.inference.contrast import BETTER, WORSE
from reports.page.page import PageRow, PageTable
from reports.tables import MACRO, MALFORMED_MARK, MAX_MALFORMED, Comparison, markdown_table, rows_of, to_markdown

BOOTSTRAP_TITLE = "Leads of zppo: choice of benchmarks, these runs"
BOOTSTRAP_NOTE = (
    "Percentage points over the benchmarks that both rows have. Intervals (95 %) resample benchmarks, 10,000 times: "
    "they cover the choice of benchmarks, neither seeds nor questions, and are no verdict about a method."
)
VERDICT_NOTE = (
    "Leads in percentage points, 95 % intervals and verdicts over seeds and questions. Verdicts are corrected over all "
    "labels and benchmarks of the table. Detectable: the lead that these runs find with probability 0.8."
)
VERDICT_HEADER = ["label", "lead", "interval", "verdict", "better on", "worse on", "detectable", "seeds", "note"]


def comparison_section(table: Comparison, title: str, tests: pd.DataFrame) -> str:
    """A table with its heading, what its numbers are, what is missing in it, and what the tests say."""
    parts = [f"## {title}", to_markdown(table), table_note(table)]
    parts += ["\n".join(f"- {line}" for line in table.refused)] if table.refused else []
    if rows := verdict_rows(tests, table):
        text = markdown_table(VERDICT_HEADER, rows)
        parts += [f"### {title}, {_against(tests)}", text, VERDICT_NOTE]
    return "\n\n".join(parts)


def table_note(table: Comparison) -> str:
    counts = sorted(set(table.num_questions.dropna()))
    note = "Accuracy in percent"
    if counts:
        questions = f"{counts[0]:.0f}" if len(counts) == 1 else f"{counts[0]:.0f} to {counts[-1]:.0f}"
        note += f", {questions} questions a benchmark"
    if not pd.isna(table.max_stderr):
        note += f"; the standard error of a single score is up to {table.max_stderr:.1f}"
    if (table.num_seeds > 1).any():
        note += "; ± is the standard deviation over seeds"
    return " ".join(filter(None, [f"{note}.", malformed_note(table), rates_note(table)]))


def malformed_note(table: Comparison) -> str:
    """What the mark of a column says; empty where there is none."""
    if not table.malformed:
        return ""
    shares = ", ".join(f"{name} {share:.1%}" for name, share in table.malformed.items())
    return (
        f"{MALFORMED_MARK.strip()} More than {MAX_MALFORMED:.0%} of the judge's replies were no verdicts and count as "
        f"wrong (worst run: {shares})."
    )


def rates_note(table: Comparison) -> str:
    """Which learning rate each row was trained with; empty where the runs do not say."""
    if not table.rates:
        return ""
    if len(set(table.rates.values())) == 1:
        return f"Learning rate of all trained rows: {next(iter(table.rates.values()))}."
    return f"Learning rates: {', '.join(f'{label} {rate}' for label, rate in table.rates.items())}."


def verdict_rows(tests: pd.DataFrame, table: Comparison) -> list[list[str]]:
    """A row a label: its lead over the baseline and the verdict on the macro average, or on the only benchmark."""
    if tests.empty:
        return []
    here = (tests["student"] == table.student) & (tests["suite"] == table.suite) & (tests["family"] == table.family)
    rows = []
    for label, results in tests[here].groupby("label", sort=False):
        macro = results.iloc[-1]
        single = results[results["benchmark"] != MACRO]
        on = [", ".join(single.loc[single["verdict"] == word, "benchmark"]) or "-" for word in (BETTER, WORSE)]
        notes = dict.fromkeys(note for text in results["note"] for note in text.split("; ") if note)
        numbers = [
            "-" if pd.isna(macro["delta"]) else f"{macro['delta']:+.2f}",
            "-" if pd.isna(macro["lo"]) else f"{macro['lo']:+.2f} to {macro['hi']:+.2f}",
        ]
        found = "-" if pd.isna(macro["detectable"]) else f"{macro['detectable']:.1f}"
        rows.append(
            [str(label), *numbers, str(macro["verdict"]), *on, found, macro["seeds"] or "-", "; ".join(notes) or "-"]
        )
    return rows


def _against(tests: pd.DataFrame) -> str:
    return f"against {tests['baseline'].iloc[0]}"


def bootstrap_markdown(bootstrap: pd.DataFrame) -> str:
    """The cluster bootstrap of all blocks."""
    header, rows = _bootstrap_rows(bootstrap)
    return f"## {BOOTSTRAP_TITLE}\n\n{BOOTSTRAP_NOTE}\n\n" + markdown_table(header, rows, num_left=3)


def aggregate_rows(table: pd.DataFrame) -> list[list[str]]:
    """A row a label of `aggregates.csv`, as it is read."""
    rows = []
    for row in table.to_dict("records"):
        cells = [str(row[name]) for name in ("student", "family", "label", "num_runs")]
        cells += [_bounded(row, name, 1) for name in ("iqm", "optimality_gap", "improvement", "rank")]
        rows.append(cells)
    return rows


def scale_rows(table: pd.DataFrame) -> list[list[str]]:
    """A row a pair of students of `scales.csv`, as it is read."""
    return [
        [*(str(row[name]) for name in ("family", "student", "other", "num_labels")), _bounded(row, "tau", 2, bare=True),
         row["note"] or "-"]
        for row in table.to_dict("records")
    ]  # fmt: skip


def data_rows(table: pd.DataFrame) -> list[list[str]]:
    """A row a label of `data.csv`, as it is read."""
    rows = []
    for row in table.to_dict("records"):
        shares = ["-" if pd.isna(row[name]) else f"{row[name]:.1f}" for name in ("all_right", "all_wrong")]
        counts = {
            name: "-" if pd.isna(row[name]) else f"{row[name]:,.0f}"
            for name in ("questions", "trained_samples", "trained_tokens", "teacher_tokens")
        }
        first, *rest = counts.values()
        rows.append([str(row["student"]), str(row["label"]), first, *shares, *rest])
    return rows


def _bounded(row: Mapping[Any, Any], name: str, decimals: int, *, bare: bool = False) -> str:
    """A value with its interval, where it has one."""
    if pd.isna(row[name]):
        return "-"
    lo, hi = (row["lo"], row["hi"]) if bare else (row[f"{name}_lo"], row[f"{name}_hi"])
    text = f"{row[name]:.{decimals}f}"
    return text if pd.isna(lo) else f"{text} [{lo:.{decimals}f}, {hi:.{decimals}f}]"


@dataclass(frozen=True)
class Section:
    """A table with a heading of its own, in the report and on the page."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: list[list[str]]
    num_left: int

    @property
    def text(self) -> str:
        return f"## {self.title}\n\n{self.note}\n\n" + markdown_table([*self.header], self.rows, num_left=self.num_left)


def overall_sections(aggregates: pd.DataFrame, scales: pd.DataFrame, data: pd.DataFrame) -> list[Section]:
    """What is over all benchmarks, over students, and about the training data; without what has no row."""
    sections = [
        Section(
            "Over runs and benchmarks",
            "Interquartile mean, optimality gap, probability that a run is above one of the baseline, and rank by the "
            "macro average. Intervals (95 %) resample runs; few make them too narrow, and one has none.",
            ("student", "family", "label", "runs", "IQM", "optimality gap", "P(improvement) %", "rank"),
            aggregate_rows(aggregates),
            3,
        ),
        Section(
            "Order of labels across students",
            "Kendall's tau of the macro averages: 1 is the same order, -1 the opposite one. Intervals (95 %) resample "
            "runs.",
            ("family", "student", "other student", "labels", "tau", "note"),
            scale_rows(scales),
            3,
        ),
        Section(
            "Training data",
            "Means over the runs of a row. All right, all wrong: percent of the student's groups. Their replies do not "
            "differ in reward. Earlier versions did not count them.",
            ("student", "label", "questions", "all right", "all wrong", "samples", "tokens", "teacher tokens"),
            data_rows(data),
            2,
        ),
    ]
    return [section for section in sections if section.rows]


def _bootstrap_rows(bootstrap: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    rows = []
    for row in bootstrap.to_dict("records"):
        against = f"best ({row['is']})" if row["baseline"] == BEST else str(row["baseline"])
        if row["table"]:
            against += f", {row['table']} table"
        known = [f"{row['delta']:+.2f}", f"{row['lo']:+.2f} to {row['hi']:+.2f}", f"{row['wins']} of {row['n']}"]
        rows.append([str(row["student"]), str(row["family"]), against, *(known if row["n"] else ["-", "-", "0 of 0"])])
    return ["student", "family", "against", "delta", "interval", "wins"], rows


def page_tables(
    tables: Sequence[Comparison],
    names: Sequence[Sequence[str]],
    tests: pd.DataFrame,
    bootstrap: pd.DataFrame,
    costs: Sequence[tuple[str, pd.DataFrame]],
    overall: Sequence[Section] = (),
) -> list[PageTable]:
    """All tables of the page."""
    pages = []
    for table, name in zip(tables, names, strict=True):
        header, rows = rows_of(table)
        page_rows = [
            PageRow(
                cells=[row.label, *(text for text, _ in row.cells)],
                bold=frozenset(i for i, (_, best) in enumerate(row.cells, 1) if best),
                delta=row.is_delta,
                label="" if row.is_delta else row.label,
            )
            for row in rows
        ]
        note = " ".join([table_note(table), *(f"{line}." for line in table.refused)])
        pages.append(PageTable(", ".join(name), header, page_rows, table.student, table.family, note))
        if found := verdict_rows(tests, table):
            title = f"{', '.join(name)}, {_against(tests)}"
            page_rows = [PageRow(cells=row, label=row[0]) for row in found]
            pages.append(PageTable(title, VERDICT_HEADER, page_rows, table.student, table.family, VERDICT_NOTE))
    if not bootstrap.empty:
        header, cells = _bootstrap_rows(bootstrap)
        named = zip(cells, bootstrap["student"], bootstrap["family"], strict=True)
        page_rows = [PageRow(cells=row, student=str(student), family=str(family)) for row, student, family in named]
        pages.append(PageTable(BOOTSTRAP_TITLE, header, page_rows, note=BOOTSTRAP_NOTE))
    for section in overall:
        page_rows = [PageRow(cells=row) for row in section.rows]
        pages.append(PageTable(section.title, section.header, page_rows, note=section.note))
    if costs and not costs[0][1].empty:
        header, cells = cost_rows(costs[0][1])
        page_rows = [PageRow(cells=row, student=row[0], label=row[1]) for row in cells]
        pages.append(PageTable("Cost", header, page_rows, note="Means over the runs of a row."))
    return pages
