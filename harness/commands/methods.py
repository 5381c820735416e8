"""`zppo methods`: the presets, ours and those of plugins, and what is wrong with a plugin."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.config.compose import compose_option, group_files
from harness.errors import UserError
from methods import plugins, registry

OURS = "zppo-bench"
WIDTH = 160
UNOPENED = "?: the code of plugins was not run; zppo methods --check imports all of them, and says which are broken"


def methods_text(*, check: bool = False) -> str:
    """A table with a row a preset. Below it a line for each thing that is broken; everything else is listed.

    The columns: preset, class, where it comes from (module, or a plugin's distribution and version), whether it needs a
    teacher and replay, and what for. That is the comment that its file begins with, else the class's first line.

    Of plugins only metadata and option files are read: what their code alone could say is `?`. With `check` they are
    imported.
    """
    table = Table(box=None, pad_edge=False)
    for column in ("preset", "class", "from", "teacher", "replay", "purpose"):
        table.add_column(column, no_wrap=column != "purpose")
    broken = _broken_plugins(check=check)
    lines = list(broken.values())
    known = {None, *registry.built_in()}
    some_unopened = False
    for name, file in group_files("method").items():
        origin = _origin(file)
        try:
            options = compose_option("method", name)
            if options.get("class") in broken.keys() - known:
                continue  # its line is there
            is_open = check or options.get("class") in known
            some_unopened |= not is_open
            table.add_row(name, *(_row if is_open else _unopened_row)(options, file))
        except (UserError, registry.MethodError) as error:
            lines.append(f"preset '{name}' of {origin}: {error}")
        except Exception as error:  # a plugin's own checks of its options
            reason = " ".join(str(error).split())
            remedy = registry.private_import(error) or "fix it"
            lines.append(f"preset '{name}' of {origin} cannot be built ({type(error).__name__}: {reason}): {remedy}")
    console = Console(width=WIDTH, markup=False, highlight=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    rows = [line.rstrip() for line in capture.get().splitlines()]
    lines += _hidden_presets(broken)
    if some_unopened:
        lines.append(UNOPENED)
    return "\n".join([*rows, "", *lines] if lines else rows)


def taken_names() -> dict[str, str]:
    """What a new method cannot be called, each with whose it is: keys of classes, presets, and names of plugins."""
    of_plugins = {plugin.name: plugin.source for plugin in plugins.installed()}
    presets = {name: _origin(file) for name, file in group_files("method").items()}
    return of_plugins | presets | dict.fromkeys(registry.built_in(), OURS)


def _row(options: dict[str, Any], file: Traversable) -> tuple[str, ...]:
    method = registry.build(options)
    comment = _comment(file)
    if method is None:
        return "-", _origin(file), "none", "-", comment
    origin = _origin(file) if _origin(file) != OURS else type(method).__module__
    purpose = comment or (inspect.getdoc(type(method)) or "").split("\n")[0]
    return options["class"], origin, method.needs_teacher, "yes" if method.config.replay else "no", purpose


def _unopened_row(options: dict[str, Any], file: Traversable) -> tuple[str, ...]:
    return str(options["class"]), _origin(file), "?", "?", _comment(file)


def _comment(file: Traversable) -> str:
    """What an option file begins with."""
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _broken_plugins(*, check: bool) -> dict[str, str]:
    """The line of each plugin that cannot be used, by its name, as far as that shows without importing it; with `check`
    all are imported."""
    broken: dict[str, str] = {}
    for plugin in plugins.installed():
        try:
            (registry.plugin_class if check else registry.check_claim)(plugin)
        except registry.MethodError as error:
            broken[plugin.name] = str(error)
    return broken


def _hidden_presets(broken: dict[str, str]) -> list[str]:
    """Option files of plugins in whose place another one of the same name is read."""
    read = group_files("method")
    lines = []
    for folder, source in plugins.option_folders().items():
        for file in sorted((folder / "method").glob("*.yaml")):
            if file != read[file.stem] and file.stem not in broken:
                lines.append(
                    f"preset '{file.stem}' of {source} is hidden by the one of {_origin(read[file.stem])}: "
                    f"rename {file.parent.parent.parent.name}/conf/method/{file.name}"
                )
    return lines


def _origin(file: Traversable) -> str:
    """Whose option file it is: `zppo-maxrl 1.0`, or ours."""
    folders = plugins.option_folders()
    inside = [folder for folder in folders if isinstance(file, Path) and file.is_relative_to(folder)]
    return folders[inside[0]] if inside else OURS


def run_methods(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    parser.add_argument("--check", action="store_true", help="import all plugins, and say which of them are broken")
    print(methods_text(check=parser.parse_args(argv).check))
    return 0
