"""How every figure of a report looks: width, fonts, colours, grids of small panels, and files that repeat bytewise."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from reports.runs.collect import BASE

LineStyle = Literal["-", "--", ":", "-."]
WIDTH = 5.2
"""Width of every figure, inches: at 390 pixels, a telephone, text of 9 points is still 9 pixels high."""
DPI = 200
# Okabe and Ito's palette, distinct with any kind of colour blindness; the line style changes when it starts again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES: tuple[LineStyle, ...] = ("-", "--", ":", "-.")
GREY = "#777777"
MANY_LINES = 8
"""Panels with more lines draw them thinner and their bands fainter."""
RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same on every machine
    "font.size": 8.5,
    "text.parse_math": False,  # a dollar sign in a label is a dollar sign
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Figure:
    """A figure on disk; `caption` says in one or two plain sentences what it shows and how."""

    name: str
    title: str
    caption: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Drawing:
    """A figure that is not saved yet."""

    name: str
    title: str
    caption: str
    canvas: Canvas


@dataclass(frozen=True)
class Look:
    """Colour and line style of a label: the same in all figures of a report."""

    colour: str
    style: LineStyle


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's defaults and `RC`, whatever the user's matplotlibrc says."""
    with matplotlib.style.context(["default", RC]):
        yield


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """A look for each label in order; base, which is never trained, is grey and uses up none."""
    trained = [label for label in labels if label != BASE]
    found = {
        label: Look(COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)])
        for i, label in enumerate(trained)
    }
    return {label: found.get(label, Look(GREY, "-")) for label in labels}


def shades(number: int) -> list[str]:
    """`number` colours from cold to warm, of Okabe and Ito's palette where there are four: for values with an order."""
    anchors = [to_rgb(colour) for colour in ("#0072B2", "#56B4E9", "#E69F00", "#D55E00")]
    places = np.linspace(0, len(anchors) - 1, number)
    channels = [np.interp(places, range(len(anchors)), channel) for channel in zip(*anchors, strict=True)]
    return [to_hex((red, green, blue)) for red, green, blue in zip(*channels, strict=True)]


@dataclass(frozen=True)
class Grid:
    """Where panels stand, in inches; a cell is a panel with its title above and its tick labels below and left."""

    num_columns: int
    height: float
    """Height of a panel's inside."""
    title_lines: int = 1
    tick_lines: int = 1
    left: float = 0.46
    """Room for tick labels, left of the first column."""
    gap: float = 0.46
    """Room for tick labels, left of the others."""


def columns_for(num_panels: int, num_students: int = 1) -> int:
    """Columns of small panels, all alike: three, or two where that leaves no hole or keeps students side by side."""
    if num_students > 1:
        return 3 if num_students % 3 == 0 else 2
    return 2 if num_panels in (1, 2, 4) else 3


def draw_grid(
    num_panels: int, shape: Grid, *, x_label: str = "", y_label: str = "", legend: Mapping[str, Artist] | None = None
) -> tuple[Canvas, list[Axes]]:
    """Panels row by row, below them the name of the x axes and one legend for all."""
    num_rows = -(-num_panels // shape.num_columns)
    cell = shape.height + 0.16 * shape.title_lines + 0.15 * (shape.tick_lines - 1) + 0.34
    columns = _legend_columns(list(legend)) if legend else 1
    below = (0.22 if x_label else 0.0) + (0.151 * -(-len(legend) // columns) + 0.12 if legend else 0.0) + 0.04
    total = num_rows * cell + below
    left = shape.left + (0.2 if y_label else 0.0)
    width = (WIDTH - left - 0.12 - (shape.num_columns - 1) * shape.gap) / shape.num_columns
    canvas = Canvas(figsize=(WIDTH, total))
    axes = []
    for number in range(num_panels):
        row, column = divmod(number, shape.num_columns)
        x = left + column * (width + shape.gap)
        y = total - row * cell - 0.16 * shape.title_lines - 0.1 - shape.height
        axes.append(canvas.add_axes((x / WIDTH, y / total, width / WIDTH, shape.height / total)))
    middle = (left + WIDTH - 0.12) / 2 / WIDTH
    if x_label:
        canvas.text(middle, (below - 0.02) / total, x_label, ha="center", va="top", fontsize=8.5)
    if y_label:
        canvas.text(
            0.06 / WIDTH, (below + total) / 2 / total, y_label, rotation=90, ha="left", va="center", fontsize=8.5
        )
    if legend:
        canvas.legend(
            list(legend.values()), list(legend), loc="lower center", bbox_to_anchor=(0.5, 0.02 / total), ncols=columns,
            frameon=False, handlelength=1.8, columnspacing=1.2, labelspacing=0.25, borderpad=0, borderaxespad=0,
        )  # fmt: skip
    return canvas, axes


def _legend_columns(names: Sequence[str]) -> int:
    """The number of columns with these names that fit the width, and no more than fill the same number of rows."""
    inches = 0.55 + 0.072 * max(map(len, names))
    num_rows = -(-len(names) // max(1, int(WIDTH / inches)))
    return -(-len(names) // num_rows)


def wrap(text: str, width: int) -> str:
    """Text in lines of at most `width` characters, broken after commas, equal signs, underscores and spaces."""
    parts = text.replace(",", ",\0").replace("_", "_\0").replace("=", "=\0").replace(" ", " \0").split("\0")
    lines = [""]
    for part in parts:
        for piece in textwrap.wrap(part, width, drop_whitespace=False) or [part]:
            if lines[-1] and len(lines[-1] + piece.rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def step_axis(ax: Axes, last_step: int) -> None:
    ax.set_xlim(1, max(2, last_step))
    ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)


def save(drawing: Drawing, folder: Path) -> Figure:
    """Write `<name>.png` and `<name>.svg`, byte for byte the same for the same drawing."""
    files = tuple(folder / f"{drawing.name}.{kind}" for kind in ("png", "svg"))
    with matplotlib.rc_context({"svg.hashsalt": drawing.name}):
        drawing.canvas.savefig(files[0], dpi=DPI, metadata={"Software": None})
        drawing.canvas.savefig(files[1], metadata={"Date": None, "Creator": None})
    return Figure(drawing.name, drawing.title, drawing.caption, files)
