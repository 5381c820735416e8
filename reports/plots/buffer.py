"""The prompt replay buffer: what it holds, and what became of its entries, by accuracy at admission."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from reports.plots.data import cumulative_events
from reports.plots.dynamics import draw_band
from reports.plots.style import Drawing, Grid, LineStyle, columns_for, draw_grid, shades, step_axis, wrap

Panel = tuple[str, str]
"""Label and student."""
Counts = list[dict[str, pd.DataFrame]]
"""Counts of each seed: those of `cumulative_events`, and `frozen` (`graduated_by_chance`)."""
USUAL_GROUP = 8
"""Rollouts of a group, where the accuracies do not say otherwise."""
FROZEN = "by chance"
MEAN_NOTE = "means over the seeds that reached the step"


def draw_occupancy(counts: dict[Panel, Counts], bins: list[float]) -> Drawing | None:
    """Questions in the buffer after each step, stacked by accuracy at admission. None where no buffer held any."""
    if not counts:
        return None
    names, colours = bin_names(bins), shades(len(bins))
    legend = {name: Patch(color=colour) for name, colour in zip(names, colours, strict=True)}
    canvas, axes = small_panels(list(counts), legend)
    means = {panel: over_seeds(seeds, "held").groupby("step").mean() for panel, seeds in counts.items()}
    top = max(float(mean.sum(axis=1).max()) for mean in means.values())
    for ax, mean in zip(axes, means.values(), strict=True):
        stack(ax, mean[bins], colours)
        step_axis(ax, _last_step(counts))
        ax.set_ylim(0, 1.03 * max(1.0, top))
    return Drawing(
        "buffer_occupancy",
        "Buffer occupancy",
        "Questions in the replay buffer after each step, stacked by the accuracy of the student's group when they were "
        f"admitted; {MEAN_NOTE}, no smoothing.",
        canvas,
    )


def draw_graduation(counts: dict[Panel, Counts], bins: list[float]) -> Drawing | None:
    """Entries that graduated and that were evicted so far, a line a bin, and those that a policy which does not learn
    would have graduated. None where no entry was ever admitted."""
    if not counts:
        return None
    runs = [tables for seeds in counts.values() for tables in seeds]
    styles: dict[str, LineStyle] = {"graduated": "-", "evicted": "--", "frozen": ":"}
    ends = [end for end in styles if any((tables[end] > 0).any(axis=None) for tables in runs)]
    top = max([1.0, *(float(tables[end].max().max()) for tables in runs for end in ends)])
    colours = dict(zip(bins, shades(len(bins)), strict=True))
    handles = {
        name: Line2D([], [], color=colours[value], linewidth=2)
        for name, value in zip(bin_names(bins), bins, strict=True)
    }
    if len(ends) > 1:
        handles |= {
            FROZEN if end == "frozen" else end: Line2D([], [], color="black", linestyle=styles[end], linewidth=1.2)
            for end in ends
        }
    canvas, axes = small_panels(list(counts), handles)
    for ax, seeds in zip(axes, counts.values(), strict=True):
        for end in ends:
            of_runs = over_seeds(seeds, end)
            for value in bins:
                curves = of_runs[value].unstack("seed")
                if (curves > 0).any(axis=None):
                    draw_band(ax, curves, color=colours[value], linestyle=styles[end], linewidth=1.5)
        step_axis(ax, _last_step(counts))
        ax.set_ylim(0, 1.03 * top)
    missing = [end for end in ("graduated", "evicted") if end not in ends]
    chance = (
        " Dotted: graduations to be expected of a policy that does not learn, by chance alone."
        if "frozen" in ends
        else ""
    )
    none = f" No entry of any run was {' or '.join(missing)}." if missing else ""
    return Drawing(
        "graduation",
        "Graduated and evicted",
        "Entries of the replay buffer that left it so far, by their accuracy at admission; lines are "
        f"{MEAN_NOTE}, bands reach from the lowest to the highest seed.{chance}{none}",
        canvas,
    )


def buffer_counts(events: pd.DataFrame, metrics: pd.DataFrame) -> tuple[dict[Panel, Counts], list[float]]:
    """Counts of every run with buffer events by label and student, and the bins that occur. Empty where none has."""
    bins = sorted(events["entry_accuracy"].unique())
    counts: dict[Panel, Counts] = {}
    for (label, student, seed), rows in events.groupby(["label", "student", "seed"], sort=False):
        num_steps, own = int(rows["step"].max()), metrics
        if not metrics.empty:
            same = (metrics["label"] == label) & (metrics["student"] == student) & (metrics["seed"] == seed)
            own = metrics[same]
            num_steps = max(num_steps, int(own["step"].max()) if same.any() else 0)
        tables = cumulative_events(rows, num_steps, bins)
        tables["frozen"] = graduated_by_chance(own, tables["held"].index, bins)
        counts.setdefault((str(label), str(student)), []).append(tables)
    return counts, [float(value) for value in bins]


def graduated_by_chance(metrics: pd.DataFrame, steps: pd.Index, bins: Sequence[float]) -> pd.DataFrame:
    """What a policy that does not learn would have graduated until each step, by accuracy at admission.

    `metrics` are those of one run. 0 where the run did not record it.
    """
    table = pd.DataFrame(0.0, index=steps, columns=list(bins))
    for value in bins:
        if (name := f"buffer/graduated_by_chance@{value:g}") in metrics:
            table[value] = metrics.set_index("step")[name].reindex(steps).ffill().fillna(0.0)
    return table


def bin_names(accuracies: Sequence[float]) -> list[str]:
    """Accuracies at admission as right rollouts of a group. Example: 0 and 0.125 are `0 of 8 right`, `1 of 8 right`."""
    shares = [Fraction(accuracy).limit_denominator(64) for accuracy in accuracies]
    smallest = math.lcm(*(share.denominator for share in shares))
    size = USUAL_GROUP if USUAL_GROUP % smallest == 0 else smallest
    return [f"{int(share * size)} of {size} right" for share in shares]


def over_seeds(seeds: Counts, name: str) -> pd.DataFrame:
    """The named counts of all seeds below one another; index: seed's number in the list, step."""
    return pd.concat({number: tables[name] for number, tables in enumerate(seeds)}, names=["seed", "step"])


def stack(ax: Axes, values: pd.DataFrame, colours: list[str]) -> None:
    """A stacked area with a column of `values` a layer, one flat piece a step."""
    layers = [(values[name].to_numpy(), colour) for name, colour in zip(values, colours, strict=True)]
    layers = [(layer, colour) for layer, colour in layers if (layer > 0).any()]
    if layers:
        ax.stackplot(values.index, *(layer for layer, _ in layers), colors=[colour for _, colour in layers],
                     step="mid", linewidth=0)  # fmt: skip


def small_panels(panels: list[Panel], legend: Mapping[str, Artist]) -> tuple[Canvas, list[Axes]]:
    """A small panel for each label and student, with its title."""
    num_students = len({student for _, student in panels})
    num_columns = columns_for(len(panels), num_students)
    width = 26 if num_columns == 2 else 18
    titles = [
        wrap(label, width) + (f"\n{wrap(student, width)}" if num_students > 1 else "") for label, student in panels
    ]
    shape = Grid(
        num_columns, height=0.95, title_lines=max(1 + title.count("\n") for title in titles), gap=0.38, left=0.4
    )
    canvas, axes = draw_grid(len(panels), shape, x_label="rollout step", legend=legend)
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=8.5)
    return canvas, axes


def _last_step(counts: dict[Panel, Counts]) -> int:
    return max(len(tables["held"]) for seeds in counts.values() for tables in seeds)
