"""From results to what is read: Markdown sections and the tables of the page."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from reports.bootstrap import BEST
from reports.cost import rows_of as cost_rows
from reports.page.page import PageRow, PageTable
from reports.significance import ALIKE, BETTER, NOT_COMPARED, WORSE
from reports.tables import MALFORMED_MARK, MAX_MALFORMED, Comparison, markdown_table, rows_of, to_markdown

BOOTSTRAP_NOTE = (
    "Percentage points over the benchmarks that both rows have. Intervals (95 %) resample benchmarks, 10,000 times: "
    "they cover the choice of benchmarks, neither seeds nor questions."
)


def comparison_section(table: Comparison, title: str, verdicts: Sequence[str]) -> str:
    """A table with its heading, what its numbers are, what is missing in it, and what the tests say."""
    parts = [f"## {title}", to_markdown(table), table_note(table)]
    parts += ["\n".join(f"- {line}" for line in lines) for lines in (table.refused, verdicts) if lines]
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


def verdict_lines(tests: pd.DataFrame, table: Comparison) -> list[str]:
    """A line a label: on which benchmarks it is better or worse than the baseline, and on how many neither can be said.

    From paired tests on the same questions, corrected over the benchmarks of the line (`reports.significance`).
    """
    if tests.empty:
        return []
    here = (tests["student"] == table.student) & (tests["suite"] == table.suite) & (tests["family"] == table.family)
    lines = []
    for label, results in tests[here].groupby("label", sort=False):
        said = []
        for verdict in (BETTER, WORSE):
            found = results.loc[results["verdict"] == verdict, "benchmark"]
            if len(found):
                said.append(f"{verdict} on {', '.join(found)}")
        for verdict in (ALIKE, NOT_COMPARED):
            number = int((results["verdict"] == verdict).sum())
            if number:
                every = number == len(results)
                said.append(f"{verdict} on {'any of ' if every and verdict == ALIKE else ''}{number}")
        lines.append(f"{label} against {results['baseline'].iloc[0]}: {'; '.join(said)}.")
    return lines


def bootstrap_markdown(bootstrap: pd.DataFrame) -> str:
    """The cluster bootstrap of all blocks."""
    header, rows = _bootstrap_rows(bootstrap)
    return f"## Leads of zppo\n\n{BOOTSTRAP_NOTE}\n\n" + markdown_table(header, rows, num_left=3)


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
        said = [*(f"{line}." for line in table.refused), *verdict_lines(tests, table)]
        note = " ".join([table_note(table), *said])
        pages.append(PageTable(", ".join(name), header, page_rows, table.student, table.family, note))
    if not bootstrap.empty:
        header, cells = _bootstrap_rows(bootstrap)
        found = zip(cells, bootstrap["student"], bootstrap["family"], strict=True)
        page_rows = [PageRow(cells=row, student=str(student), family=str(family)) for row, student, family in found]
        pages.append(PageTable("Leads of zppo", header, page_rows, note=BOOTSTRAP_NOTE))
    if costs and not costs[0][1].empty:
        header, cells = cost_rows(costs[0][1])
        page_rows = [PageRow(cells=row, student=row[0], label=row[1]) for row in cells]
        pages.append(PageTable("Cost", header, page_rows, note="Means over the runs of a row."))
    return pages
