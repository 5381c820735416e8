"""Batch composition: the groups a step's batch is made of."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.patches import Patch

from reports.plots.buffer import MEAN_NOTE, small_panels, stack
from reports.plots.data import listing
from reports.plots.style import Drawing, Look, step_axis

KINDS = {
    "new, plain": "#bbbbbb", "replayed, plain": "#56B4E9", "BCQ": "#0072B2", "NCQ": "#D55E00", "hint": "#009E73",
    "prefix": "#CC79A7", "extra": "#E69F00", "other": "#000000",
}  # fmt: skip
"""Kinds of groups from the bottom of the stack to its top, and their colours."""
PROMPTS = {"bcq/prompts": "BCQ", "ncq/prompts": "NCQ", "hint/prompts": "hint", "prefix/prompts": "prefix",
           "extra/prompts": "extra"}  # fmt: skip
NEEDED = ("group/num_plain", "group/num_student", "buffer/replayed")


def draw_batch(metrics: pd.DataFrame, look: Mapping[str, Look]) -> Drawing | None:
    """Groups by kind at each step, stacked. None where every batch is plain groups of new questions only."""
    groups = group_kinds(metrics)
    if groups.empty:
        return None
    kinds = [kind for kind in KINDS if (groups[kind] > 0).any()]
    mixed = groups[groups[kinds].drop(columns="new, plain", errors="ignore").gt(0).any(axis=1)]
    panels = [
        (label, student)
        for label in look
        for student in dict.fromkeys(groups["student"])
        if ((mixed["label"] == label) & (mixed["student"] == student)).any()
    ]
    if not panels:
        return None
    canvas, axes = small_panels(panels, {kind: Patch(color=KINDS[kind]) for kind in kinds})
    means = {
        (label, student): groups[(groups["label"] == label) & (groups["student"] == student)]
        .groupby("step")[kinds]
        .mean()
        for label, student in panels
    }
    top = max(float(mean.sum(axis=1).max()) for mean in means.values())
    for ax, panel in zip(axes, panels, strict=True):
        stack(ax, means[panel], [KINDS[kind] for kind in kinds])
        step_axis(ax, int(groups["step"].max()))
        ax.set_ylim(0, 1.03 * top)
    shown = {label for label, _ in panels}
    plain = [label for label in look if label in set(groups["label"]) - shown]
    left = (
        f" Not drawn, because they train on plain groups of new questions only: {listing(plain, 20)}." if plain else ""
    )
    return Drawing(
        "batch_composition",
        "Batch composition",
        f"Groups that the student sampled at each step, by kind; {MEAN_NOTE}, no smoothing.{left}",
        canvas,
    )


def group_kinds(metrics: pd.DataFrame) -> pd.DataFrame:
    """Groups of each of `KINDS` at each step of each run, with label, student, seed and step.

    They add up to `group/num_student`; what no known metric counts is `other`. Empty where runs lack the counts.
    """
    if any(name not in metrics for name in NEEDED):
        return pd.DataFrame()
    rows = metrics.dropna(subset=list(NEEDED))
    groups = rows[["label", "student", "seed", "step"]].copy()
    groups["replayed, plain"] = rows["buffer/replayed"].clip(upper=rows["group/num_plain"])
    groups["new, plain"] = rows["group/num_plain"] - groups["replayed, plain"]
    for name, kind in PROMPTS.items():
        groups[kind] = rows[name].fillna(0.0) if name in rows else 0.0
    known = groups[["new, plain", "replayed, plain", *PROMPTS.values()]].sum(axis=1)
    return groups.assign(other=(rows["group/num_student"] - known).clip(lower=0.0))
