"""What a configuration needs of the packages that only some installations have: the extras of `pyproject.toml`.

Imports no torch, and none of the packages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from harness.config.schema import RunConfig
from harness.errors import UserError

LIBRARIES = ("lm_eval", "lmms_eval")
"""Every evaluation goes through them."""
SCORERS = ("Levenshtein", "apted", "distance", "editdistance", "jieba", "nltk", "zss")
"""What scorers of published benchmarks import besides."""
MINI = "mini"


def missing(config: RunConfig) -> Iterator[str]:
    """A line, with the command to install it, for each package that the configuration needs and that is not here."""
    if config.tracker.wandb != "disabled":
        yield from absent("wandb", ["wandb"], f"tracker.wandb={config.tracker.wandb}")
    if config.eval.suite is not None:
        modules = LIBRARIES if config.eval.suite == MINI else (*LIBRARIES, *SCORERS)
        yield from absent("eval", modules, f"eval.suite={config.eval.suite}")


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
