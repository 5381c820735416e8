"""What a configuration needs of the packages that only some installations have: the extras of `pyproject.toml`.

Imports no torch, and none of the packages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from harness.config.evaluation import benchmarks_of, library_task, suites
from harness.config.schema import RunConfig
from harness.errors import UserError

SCORERS = ("lmms_eval", "Levenshtein", "apted", "distance", "editdistance", "jieba", "nltk", "zss")
"""What the official scorers of the paper's columns import."""


def missing(config: RunConfig) -> Iterator[str]:
    """A line, with the command to install it, for each package that the configuration needs and that is not here."""
    if config.tracker.wandb != "disabled":
        yield from absent("wandb", ["wandb"], f"tracker.wandb={config.tracker.wandb}")
    if config.eval.suite is None:
        return
    if set(benchmarks_of(config.eval)) & {name for members in suites().values() for name in members}:
        yield from absent("eval", SCORERS, f"eval.suite={config.eval.suite}")
    for task in config.eval.tasks:
        yield from absent("eval", [library_task(task)[0]], f"eval.tasks={task}")


def check_extras(config: RunConfig) -> None:
    """Raises UserError for the first of them."""
    for line in missing(config):
        raise UserError(line)


def absent(extra: str, modules: Sequence[str], wanted: str) -> Iterator[str]:
    """A line where one of the modules of an extra, which `wanted` needs, cannot be found."""
    for module in modules:
        if find_spec(module) is None:
            yield f"{wanted} needs {module}, which is not installed: {install(extra)}"
            return


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install -e '.[{extra}]' in the checkout"
