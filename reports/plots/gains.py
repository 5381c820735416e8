"""Macro averages: the gain of each label over base, and what a teacher or one option of a label changes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from reports.plots.data import listing, split_label
from reports.plots.style import GREY, Drawing, Grid, Look, draw_grid, wrap
from reports.runs.cards import BLOCK
from reports.runs.collect import BASE

MAX_COLUMNS = 3
DEFAULT = "default"
"""Value of a label that does not name the option, where other labels do."""


def draw_macro_gain(macros: pd.DataFrame, refused: Sequence[str], look: Mapping[str, Look]) -> Drawing | None:
    """Macro average minus base's, a row a label, a panel a student and family. None where nothing has a base."""
    gains = gains_over_base(macros)
    labels = [label for label in look if label in set(gains["label"])]
    if not labels:
        return None
    blocks = _blocks(gains)
    names = [wrap(label, 24) for label in labels]
    num_columns = min(MAX_COLUMNS, max(len(panels) for panels in blocks))
    num_lines = [1 + name.count("\n") for name in names]
    panels = [panel for block in blocks for panel in block + [None] * (-len(block) % num_columns)]
    longest = max(len(line) for name in names for line in name.split("\n"))
    title_lines = max(1 + _panel_name(panel, gains).count("\n") for panel in panels if panel)
    shape = Grid(num_columns, 0.175 * sum(num_lines), title_lines, left=0.15 + 0.068 * longest, gap=0.14)
    canvas, axes = draw_grid(len(panels), shape, x_label="gain over base in macro average, points")
    places = [sum(num_lines[:i]) + num_lines[i] / 2 for i in range(len(labels))]
    low, high = min(0.0, gains["gain"].min()), max(0.0, gains["gain"].max())
    margin = 0.08 * max(high - low, 1.0)
    for number, (ax, panel) in enumerate(zip(axes, panels, strict=True)):
        if panel is None:
            canvas.delaxes(ax)
            continue
        rows = gains[(gains[BLOCK] == panel).all(axis=1)]
        for place, label in zip(places, labels, strict=True):
            _dots(ax, place, rows.loc[rows["label"] == label, "gain"], look[label].colour, (low, high))
        ax.axvline(0, color=GREY, linewidth=0.8, zorder=0)
        ax.set_xlim(low - margin, high + margin)
        ax.set_ylim(sum(num_lines), 0)
        ax.set_yticks(places, names if number % num_columns == 0 else [""] * len(labels))
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        ax.grid(axis="x", color="#dddddd", linewidth=0.6)
        ax.tick_params(axis="y", length=0)
        ax.set_title(_panel_name(panel, gains))
    return Drawing(
        "macro_gain",
        "Gain over base",
        "Macro average (plain mean over the family's benchmarks) minus base's for the same student; the dot and the "
        "number are the mean over seeds, ticks are single seeds, joined from the lowest to the highest."
        + _left_out(refused),
        canvas,
    )


def draw_teachers(macros: pd.DataFrame, refused: Sequence[str], look: Mapping[str, Look]) -> Drawing | None:
    """Macro average against the teacher. None where no label was trained with several."""
    rows = macros[(macros["method"] != BASE) & macros["teacher"].notna()].copy()
    rows["series"] = [_without(label, "teacher") for label in rows["label"]]
    rows["value"] = rows["teacher"].astype(str)
    return _draw_values(
        rows, look, "teacher_size", "Teacher",
        "Macro average against the teacher, the smaller to the left where its name tells; "
        + _DOTS + _left_out(refused),
    )  # fmt: skip


def draw_recipes(macros: pd.DataFrame, refused: Sequence[str], look: Mapping[str, Look]) -> Drawing | None:
    """Macro average against an option's value, for labels that differ in this option only. None without such."""
    trained = macros[macros["method"] != BASE]
    keys = dict.fromkeys(key for label in trained["label"] for key in split_label(label)[1] if key != "teacher")
    tables = []
    for key in keys:
        rows = trained.copy()
        rows["series"] = [f"{_without(label, key)}: {key}" for label in rows["label"]]
        rows["value"] = [split_label(label)[1].get(key, DEFAULT) for label in rows["label"]]
        tables.append(rows)
    if not tables:
        return None
    return _draw_values(
        pd.concat(tables), look, "recipe", "Recipe",
        f"Macro average against one option's value, all else equal (`{DEFAULT}`: the option is not set); "
        + _DOTS + _left_out(refused),
    )  # fmt: skip


def gains_over_base(macros: pd.DataFrame) -> pd.DataFrame:
    """The rows of trained labels with `gain`: macro minus the mean macro of base's seeds in the same block."""
    is_base = macros["method"] == BASE
    base = macros[is_base].groupby(BLOCK, sort=False)["macro"].mean().rename("base")
    gains = macros[~is_base].join(base, on=BLOCK, how="inner")
    return gains.assign(gain=gains["macro"] - gains["base"])


def ordered(values: Sequence[str]) -> list[str]:
    """Values by the number in them (a size such as `4b`, `0_8b`, or a plain number), those without by name, last.

    `default` comes first.
    """
    return sorted(set(values), key=lambda value: (value != DEFAULT, _number(value), value))


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        size = re.search(r"(?<![0-9.])((?:0[._])?\d+(?:\.\d+)?)(b|m)(?![a-z])", value.lower())
    if size is None:
        return float("inf")
    return float(size[1].replace("_", ".")) * (1e9 if size[2] == "b" else 1e6)


_DOTS = "large dots are means over seeds, small dots single seeds."


def _draw_values(rows: pd.DataFrame, look: Mapping[str, Look], name: str, title: str, caption: str) -> Drawing | None:
    """A panel a series and block that has several values."""
    keys = ["series", *BLOCK]
    groups = {key: group for key, group in rows.groupby(keys, sort=False) if group["value"].nunique() > 1}
    if not groups:
        return None
    values = [ordered(list(group["value"])) for group in groups.values()]
    crowded = max(sum(min(len(value), 12) + 2 for value in of_panel) for of_panel in values) > 22
    num_columns = 2 if crowded or len(groups) == 1 else MAX_COLUMNS
    titles = [_value_title(key, rows, 26 if num_columns == 2 else 16) for key in groups]
    tick_lines = max(1 + wrap(value, _tick_chars(of_panel)).count("\n") for of_panel in values for value in of_panel)
    shape = Grid(num_columns, 1.2, max(1 + title.count("\n") for title in titles), tick_lines, gap=0.42)
    canvas, axes = draw_grid(len(groups), shape, y_label="macro average, %")
    for ax, title_text, group, of_panel in zip(axes, titles, groups.values(), values, strict=True):
        means = group.groupby("value")["macro"].mean().loc[of_panel]
        ax.plot(range(len(of_panel)), means, color=GREY, linewidth=0.9, zorder=1)
        for place, value in enumerate(of_panel):
            found = group[group["value"] == value]
            colour = look[str(found["label"].iloc[0])].colour
            if len(found) > 1:
                ax.plot([place] * len(found), found["macro"], ".", color=colour, markersize=4, alpha=0.7, zorder=2)
            ax.plot(place, means[value], "o", color=colour, markersize=5.5, zorder=3)
        ax.set_xlim(-0.4, len(of_panel) - 0.6)
        ax.set_xticks(range(len(of_panel)), [wrap(value, _tick_chars(of_panel)) for value in of_panel])
        ax.margins(y=0.15)
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.grid(axis="y", color="#dddddd", linewidth=0.6)
        ax.set_title(title_text, fontsize=8.5)
    return Drawing(name, title, caption, canvas)


def _tick_chars(values: Sequence[str]) -> int:
    """Letters that fit under one of so many ticks."""
    return max(5, 30 // len(values))


def _value_title(key: Sequence[object], rows: pd.DataFrame, width: int) -> str:
    """Series, then student and suite where there are several, and the family."""
    series, *block = map(str, key)
    several = {name: rows[name].nunique() > 1 for name in BLOCK}
    where = [part for part, name in zip(block, BLOCK, strict=True) if part and (several[name] or name == "family")]
    return wrap(series, width) + ("\n" + wrap(" ".join(where), width) if where else "")


def _dots(ax: Axes, place: float, values: pd.Series, colour: str, limits: tuple[float, float]) -> None:
    """Mean, seeds and the mean as a number, which stands on the side of the dot that has more room."""
    low, high = limits
    if values.empty:
        ax.text(low, place, "no score", fontsize=8, color=GREY, va="center")
        return
    right = values.mean() < (low + high) / 2
    edge = (values.max() if right else values.min(), place)
    ax.annotate(
        f"{round(values.mean(), 1) + 0.0:+.1f}".replace("-", "\N{MINUS SIGN}"), edge, (6 if right else -6, 0),
        textcoords="offset points", fontsize=8, va="center_baseline", ha="left" if right else "right",
    )  # fmt: skip
    if len(values) > 1:
        ax.plot([values.min(), values.max()], [place, place], color=colour, linewidth=1.2, alpha=0.6)
        ax.plot(values, [place] * len(values), "|", color=colour, markersize=6)
    ax.plot(values.mean(), place, "o", color=colour, markersize=5)


def _blocks(rows: pd.DataFrame) -> list[list[list[str] | None]]:
    """The panels of each student: [student, suite, family]."""
    panels = [list(map(str, key)) for key in rows[BLOCK].drop_duplicates().itertuples(index=False)]
    students = dict.fromkeys(panel[0] for panel in panels)
    return [[panel for panel in panels if panel[0] == student] for student in students]


def _panel_name(panel: Sequence[str], rows: pd.DataFrame) -> str:
    """Student and suite where there are several, and the family."""
    parts = [part for part, key in zip(panel, BLOCK, strict=True) if rows[key].nunique() > 1]
    return "\n".join(wrap(part, 14) for part in parts or [panel[2]])


def _without(label: str, key: str) -> str:
    """The label without one option."""
    name, options = split_label(label)
    return ",".join([name, *(f"{other}={value}" for other, value in options.items() if other != key)])


def _left_out(refused: Sequence[str]) -> str:
    return f" Left out: {listing(refused)}." if refused else ""
