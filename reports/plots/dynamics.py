"""Training dynamics: one panel a metric and student, one line a label, a band over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from reports.plots.style import GREY, MANY_LINES, Drawing, Grid, Look, draw_grid, step_axis, wrap

METRICS = {
    "rollout/accuracy": ("Rollout accuracy, %", 100.0),
    "train/positive_advantage_frac": ("Positive advantages, %", 100.0),
    "rollout/entropy": ("Entropy of new rollouts, nats a token", 1.0),
    "rollout/response_tokens": ("Length of new responses, tokens", 1.0),
    "train/loss": ("Loss", 1.0),
    "bcq/accuracy": ("BCQ accuracy, %", 100.0),
    "ncq/accuracy": ("NCQ accuracy, %", 100.0),
}
"""Column of metrics.jsonl: (title of its panels, factor)."""
SMOOTH_ABOVE = 40
"""Curves with more steps are shown as running means over a twentieth of them."""
OFF_SCALE = 10.0
"""A line that reaches this many times as far from zero as the median line does not set the panel's scale."""


def draw_dynamics(metrics: pd.DataFrame, look: Mapping[str, Look]) -> Drawing | None:
    """The `METRICS` that any run has, over rollout steps. None where no run has one."""
    names = [name for name in METRICS if name in metrics and metrics[name].notna().any()]
    if not names:
        return None
    students = list(dict.fromkeys(metrics["student"]))
    labels = [label for label in look if label in set(metrics["label"])]
    num_columns = 3 if len(students) % 3 == 0 else 2
    panels = [(name, student) for name in names for student in students]
    titles = [_title(name, student, students, num_columns) for name, student in panels]
    shape = Grid(
        num_columns, height=1.15, title_lines=max(1 + title.count("\n") for title in titles), left=0.58, gap=0.62
    )
    legend = {label: _handle(look[label]) for label in labels}
    canvas, axes = draw_grid(len(panels), shape, x_label="rollout step", legend=legend)
    window = smoothing(metrics)
    for ax, (name, student), title in zip(axes, panels, titles, strict=True):
        curves = seed_curves(metrics[metrics["student"] == student], name, labels, window)
        factor = METRICS[name][1]
        _panel(ax, {label: factor * seeds for label, seeds in curves.items()}, look, many=len(labels) > MANY_LINES)
        step_axis(ax, int(metrics["step"].max()))
        ax.set_title(title)
    smooth = f"; all are running means over {window} steps" if window > 1 else ""
    return Drawing(
        "dynamics",
        "Training dynamics",
        "Each line is the mean over the seeds that have a value at the step, its band reaches from the lowest to the "
        f"highest seed{smooth}. A step without such prompts leaves a gap, and a line far out of the others' range is "
        "named in its panel instead of stretching it.",
        canvas,
    )


def _title(name: str, student: str, students: list[str], num_columns: int) -> str:
    title = METRICS[name][0]
    width = 26 if num_columns == 2 else 16
    return wrap(title, width) if len(students) == 1 else f"{wrap(title, width)}\n{wrap(student, width)}"


def smoothing(metrics: pd.DataFrame) -> int:
    """Steps of the running mean: 1 for short runs."""
    num_steps = int(metrics["step"].max())
    return 1 if num_steps <= SMOOTH_ABOVE else max(2, num_steps // 20)


def seed_curves(metrics: pd.DataFrame, name: str, labels: list[str], window: int) -> dict[str, pd.DataFrame]:
    """A label's values, one row a step and one column a seed, each seed smoothed on its own before any mean.

    A running mean takes the values that there are among the last `window` steps; NaN where there is none.
    """
    curves = {}
    for label in labels:
        rows = metrics[metrics["label"] == label]
        if name in rows and rows[name].notna().any():
            seeds = rows.pivot_table(index="step", columns="seed", values=name, dropna=False)
            steps = range(int(seeds.index.min()), int(seeds.index.max()) + 1)
            curves[label] = seeds.reindex(steps).rolling(window, min_periods=1).mean().where(_reached(seeds, steps))
    return curves


def _reached(seeds: pd.DataFrame, steps: range) -> pd.DataFrame:
    """Whether a seed has a value at the step or later: a running mean does not prolong a run."""
    return seeds.reindex(steps).bfill().notna()


def draw_band(ax: Axes, seeds: pd.DataFrame, *, alpha: float = 0.15, **line: Any) -> None:
    """The mean over seeds, and a band from the lowest to the highest where there are several.

    A value between two gaps is a dot: no line would show it.
    """
    mean = seeds.mean(axis=1)
    ax.plot(mean.index, mean, **line)
    alone = mean[mean.notna() & mean.shift(1).isna() & mean.shift(-1).isna()]
    if not alone.empty:
        ax.plot(alone.index, alone, ".", color=line["color"], markersize=3)
    if seeds.shape[1] > 1:
        low, high = seeds.min(axis=1), seeds.max(axis=1)
        ax.fill_between(seeds.index, low, high, color=line["color"], alpha=alpha, linewidth=0)


def off_scale(curves: Mapping[str, pd.DataFrame]) -> list[str]:
    """Labels whose curves reach `OFF_SCALE` times as far from zero as the median label's."""
    reach = pd.Series({label: float(seeds.abs().max().max()) for label, seeds in curves.items()})
    return list(reach.index[reach > OFF_SCALE * reach.median()]) if len(reach) > 2 else []


def _panel(ax: Axes, curves: dict[str, pd.DataFrame], look: Mapping[str, Look], *, many: bool) -> None:
    outside = off_scale(curves)
    for label, seeds in curves.items():
        if label not in outside:
            draw_band(
                ax, seeds, alpha=0.06 if many else 0.15, color=look[label].colour, linestyle=look[label].style,
                linewidth=0.9 if many else 1.5,
            )  # fmt: skip
    for number, label in enumerate(outside):
        low, high = float(curves[label].min().min()), float(curves[label].max().max())
        ax.text(
            0.98, 0.97 - 0.13 * number, f"{label} off scale: {low:.2g} to {high:.2g}", transform=ax.transAxes,
            ha="right", va="top", fontsize=8, color=look[label].colour,
        )  # fmt: skip
    if not curves:
        ax.text(0.5, 0.5, "no values", transform=ax.transAxes, ha="center", va="center", color=GREY)


def _handle(look: Look) -> Line2D:
    return Line2D([], [], color=look.colour, linestyle=look.style, linewidth=1.5)
