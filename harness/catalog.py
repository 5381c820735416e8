"""What `zppo methods` prints: the registered classes and the presets over them."""

from __future__ import annotations

import inspect

import yaml
from rich.console import Console
from rich.table import Table

from harness.compose import group_files
from methods import registry


def methods_table() -> str:
    """Presets with their class, whether they need a teacher and replay, and the class's first line."""
    table = Table(box=None, pad_edge=False)
    for column in ("preset", "class", "teacher", "replay", "purpose"):
        table.add_column(column, no_wrap=column != "purpose")
    for name, file in group_files("method").items():
        options = yaml.safe_load(file.read_text(encoding="utf-8"))
        method = registry.build(options)
        if method is None:
            table.add_row(name, "-", "none", "-", "the untrained student, evaluated")
            continue
        source = f"{options['class']} ({type(method).__module__})"
        purpose = (inspect.getdoc(type(method)) or "").split("\n")[0]
        table.add_row(name, source, method.needs_teacher, "yes" if method.config.replay else "no", purpose)
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
