"""Rollout accuracy against what a run has spent: one panel a measure and student, one line a label."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from reports.plots.dynamics import draw_band, seed_curves, smoothing
from reports.plots.style import GREY, MANY_LINES, Drawing, Grid, Look, draw_grid, wrap

MEASURES = {"cumulative_flops": "FLOPs", "cumulative_tokens": "tokens"}
"""Column of `reports.cost.cost_curves`: what the panels' titles call it."""


def draw_cost(curves: pd.DataFrame, look: Mapping[str, Look]) -> Drawing | None:
    """`curves` are those of `reports.cost.cost_curves`. None where no run has accuracies and costs."""
    known = curves.dropna(subset=["accuracy"])
    measures = [name for name in MEASURES if known[name].notna().any()]
    if known.empty or not measures:
        return None
    students = list(dict.fromkeys(known["student"]))
    labels = [label for label in look if label in set(known["label"])]
    panels = [(name, student) for name in measures for student in students]
    titles = ["\n".join([f"Accuracy, %, by {MEASURES[name]}", wrap(student, 26)]) for name, student in panels]
    shape = Grid(2, height=1.3, title_lines=max(1 + title.count("\n") for title in titles), left=0.4, gap=0.5)
    legend = {label: Line2D([], [], color=look[label].colour, linestyle=look[label].style) for label in labels}
    canvas, axes = draw_grid(len(panels), shape, x_label="spent so far", legend=legend)
    window = smoothing(known)
    many = len(labels) > MANY_LINES
    for ax, (name, student), title in zip(axes, panels, titles, strict=True):
        rows = known[known["student"] == student]
        for label, seeds in seed_curves(rows, "accuracy", labels, window).items():
            spent = rows[rows["label"] == label].groupby("step")[name].mean()
            draw_band(
                ax, (100 * seeds).set_axis(spent.reindex(seeds.index).to_numpy()), alpha=0.06 if many else 0.15,
                color=look[label].colour, linestyle=look[label].style, linewidth=0.9 if many else 1.5,
            )  # fmt: skip
        ax.axvline(cheapest(rows, name), color=GREY, linewidth=0.8, linestyle=":")
        ax.set_xlim(left=0)
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.grid(axis="y", color="#dddddd", linewidth=0.6)
        ax.set_title(title)
    return Drawing(
        "cost",
        "Accuracy against cost",
        "Rollout accuracy over what the run has spent, FLOPs of all models or tokens that went through one; means over "
        "seeds, bands from the lowest to the highest. Methods are cut at the dotted line, the total of the cheapest "
        "run, in the table of equal cost.",
        canvas,
    )


def cheapest(rows: pd.DataFrame, name: str) -> float:
    """The total of the run that spent least."""
    return float(rows.groupby(["label", "seed"])[name].max().min())
