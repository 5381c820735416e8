"""Training curves: one panel a student, one line a method, the mean over seeds with a band from lowest to highest."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from reports.collect import Run

METRICS = {"rollout/accuracy": "rollout accuracy", "train/entropy": "token entropy (nats)"}
"""Rows of panels, with what stands at the axis."""
# Okabe and Ito's palette, told apart with any kind of colour blindness; the line style changes when it starts again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")
SMOOTH_ABOVE = 40
"""Curves with more steps are shown as running means over a twentieth of them."""
LABEL_GAP = 0.07
"""Least distance of two line labels, as a share of the panel's height."""


def load_metrics(runs: list[Run]) -> pd.DataFrame:
    """All `metrics.jsonl` below one another: label, student, seed, step and the metrics' own columns."""
    tables = []
    for run in runs:
        file = run.folder / "metrics.jsonl"
        # A run that is writing right now may have half a last line.
        lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
        if lines:
            keys = {name: run.info[name] for name in ("label", "student", "seed")}
            tables.append(pd.DataFrame([json.loads(line) for line in lines]).assign(**keys))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def draw_curves(metrics: pd.DataFrame, path: Path) -> bool:
    """Save the curves of `METRICS` as PNG. Returns False, and writes nothing, where no run has any of them."""
    names = [name for name in METRICS if name in metrics and metrics[name].notna().any()]
    if not names:
        return False
    students = list(dict.fromkeys(metrics["student"]))
    labels = list(dict.fromkeys(metrics["label"]))
    window = _window(metrics)
    figure, axes = plt.subplots(
        len(names), len(students), figsize=(1.2 + 4.6 * len(students), 3.1 * len(names)), sharex=True, sharey="row",
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for row, name in enumerate(names):
        for column, student in enumerate(students):
            ax = axes[row, column]
            _panel(ax, metrics[metrics["student"] == student], name, labels, window)
            if row == 0:
                ax.set_title(student, fontsize=11, loc="left", fontweight="bold")
            if column == 0:
                ax.set_ylabel(METRICS[name])
            if row == len(names) - 1:
                ax.set_xlabel("rollout step" + (f" (running mean of {window})" if window > 1 else ""))
    for row in range(len(names)):  # after all panels of a row are drawn: they share an axis, and labels need its limits
        for ax in axes[row]:
            _label_lines(ax)
    figure.savefig(path, dpi=160)
    plt.close(figure)
    return True


def _window(metrics: pd.DataFrame) -> int:
    num_steps = int(metrics["step"].max())
    return 1 if num_steps <= SMOOTH_ABOVE else max(2, num_steps // 20)


def _panel(ax: Axes, metrics: pd.DataFrame, name: str, labels: list[str], window: int) -> None:
    for index, label in enumerate(labels):
        rows = metrics[metrics["label"] == label].dropna(subset=[name])
        if rows.empty:
            continue
        seeds = rows.pivot_table(index="step", columns="seed", values=name).rolling(window, min_periods=1).mean()
        colour = COLOURS[index % len(COLOURS)]
        style = STYLES[index // len(COLOURS) % len(STYLES)]
        ax.plot(seeds.index, seeds.mean(axis=1), style, color=colour, linewidth=1.8, label=label)
        if seeds.shape[1] > 1:
            ax.fill_between(seeds.index, seeds.min(axis=1), seeds.max(axis=1), color=colour, alpha=0.15, linewidth=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    ax.margins(x=0.01)


def _label_lines(ax: Axes) -> None:
    """Each line's label at its end, in its colour; labels that would overlap are spread, with a thin connector."""
    lines = sorted(ax.get_lines(), key=lambda line: line.get_ydata()[-1])  # type: ignore[index, arg-type, return-value]
    low, high = ax.get_ylim()
    ends = [(float(line.get_ydata()[-1]) - low) / (high - low) for line in lines]  # type: ignore[index, arg-type]
    for line, end, place in zip(lines, ends, spread(ends, LABEL_GAP), strict=True):
        x_end = float(line.get_xdata()[-1])  # type: ignore[index, arg-type]
        ax.annotate(
            str(line.get_label()), xy=(x_end, low + end * (high - low)), xytext=(1.05, place),
            textcoords="axes fraction", color=line.get_color(), fontsize=9, va="center",
            arrowprops={"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.6, "shrinkA": 0, "shrinkB": 1},
        )  # fmt: skip


def spread(places: list[float], gap: float) -> list[float]:
    """Sorted positions moved as little as needed (least squares) to be `gap` apart.

    Example: spread([0.5, 0.5], 0.1) = [0.45, 0.55].
    """
    blocks: list[list[float]] = []  # [sum of wished starts, number of labels]: a block's labels stand gap by gap
    for place in places:
        blocks.append([place, 1])
        while len(blocks) > 1 and _start(blocks[-2]) + blocks[-2][1] * gap > _start(blocks[-1]):
            total, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total - blocks[-1][1] * gap * count, blocks[-1][1] + count]
    return [_start(block) + i * gap for block in blocks for i in range(int(block[1]))]


def _start(block: list[float]) -> float:
    """Position of a block's first label: the mean of the wishes."""
    return block[0] / block[1]
