"""Write docs/fidelity.md: which clauses of the paper tests hold, and why the others are not held.

`clauses.csv` has the clauses in our words, `reasons.csv` those that no test can be marked with, `beside.csv` deviations
that no clause is about. A test that turns red where a clause is violated says so: `@pytest.mark.clause("C001", ...)`.
Marks are read off the source; nothing is imported.
"""

from __future__ import annotations

import ast
import csv
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PAGE = ROOT / "docs" / "fidelity.md"
STATES = {"not held": "Not held", "cannot be held": "Cannot be held here"}
LEFT_OUT = {"slow", "gpu", "vllm", "browser", "dist", "skip", "skipif", "xfail"}
"""Marks of tests that `make test` does not run, or whose failure it takes."""
HEAD = """# Fidelity to the paper

This page is made by `python docs/fidelity/build.py` and is not edited by hand.
Clauses are what [arXiv 2606.18216](https://arxiv.org/abs/2606.18216) says, in our words, that a harness can keep or
break.
Places are the paper's. A clause is held if a test of `make test` turns red where it is violated.
Such a test is marked `@pytest.mark.clause("C001")`. Every other clause has a reason here, or the tests fail.
A clause that is held in part is not held."""


class Clause(NamedTuple):
    """A row of `clauses.csv`."""

    id: str
    subject: str
    place: str
    clause: str


class Reason(NamedTuple):
    """A row of `reasons.csv`: why no test holds a clause."""

    id: str
    state: str
    reason: str


class Beside(NamedTuple):
    """A row of `beside.csv`."""

    subject: str
    deviation: str


class Mark(NamedTuple):
    """One clause that a test is marked with. `problem` says why the mark does not count."""

    id: str
    path: str
    test: str
    problem: str = ""


@dataclass(frozen=True)
class Fidelity:
    """All that the page is made of."""

    clauses: Sequence[Clause]
    reasons: Sequence[Reason]
    beside: Sequence[Beside]
    marks: Sequence[Mark]

    @property
    def holders(self) -> Mapping[str, Sequence[Mark]]:
        """The tests of each clause."""
        holders = defaultdict(list)
        for mark in self.marks:
            holders[mark.id].append(mark)
        return holders

    def problems(self) -> list[str]:
        """What the build fails for, a line each."""
        known = [clause.id for clause in self.clauses]
        excused = [reason.id for reason in self.reasons]
        held = set(self.holders)
        lines = [f"{mark.path}: {mark.test}: {mark.problem}" for mark in self.marks if mark.problem]
        lines += [f"{name} stands in clauses.csv twice" for name in sorted(_repeated(known))]
        lines += [f"{name} stands in reasons.csv twice" for name in sorted(_repeated(excused))]
        lines += [f"{name} of reasons.csv is no clause" for name in sorted(set(excused) - set(known))]
        for reason in self.reasons:
            if reason.state not in STATES or not reason.reason:
                lines.append(f"{reason.id} of reasons.csv needs a reason, and a state: {' or '.join(STATES)}")
        for mark in self.marks:
            if mark.id and mark.id not in known:
                lines.append(f"{mark.path}: {mark.test} is marked with {mark.id}, which is no clause")
        for name in known:
            if name in held and name in excused:
                lines.append(f"{name} is held by a test and has a reason why not: drop one of them")
            if name not in held and name not in excused:
                lines.append(f"{name} has neither a test that is marked with it nor a reason in reasons.csv")
        return lines

    def page(self) -> str:
        """docs/fidelity.md."""
        by_state = {state: [row for row in self.reasons if row.state == state] for state in STATES}
        clauses = {clause.id: clause for clause in self.clauses}
        held = [clause for clause in self.clauses if clause.id in self.holders]
        numbers = [("held", len(held)), *((state, len(rows)) for state, rows in by_state.items())]
        parts = [HEAD, _table(("clauses", *(name for name, _ in numbers)), [(len(clauses), *(n for _, n in numbers))])]
        for state, title in STATES.items():
            rows = [(r.id, clauses[r.id].place, clauses[r.id].clause, r.reason) for r in by_state[state]]
            parts += [f"## {title}", _table(("id", "place", "clause", "why not"), rows)]
        parts += ["## Deviations that no clause is about", _table(("subject", "deviation"), self.beside), "## Held"]
        for subject in dict.fromkeys(clause.subject for clause in held):
            rows = [(c.id, c.place, c.clause, self._tests(c.id)) for c in held if c.subject == subject]
            parts += [f"### {subject.capitalize()}", _table(("id", "place", "clause", "tests"), rows)]
        return "\n\n".join(parts) + "\n"

    def _tests(self, name: str) -> str:
        by_path: dict[str, list[str]] = {}
        for mark in self.holders[name]:
            by_path.setdefault(mark.path, []).append(f"`{mark.test}`")
        return "; ".join(f"{path.removeprefix('tests/')}: {', '.join(tests)}" for path, tests in by_path.items())


def collect(root: Path = ROOT, here: Path = HERE) -> Fidelity:
    """The three tables, and the marks of all tests below `root`."""
    return Fidelity(
        clauses=[Clause(**row) for row in _rows(here / "clauses.csv")],
        reasons=[Reason(**row) for row in _rows(here / "reasons.csv")],
        beside=[Beside(**row) for row in _rows(here / "beside.csv")],
        marks=[mark for path in sorted((root / "tests").rglob("*.py")) for mark in marks(path, root)],
    )


def marks(path: Path, root: Path) -> Iterator[Mark]:
    """The marks of one file. One that pytest would not count, or that `make test` leaves out, has its problem."""
    text, name = path.read_text(encoding="utf-8"), path.relative_to(root).as_posix()
    if "mark.clause" not in text:
        return
    tree = ast.parse(text)
    everywhere = {_called(node) for statement in tree.body if _is_pytestmark(statement) for node in ast.walk(statement)}
    found: set[ast.AST] = set()
    for function in tree.body:
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        others = {_called(node) for decorator in function.decorator_list for node in ast.walk(decorator)}
        left_out = sorted((others | everywhere) & LEFT_OUT)
        problem = f"make test does not count on a test with the mark {left_out[0]}" if left_out else ""
        if not (function.name.startswith("test_") and path.name.startswith("test_")):
            problem = "is no test that pytest collects"
        for decorator in function.decorator_list:
            if _called(decorator) != "clause":
                continue
            found.add(decorator)
            arguments = decorator.args if isinstance(decorator, ast.Call) else []
            names = [a.value if isinstance(a, ast.Constant) and isinstance(a.value, str) else "" for a in arguments]
            if not names or "" in names:
                yield Mark("", name, function.name, "a mark names clauses as literal strings")
            yield from (Mark(clause, name, function.name, problem) for clause in names if clause)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) == "clause" and node not in found:
            yield Mark("", name, f"line {node.lineno}", "a clause is marked on a test function, by a decorator")


def _called(node: ast.AST) -> str:
    """`slow` of `pytest.mark.slow` and of `mark.slow(...)`; empty for all else."""
    function = node.func if isinstance(node, ast.Call) else node
    is_mark = isinstance(function, ast.Attribute) and ast.unparse(function.value).split(".")[-1] == "mark"
    return function.attr if is_mark and isinstance(function, ast.Attribute) else ""


def _is_pytestmark(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "pytestmark"


def _repeated(names: Sequence[str]) -> set[str]:
    return {name for name in names if names.count(name) > 1}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def main() -> int:
    fidelity = collect()
    problems = fidelity.problems()
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        return 1
    PAGE.write_text(fidelity.page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
