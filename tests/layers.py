"""Who imports whom, read off the source: `python tests/layers.py [TREE]` prints the figures of a tree.

The floors are those of docs/architecture.md. `tests/test_layers.py` holds the source to them.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import networkx

ROOT = Path(__file__).parent.parent
PACKAGES = ("harness", "methods", "reports")
MODULE = re.compile(rf"(?:{'|'.join(PACKAGES)})\.[\w.]*(?::\w+)?")

FLOORS: tuple[tuple[str, ...], ...] = (
    ("harness", "harness.types", "harness.errors", "reports.runs"),
    ("methods", "harness.process", "reports.inference", "reports.page", "reports.plots"),
    ("harness.config", "reports"),
    ("harness.serving",),
    ("harness.rewards",),
    ("harness.data",),
    ("harness.models",),
    ("harness.rollout", "harness.records", "harness.teacher"),
    ("harness.training", "harness.evaluation", "harness.study"),
    ("harness.distributed", "harness.preflight", "harness.builders"),
    ("harness.run",),
    ("harness.commands",),
    ("harness.app",),
    ("harness.testing",),
)
"""Rooms by floor, lowest first: a folder, or a module that stands alone. `harness` is its empty `__init__`."""


@dataclass(frozen=True, order=True)
class Import:
    """`source` imports `target`, at the top of the file, in a function or for types alone."""

    source: str
    target: str


class Tree:
    """The modules of a checkout and what each imports of the others."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self.files = {
            module_name(path.relative_to(root)): path
            for package in PACKAGES
            for path in sorted((root / package).rglob("*.py"))
        }

    @cached_property
    def parsed(self) -> dict[str, ast.Module]:
        return {name: ast.parse(path.read_text(encoding="utf-8"), path) for name, path in self.files.items()}

    @cached_property
    def imports(self) -> list[Import]:
        """Every import between two modules of the tree, once."""
        found = set()
        for source, parsed in self.parsed.items():
            for name in imported_names(parsed):
                target = self._module(name)
                if target is not None and target != source:
                    found.add(Import(source, target))
        return sorted(found)

    def _module(self, name: str) -> str | None:
        """The module that gives a dotted name: itself, or the one that it is an attribute of."""
        while name:
            if name in self.files:
                return name
            name = name.rpartition(".")[0]
        return None

    @property
    def loose(self) -> list[str]:
        """Modules at the root of `harness/`."""
        return [name for name in self.files if name.count(".") == 1 and name.startswith("harness.")
                and self.files[name].name != "__init__.py"]  # fmt: skip

    @property
    def circles(self) -> list[list[str]]:
        """Groups of modules that reach each other."""
        graph = networkx.DiGraph((edge.source, edge.target) for edge in self.imports)
        return sorted(sorted(group) for group in networkx.strongly_connected_components(graph) if len(group) > 1)

    @property
    def mutual_folders(self) -> list[tuple[str, str]]:
        """Pairs of folders that import each other."""
        edges = {(folder(edge.source, self), folder(edge.target, self)) for edge in self.imports}
        return sorted((a, b) for a, b in edges if a < b and (b, a) in edges)

    @property
    def upward(self) -> list[Import]:
        """Imports of another room that is not on a lower floor."""
        return [
            edge
            for edge in self.imports
            if room(edge.source) != room(edge.target) and floor(edge.target) >= floor(edge.source)
        ]

    @property
    def num_lines(self) -> Counter[str]:
        """Lines of each top-level package."""
        lines: Counter[str] = Counter()
        for name, path in self.files.items():
            lines[name.partition(".")[0]] += len(path.read_text(encoding="utf-8").splitlines())
        return lines


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def folder(name: str, tree: Tree) -> str:
    """The folder of a module; a module at the root of `harness/` stands alone."""
    alone = tree.files[name].name == "__init__.py" or name in tree.loose
    return name if alone else name.rpartition(".")[0]


def room(name: str) -> str:
    """Raises KeyError for a module that stands in no room."""
    rooms = [room for names in FLOORS for room in names]
    fitting = [room for room in rooms if name == room or (room != "harness" and name.startswith(room + "."))]
    if not fitting:
        raise KeyError(f"{name} stands in no room of tests/layers.py")
    return max(fitting, key=len)


def floor(name: str) -> int:
    wanted = room(name)
    return next(level for level, names in enumerate(FLOORS) if wanted in names)


def imported_names(tree: ast.Module) -> Iterator[str]:
    """Dotted names that a file imports, wherever in it.

    A string that names a module (`"harness.run.run"`, `"harness.run.run:run"`, `f"harness.commands.{name}"`) counts as
    an import of it, but for docstrings and for what is started as a process of its own (`"-m", "harness.app"`).
    """
    left_out = {id(string) for node in ast.walk(tree) for string in _no_imports(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"line {node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and id(node) not in left_out and MODULE.fullmatch(str(node.value)):
            yield str(node.value).partition(":")[0].rstrip(".")


def _no_imports(node: ast.AST) -> Iterator[ast.AST]:
    """Strings of a node that import nothing: docstrings, and what follows `"-m"`."""
    if isinstance(node, ast.Expr):
        yield node.value
    if isinstance(node, ast.List | ast.Tuple):
        for flag, name in itertools.pairwise(node.elts):
            if isinstance(flag, ast.Constant) and flag.value == "-m":
                yield name


def figures(tree: Tree) -> str:
    def lines(title: str, rows: Iterable[str]) -> list[str]:
        listed = list(rows)
        return [f"{title}: {len(listed)}", *(f"  {row}" for row in listed)]

    text = [f"loose modules at the root of harness/: {len(tree.loose)} ({', '.join(tree.loose)})"]
    text += lines("circles of files", (" <-> ".join(group) for group in tree.circles))
    text += lines("imports that do not go to a lower floor", (f"{e.source} -> {e.target}" for e in tree.upward))
    text += lines("pairs of folders that import each other", (f"{a} <-> {b}" for a, b in tree.mutual_folders))
    counted = ", ".join(f"{name} {num:,}" for name, num in sorted(tree.num_lines.items()))
    text.append(f"modules: {len(tree.files)}; imports between them: {len(tree.imports)}; lines: {counted}")
    return "\n".join(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tree", nargs="?", type=Path, default=ROOT, help="a checkout; default: this one")
    print(figures(Tree(parser.parse_args().tree)))
