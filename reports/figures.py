"""All figures of a report, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import pandas as pd

from reports.cost import cost_curves
from reports.plots.batch import draw_batch
from reports.plots.buffer import buffer_counts, draw_graduation, draw_occupancy
from reports.plots.costs import draw_cost
from reports.plots.data import load_events, load_metrics, macro_averages
from reports.plots.dynamics import draw_dynamics
from reports.plots.gains import draw_macro_gain, draw_recipes, draw_teachers
from reports.plots.style import Figure, house_style, looks, save
from reports.runs.collect import Run, with_study


def draw_figures(runs: Sequence[Run], long_scores: pd.DataFrame, folder: Path) -> list[Figure]:
    """Write `<name>.png` and `<name>.svg` into `folder` for each figure that has data, and return these figures.

    `runs` are those of `find_runs` (none for scores without run folders), `long_scores` the table of `collect`; labels
    get their colours in the table's order. Same input, same bytes. Raises ValueError for a broken line of a log.
    """
    runs = _named_apart(runs)
    labels = list(dict.fromkeys([*map(str, long_scores["label"]), *(str(run.info["label"]) for run in runs)]))
    look = looks(labels)
    metrics = load_metrics(runs)
    counts, bins = buffer_counts(load_events(runs), metrics)
    counts = {panel: counts[panel] for panel in sorted(counts, key=lambda panel: labels.index(panel[0]))}
    macros, refused = macro_averages(long_scores)
    folder.mkdir(parents=True, exist_ok=True)
    with house_style():
        drawings = [
            draw_macro_gain(macros, refused, look),
            draw_dynamics(metrics, look),
            draw_occupancy(counts, bins),
            draw_graduation(counts, bins),
            draw_batch(metrics, look),
            draw_cost(cost_curves(runs), look),
            draw_teachers(macros, refused, look),
            draw_recipes(macros, refused, look),
        ]
        return [save(drawing, folder) for drawing in drawings if drawing is not None]


def _named_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs; where two share label, student and seed, all labels say their study, as in the tables."""
    keys = {(run.info["label"], run.info["student"], run.info["seed"]) for run in runs}
    if len(keys) == len(runs):
        return list(runs)
    return with_study(runs)
