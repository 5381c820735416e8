"""What a sweep shows while it runs: on a terminal a table of all cells, in a log one line for each change."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from harness.study.status import format_seconds
from reports.runs.text import printable, printable_lines

STATES = ("running", "elsewhere", "failed", "interrupted", "refused", "waiting", "done", "skipped")
"""States of a cell, in the order in which rows are kept where the terminal is too low for all. `elsewhere`: another
launcher runs it, or a process that an earlier launcher left; `refused`: its folder holds another configuration."""
_STYLES = {"running": "bold", "done": "green", "failed": "red", "refused": "red", "interrupted": "yellow"}


@dataclass(frozen=True)
class Row:
    """How one cell stands. Times are in seconds; `note` is an error, an owner, or the GPUs."""

    name: str
    state: str
    step: int = 0
    num_steps: int | None = None
    reward: float | None = None
    seconds: float | None = None
    seconds_left: float | None = None
    note: str = ""


class Progress:
    """Prints changes; `live` redraws the table of `rows()` until it is left."""

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total, self.num_finished = console, total, 0

    def live(self, rows: Callable[[], Sequence[Row]]) -> contextlib.AbstractContextManager[Any]:
        if not self.console.is_terminal:
            return contextlib.nullcontext()
        return Live(
            get_renderable=lambda: table(rows(), max_rows=self.console.height - 4), console=self.console, transient=True
        )

    def changed(self, row: Row) -> None:
        """A cell that goes on in another state; the table of a terminal shows it."""
        if not self.console.is_terminal:
            self.say(f"{'':{2 * len(str(self.total)) + 3}} {_words(row)}")

    def finished(self, row: Row) -> None:
        self.num_finished += 1
        self.say(f"[{self.num_finished:>{len(str(self.total))}}/{self.total}] {_words(row)}")

    def say(self, text: str) -> None:
        self.console.print(printable_lines(text), markup=False, highlight=False, soft_wrap=True)


def table(rows: Sequence[Row], max_rows: int) -> Table:
    """All cells if `max_rows` allow, else those that change or need attention; the counts are of all."""
    kept = sorted(sorted(range(len(rows)), key=lambda i: (STATES.index(rows[i].state), i))[: max(1, max_rows)])
    counts = Counter(row.state for row in rows)
    shown = Table(box=None, pad_edge=False, caption=", ".join(f"{counts[s]} {s}" for s in STATES if counts[s]))
    shown.caption_justify = "left"
    for name in ("run", "state", "step", "reward", "time", "left", ""):
        shown.add_column(
            name, justify="left" if name in ("run", "state", "") else "right", no_wrap=True, overflow="ellipsis"
        )
    for row in (rows[i] for i in kept):
        times = ["" if seconds is None else format_seconds(seconds) for seconds in (row.seconds, row.seconds_left)]
        step = f"{row.step}/{row.num_steps or '?'}" if row.step or row.num_steps else ""
        reward = "" if row.reward is None else f"{row.reward:.2f}"
        state = Text(row.state, _STYLES.get(row.state, ""))
        shown.add_row(Text(printable(row.name)), state, step, reward, *times, Text(printable(row.note)))
    return shown


def _words(row: Row) -> str:
    """`done    grpo tiny_s seed0  12 s  reward 0.31`"""
    parts = [f"{row.state:<7} {row.name}"]
    if row.seconds is not None:
        parts.append(format_seconds(row.seconds))
    if row.reward is not None:
        parts.append(f"reward {row.reward:.2f}")
    return "  ".join([*parts, row.note] if row.note else parts)
