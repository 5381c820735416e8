"""`index.html`: one self-contained page out of tables, figures, runs and rollouts.

What a model or a data set wrote is never markup. It goes into the page as JSON whose `<` is escaped, and the page's
script puts it into the document as text. The Content-Security-Policy allows this script and this style only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports.page.rollouts import MAX_BYTES, MAX_CHARS, PageQuestion, run_names
from reports.runs.collect import Run, flatten
from reports.runs.damage import config_problem

FOLDER = Path(__file__).parent
HOLE = "-"
UNITS = {
    "": 1.0, "%": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9,
    "T": 1e12, "P": 1e15, "MB": 1.0, "GB": 1e3, "MiB": 1.0, "GiB": 1024.0,
}  # fmt: skip
"""Factors of what may follow a number in a cell; within a column they compare, across columns they need not."""
_NUMBER = re.compile(
    r"([-+\u2212]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?)\s*([A-Za-z%]*)\s*(?:±.*|\(.*\)|\[.*\])?", re.DOTALL
)
IMAGE_TYPES = {".png": "png", ".svg": "svg+xml"}
"""The type of a file: a browser draws nothing under a wrong one."""
NAMED_KEYS = frozenset({"label", "seed", "student.name", "method.name"})
"""Configuration keys that have a column of their own in the list of runs, or that the label says."""


@dataclass(frozen=True)
class PageRow:
    """One row of a table, its first cell the row's name.

    `bold`: places of bold cells. `delta` rows stay last when a reader sorts. A filter on `label`, `student` or `family`
    hides the row; where these are empty, only the table's own count.
    """

    cells: Sequence[str]
    bold: frozenset[int] = frozenset()
    delta: bool = False
    label: str = ""
    student: str = ""
    family: str = ""


@dataclass(frozen=True)
class PageTable:
    """One table; empty `student` or `family`: it is about all of them. `note` stands below it."""

    title: str
    header: Sequence[str]
    rows: Sequence[PageRow]
    student: str = ""
    family: str = ""
    note: str = ""


@dataclass(frozen=True)
class PageFigure:
    """One figure: the text of an SVG file, or the path of a PNG or SVG file."""

    title: str
    caption: str
    image: str | Path


@dataclass(frozen=True)
class PageRun:
    """One run; `config` holds only what differs between the runs, as (key, value)."""

    name: str
    status: str
    student: str
    label: str
    seed: int
    config: tuple[tuple[str, str], ...] = field(default=())


def write_page(
    folder: Path,
    *,
    title: str,
    tables: Sequence[PageTable],
    figures: Sequence[PageFigure],
    runs: Sequence[PageRun],
    rollouts: Sequence[PageQuestion],
    notes: Sequence[str],
) -> Path:
    """Write `index.html` into an existing folder and return its path. `notes` are sentences below the title.

    Raises ValueError, one line, for a row whose number of cells is not the header's.
    """
    script, style = (_own(name) for name in ("page.js", "style.css"))
    policy = (
        f"default-src 'none'; script-src '{_sha256(script)}'; style-src '{_sha256(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    rows = [row for table in tables for row in table.rows]
    html = environment.get_template("template.html.jinja").render(
        title=title,
        policy=policy,
        script=Markup(script),
        style=Markup(style),
        notes=notes,
        tables=[_table(table) for table in tables],
        figures=[{"title": f.title, "caption": f.caption, "source": _data_url(f.image)} for f in figures],
        runs=runs,
        labels=_distinct([*(row.label for row in rows), *(run.label for run in runs)]),
        students=_distinct(
            [*(t.student for t in tables), *(row.student for row in rows), *(run.student for run in runs)]
        ),
        families=_distinct([*(t.family for t in tables), *(row.family for row in rows)]),
        num_questions=len(rollouts),
        num_question_runs=len({question.run for question in rollouts}),
        max_megabytes=MAX_BYTES / 1e6,
        max_chars=MAX_CHARS,
        data=Markup(escaped_json([asdict(question) for question in rollouts])),
    )
    file = folder / "index.html"
    file.write_text(html, encoding="utf-8", newline="\n")
    return file


def collect_page_runs(runs: Sequence[Run]) -> list[PageRun]:
    """The runs with the keys of `config.yaml` that differ between them, as dotted keys in the file's order.

    A key that only some runs have differs too. A run whose file is missing or unreadable says so in its status.
    """
    configs, statuses = [], []
    for run in runs:
        config, problem = _config(run)
        configs.append(config)
        has_folder = run.info["status"] != "refused"
        statuses.append("; ".join(filter(None, [run.incomplete or "done", problem if has_folder else None])))
    known = [config for config in configs if config]
    keys = dict.fromkeys(key for config in known for key in config)
    differing = {key for key in keys if len({config.get(key) for config in known}) > 1} - NAMED_KEYS
    return [
        PageRun(
            name=name,
            status=status,
            student=str(run.info["student"]),
            label=str(run.info["label"]),
            seed=run.info["seed"],
            config=tuple((key, value) for key, value in config.items() if key in differing),
        )
        for run, name, config, status in zip(runs, run_names(runs), configs, statuses, strict=True)
    ]


def sort_value(text: str) -> float | None:
    """The number that a cell begins with, in the base of its unit; None where it is text or a hole.

    Example: `1,200` gives 1200; `2.5 min` 150; `71.2 ± 0.4` 71.2; `level 2` None.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None or match[2] not in UNITS:
        return None
    return float(match[1].replace(",", "").replace("\u2212", "-")) * UNITS[match[2]]


def escaped_json(value: Any) -> str:
    """JSON that can stand in a script element: no `<`, `>` or `&`, so no tag and no comment can begin or end in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _table(table: PageTable) -> dict[str, Any]:
    """What the template needs: a column is of numbers where every cell that is no hole begins with one."""
    for row in table.rows:
        if len(row.cells) != len(table.header):
            raise ValueError(
                f"table {table.title!r}: row {row.cells[:1]} has {len(row.cells)} cells, its header {len(table.header)}"
            )
    columns = []
    for place, name in enumerate(table.header):
        cells = [row.cells[place] for row in table.rows if row.cells[place] not in ("", HOLE)]
        columns.append({"name": name, "number": place > 0 and all(sort_value(cell) is not None for cell in cells)})
    rows = [
        {
            "row": row,
            "cells": [
                {"text": text, "bold": place in row.bold, "sort": sort_value(text)}
                for place, text in enumerate(row.cells)
            ],
        }
        for row in table.rows
    ]
    return {"table": table, "columns": columns, "rows": rows}


def _config(run: Run) -> tuple[dict[str, str], str]:
    """Dotted keys with their values as written, and what is wrong with the file (empty: nothing)."""
    file = run.folder / "config.yaml"
    if problem := config_problem(run.folder, run.info):
        return {}, problem
    try:
        # The base loader leaves scalars as they are written.
        config = yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}, "config.yaml cannot be read"
    if not isinstance(config, dict):
        return {}, "config.yaml cannot be read"
    leaves = flatten(config).items()
    return {key: leaf if isinstance(leaf, str) else json.dumps(leaf, ensure_ascii=False) for key, leaf in leaves}, ""


def _data_url(image: str | Path) -> str:
    """A figure as the URL of an image: it can run no script, and its styles and names stay its own."""
    kind, content = ("svg+xml", image.encode()) if isinstance(image, str) else _read(image)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _read(image: Path) -> tuple[str, bytes]:
    return IMAGE_TYPES[image.suffix], image.read_bytes()


def _own(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _distinct(names: Iterable[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name]
