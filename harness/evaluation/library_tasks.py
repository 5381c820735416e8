"""Library tasks by name: found offline, loaded before anything is sampled, and evaluated one after another."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from harness.config.evaluation import EvalConfig, library_task
from harness.errors import UserError, first_line
from harness.evaluation.asking import Asker
from harness.evaluation.library import index, isolation
from harness.evaluation.library_scores import LibraryScore, library_scores
from harness.evaluation.protocol import Setup

logger = logging.getLogger(__name__)

MODULES = {
    "lm_eval": "harness.evaluation.lm_eval_tasks",
    "lmms_eval": "harness.evaluation.lmms_eval_tasks",
}
"""Imported where one of their tasks is asked for: each takes seconds to load, and changes the process."""
QUIET = {"lm_eval": isolation.quiet_lm_eval, "lmms_eval": isolation.quiet_lmms_eval}


@dataclass(frozen=True, kw_only=True)
class ReadyTask:
    """A task whose data are there."""

    entry: str
    """As `eval.tasks` names it."""
    library: str
    loaded: Any

    def evaluate(self, asker: Asker, config: EvalConfig, setup: Setup) -> list[LibraryScore]:
        """Raises UserError, a line, for what the task or its library raises; what the student raises stays."""
        with QUIET[self.library](), _inside(config.data_root):
            try:
                results = self.loaded.evaluate(asker)
            except UserError:
                raise
            except Exception as error:
                if asker.failed:
                    raise
                raise UserError(f"{self.entry} cannot be evaluated ({_reason(error)})") from error
        return library_scores(self.library, results, asker, config, setup)


def find_tasks(config: EvalConfig) -> dict[str, dict[str, index.Entry]]:
    """The index of each library that `eval.tasks` names. Raises UserError for a name that it does not have, and for one
    that runs code without `eval.allow_code`. Imports nothing heavy."""
    names: dict[str, list[str]] = {}
    for entry in config.tasks:
        library, name = library_task(entry)
        names.setdefault(library, []).append(name)
    found = {library: index.find_tasks(library, asked, config.task_paths) for library, asked in names.items()}
    for library, asked in names.items():
        for name in asked if not config.allow_code else ():
            if (runs := index.runs_code(name, found[library], library, config.task_paths)) is not None:
                which = "" if runs == name else f" ({runs})"
                raise UserError(
                    f"eval.tasks={library}:{name}{which} runs code that the student writes: set eval.allow_code=true "
                    "on a machine that may run it"
                )
    return found


def load_tasks(config: EvalConfig) -> tuple[list[ReadyTask], dict[str, str]]:
    """The tasks of `eval.tasks`, and a line for each whose data cannot be had. Raises as `find_tasks`."""
    indices = find_tasks(config)
    ready: list[ReadyTask] = []
    holes: dict[str, str] = {}
    for entry in config.tasks:
        library, name = library_task(entry)
        with QUIET[library](), _inside(config.data_root):
            module = import_module(MODULES[library])
            known = index.with_members(name, indices[library], library, config.task_paths)
            try:
                loaded = module.LoadedTask(name, known, config)
            except Exception as error:  # whatever a task's own code or a hub that does not answer raises
                holes[entry] = f"{entry} cannot be loaded ({_reason(error)}): {_remedy(error, library)}"
                continue
        ready.append(ReadyTask(entry=entry, library=library, loaded=loaded))
    return ready, holes


@contextmanager
def _inside(data_root: str | None) -> Iterator[None]:
    """In `eval.data_root`, where there is one: the libraries take a data set `OWNER/NAME` from the working folder."""
    with ExitStack() as stack:
        if data_root is not None:
            before = os.getcwd()
            stack.callback(os.chdir, before)
            os.chdir(Path(data_root).expanduser())
        yield


def _reason(error: BaseException) -> str:
    """The first line of what went wrong. A retry of lmms-eval hides it in a future."""
    last = getattr(error, "last_attempt", None)
    if last is not None and (inner := last.exception()) is not None:
        error = inner
    return f"{type(error).__name__}: {first_line(error)}"[:300]


def _remedy(error: BaseException, library: str) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing:
        return f"install {missing}"
    return (
        "offline its data have to be in the hub's cache, or as OWNER/NAME in the folder eval.data_root "
        "(hf download --repo-type dataset)"
    )
