"""Comparison tables out of the long table: for each student, suite and family, methods by benchmarks and their mean."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports.runs.cards import BLOCK, comparable
from reports.runs.collect import rank

MACRO = "macro avg"
SEEDS = "seeds"
SUBJECT = "zppo"
"""The label whose lead over the best other row is the default delta row."""
MALFORMED_MARK = " †"
"""At the name of a benchmark with more malformed verdicts than `MAX_MALFORMED`."""
MAX_MALFORMED = 0.01
"""Share of the judge's replies that may be no verdicts before a column is marked: they count as wrong."""


@dataclass(frozen=True)
class Comparison:
    """One table.

    `mean` has a row a label, base first, and a column a benchmark, then `macro avg` (NaN where a benchmark is missing).
    `std` has the same over seeds (NaN for one seed). `delta` is (label of the row, values) or None.
    """

    student: str
    suite: str
    family: str
    """Family of the benchmarks: LLM, VLM or Video; empty where the runs do not say."""
    mean: pd.DataFrame
    std: pd.DataFrame
    num_seeds: pd.Series
    num_questions: pd.Series
    rates: dict[str, str]
    """The learning rate of each label that was trained, where the runs say; several, if its runs differ."""
    max_stderr: float
    delta: tuple[str, pd.Series] | None
    refused: tuple[str, ...]
    """One line for each run that was evaluated by another protocol than the others, or not on all benchmarks, and one
    for each benchmark that was not complete."""
    malformed: dict[str, float]
    """Benchmarks above `MAX_MALFORMED`: the share of the judge's replies that are no verdicts, in the worst run."""


def compare(scores: pd.DataFrame, delta: tuple[str, str] | None = None) -> list[Comparison]:
    """One comparison for each student, suite and family of a long table (`collect`), in the order of appearance.

    `delta` = (A, B) gives the row A minus B. By default it is, column by column, zppo minus the best row of another
    method, base among them (Tables 1, 2, 10 and 11). Raises ValueError where no table has both labels of `delta`.
    """
    scores = scores.assign(family=scores["family"].fillna(""))
    tables = [_compare(group, delta) for _, group in scores.groupby(BLOCK, sort=False)]
    if delta is not None and tables and all(table.delta is None for table in tables):
        known = ", ".join(dict.fromkeys(scores["label"]))
        raise ValueError(f"--delta {' '.join(delta)}: no student has scores of both; labels here: {known}")
    return tables


def _compare(scores: pd.DataFrame, delta: tuple[str, str] | None) -> Comparison:
    scores, others = comparable(scores)
    methods = scores.drop_duplicates("label").set_index("label")["method"]
    labels = sorted(methods.index, key=lambda label: rank(methods[label]))
    benchmarks = list(dict.fromkeys(scores["benchmark"]))
    runs = scores.pivot(index=["label", "seed"], columns="benchmark", values="score")[benchmarks]
    runs[MACRO] = runs.mean(axis=1, skipna=False)
    by_label = runs.groupby(level="label", sort=False)
    mean, std = by_label.mean().loc[labels], by_label.std(ddof=1).loc[labels]
    mean.columns.name = std.columns.name = None
    return Comparison(
        student=str(scores["student"].iloc[0]),
        suite=str(scores["suite"].iloc[0]),
        family=str(scores["family"].iloc[0]),
        mean=mean,
        std=std,
        num_seeds=by_label.size().loc[labels],
        num_questions=scores[scores["score"].notna()].groupby("benchmark", sort=False)["n"].max(),
        rates=_rates(scores),
        max_stderr=float(pd.to_numeric(scores["stderr"]).max()),
        delta=_delta(mean, methods, delta),
        refused=(*map(_refused_line, others.to_dict("records")), *_holes(scores), *_partial(scores)),
        malformed=_malformed(scores),
    )


def _rates(scores: pd.DataFrame) -> dict[str, str]:
    if "learning_rate" not in scores:
        return {}
    known = scores.dropna(subset="learning_rate").drop_duplicates(["label", "learning_rate"])
    values = known.assign(text=known["learning_rate"].astype(float).map("{:g}".format))
    return {str(label): " and ".join(texts) for label, texts in values.groupby("label", sort=False)["text"]}


def _refused_line(row: Mapping[Any, Any]) -> str:
    return (
        f"{row['label']} {row['student']} seed{row['seed']}: evaluated on {row['benchmark']} by protocol "
        f"{row['protocol']}, the others by {row['expected']}: not compared, evaluate it again"
    )


def _holes(scores: pd.DataFrame) -> tuple[str, ...]:
    """One line for each run with benchmarks that could not be evaluated: its `protocol.json` says why."""
    holes = scores[scores["score"].isna()]
    runs = holes.groupby(["label", "student", "seed", "note"], sort=False)["benchmark"]
    return tuple(
        f"{label} {student} seed{seed}: no score on {', '.join(names)} ({note})"
        for (label, student, seed, note), names in runs
    )


def _malformed(scores: pd.DataFrame) -> dict[str, float]:
    if "num_malformed" not in scores:  # published scores
        return {}
    number, judged = (pd.to_numeric(scores[name]) for name in ("num_malformed", "num_judged"))
    shares = (number / judged).groupby(scores["benchmark"], sort=False).max()
    return {str(name): float(share) for name, share in shares.items() if share > MAX_MALFORMED}


def _partial(scores: pd.DataFrame) -> tuple[str, ...]:
    """One line for each benchmark with scores on a part of its rows: how many runs are concerned."""
    parts = scores[scores["score"].notna() & (scores["note"] != "")]
    counts = Counter(zip(parts["benchmark"], parts["note"], strict=True))
    return tuple(f"{name}: {note} ({'1 run' if num == 1 else f'{num} runs'})" for (name, note), num in counts.items())


def _delta(mean: pd.DataFrame, methods: pd.Series, delta: tuple[str, str] | None) -> tuple[str, pd.Series] | None:
    if delta is None:
        others = mean.loc[[label for label in mean.index if methods[label] != SUBJECT]]
        if SUBJECT not in mean.index or others.empty:
            return None
        return f"delta {SUBJECT} - best other", mean.T[SUBJECT] - others.max()
    if any(label not in mean.index for label in delta):
        return None
    by_label = mean.T
    return f"delta {delta[0]} - {delta[1]}", by_label[delta[0]] - by_label[delta[1]]


@dataclass(frozen=True)
class TableRow:
    """A row as it is printed: each cell's text, and whether it is the best of its column."""

    label: str
    cells: tuple[tuple[str, bool], ...]
    is_delta: bool = False


def rows_of(table: Comparison) -> tuple[list[str], list[TableRow]]:
    """Header and rows: percent with one decimal, `± std` over several seeds, `-` for a hole.

    The best of a column is that of the printed means: equals are all best. Names of benchmarks with many malformed
    verdicts have a mark.
    """
    best = table.mean.map(_printed).max().to_dict()
    rows = []
    for label in table.mean.index:
        means, stds = table.mean.loc[label].to_dict(), table.std.loc[label].to_dict()
        cells = [(_cell(means[name], stds[name]), _printed(means[name]) == best[name]) for name in best]
        rows.append(TableRow(str(label), (*cells, (str(table.num_seeds[label]), False))))
    if table.delta is not None:
        name, values = table.delta
        cells = [("-" if pd.isna(value) else f"{value:+.1f}", False) for value in values]
        rows.append(TableRow(name, (*cells, ("", False)), is_delta=True))
    names = [f"{name}{MALFORMED_MARK if name in table.malformed else ''}" for name in best]
    return ["method", *names, SEEDS], rows


def to_markdown(table: Comparison) -> str:
    """The table with the best of a column in bold."""
    header, rows = rows_of(table)
    cells = [[row.label, *(text for text, _ in row.cells)] for row in rows]
    bold = {(i, j) for i, row in enumerate(rows) for j, (_, best) in enumerate(row.cells, 1) if best}
    return markdown_table(header, cells, bold=bold)


def _bold(text: str) -> str:
    """The mean in bold, not what comes after it."""
    mean, plus_minus, std = text.partition(" ± ")
    return f"**{mean}**{plus_minus}{std}"


def one_line(text: str) -> str:
    """Text without control characters: what is no printable character is one space."""
    return re.sub(r"\s+", " ", "".join(char if char.isprintable() else " " for char in text)).strip()


def markdown(text: str) -> str:
    """Text in one line with Markdown's special characters escaped. An underscore within a word has no meaning."""
    return re.sub(r"[\\|`*<\[]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", one_line(text))


def _printed(value: float) -> float:
    return float(f"{value:.1f}")


def _cell(mean: float, std: float) -> str:
    if pd.isna(mean):
        return "-"
    return f"{mean:.1f}" if pd.isna(std) else f"{mean:.1f} ± {std:.1f}"


def to_csv(table: Comparison) -> str:
    """The table's rows, unrounded; after each benchmark `<benchmark> std`, empty for one seed."""
    frame = pd.DataFrame(index=table.mean.index)
    for name in table.mean.columns:
        frame[name], frame[f"{name} std"] = table.mean[name], table.std[name]
    frame[SEEDS] = table.num_seeds.astype("Int64")
    if table.delta is not None:
        frame.loc[table.delta[0], list(table.delta[1].index)] = table.delta[1]
    return frame.to_csv(index_label="method", lineterminator="\n")


def to_latex(table: Comparison, caption: str) -> str:
    """The table for a paper: needs `\\usepackage{booktabs}` and `graphicx` (`\\resizebox`)."""
    header, rows = rows_of(table)
    lines = []
    for row in rows:
        if row.is_delta:
            lines.append(r"\midrule")
        lines.append(" & ".join([latex(row.label), *(_latex_cell(text, best) for text, best in row.cells)]) + r" \\")
    return "\n".join(
        [
            r"\begin{table}", r"\centering", rf"\caption{{{latex(caption)}}}", r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule",
            " & ".join(map(latex, header)) + r" \\", r"\midrule", *lines, r"\bottomrule", r"\end{tabular}}",
            r"\end{table}", "",
        ]
    )  # fmt: skip


def latex(text: str) -> str:
    """Text in one line with LaTeX's special characters escaped."""
    return "".join(LATEX.get(char, f"\\{char}" if char in "&%$#_{}" else char) for char in one_line(text))


LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "†": r"\textdagger{}",
}  # fmt: skip


def _latex_cell(text: str, best: bool) -> str:
    if text == "-":
        return "--"
    mean, plus_minus, std = text.partition(" ± ")
    mean = f"${mean}$" if mean[:1] in "+-" and mean else mean
    mean = rf"\textbf{{{mean}}}" if best else mean
    return rf"{mean} {{\scriptsize$\pm${std}}}" if plus_minus else mean


def markdown_table(
    header: list[str], rows: list[list[str]], *, num_left: int = 1, bold: Collection[tuple[int, int]] = ()
) -> str:
    """A Markdown table: `num_left` columns to the left, the others to the right, padded to read as text too.

    What cells say is escaped. `bold` has (row, column) of cells whose mean is bold.
    """
    escaped = [[markdown(cell) for cell in row] for row in [header, *rows]]
    for row, column in bold:
        escaped[row + 1][column] = _bold(escaped[row + 1][column])
    widths = [max(3, *(len(row[i]) for row in escaped)) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        sides = [str.ljust] * num_left + [str.rjust] * (len(widths) - num_left)
        return f"| {' | '.join(side(cell, w) for side, cell, w in zip(sides, cells, widths, strict=True))} |"

    rule = [":" + "-" * (w - 1) if i < num_left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(escaped[0]), line(rule), *map(line, escaped[1:])])
