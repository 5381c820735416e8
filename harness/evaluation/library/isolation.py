"""Keeps the process-wide side effects of lm-eval and lmms-eval out of a training run."""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""Set by a launcher of several processes. By them lm-eval keeps its results from all but one process, and lmms-eval
shares out the questions; but a student that is evaluated is one student, wherever it runs."""


_QUIET: list[bool] = []
"""Not empty while `quiet_lmms_eval` is on."""


@contextmanager
def preserved_state() -> Iterator[None]:
    """Give back the global python, numpy and torch generators, `sys.path` and the environment variables as they were.

    CUDA generators are kept where CUDA is in use already; asking for them elsewhere would start it.
    """
    import numpy as np
    import torch

    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    variables, path = dict(os.environ), list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Keep lm-eval from log lines below ERROR, from progress bars and from subprocesses.

    The subprocesses describe the machine and the git commit. They cost 0.6 s and print on stderr outside a repository,
    and nobody reads their result.
    """
    from lm_eval import evaluator
    from lm_eval.api import task

    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            _replaced(evaluator, "get_git_commit_hash", lambda: None),
            _replaced(evaluator, "add_env_info", lambda results: None),
            _replaced(task, "tqdm", lambda docs, **options: docs),
            _hidden(RANK_VARIABLES),
            _without_bars(),
        ):
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def quiet_lmms_eval() -> Iterator[None]:
    """Import lmms-eval and keep it from what reaches beyond it: log lines, progress bars, subprocesses for the git
    commit, and its changes to classes of `filelock` and `ssl`.
    """
    import ssl

    from loguru import logger

    if _QUIET:  # what is inside need not, and must not, end what is outside
        yield
        return
    with ExitStack() as stack:
        _QUIET.append(True)
        stack.callback(_QUIET.clear)
        for name in ("lmms_eval", "utils"):  # the second is how most files of tasks are imported
            logger.disable(name)
            stack.callback(logger.enable, name)
        with _import_undone():
            from lmms_eval import evaluator
            from lmms_eval.api import task
        for name in ("get_git_commit_hash", "get_git_branch_name", "get_lmms_eval_version_string"):
            stack.enter_context(_replaced(evaluator, name, lambda: None))
        # Both help in loading data sets from the hub, which evaluation does not do. The second finds that it is done.
        stack.enter_context(_replaced(evaluator, "_enable_reentrant_filelocks", lambda: None))
        stack.enter_context(_replaced(ssl.SSLContext, "_orig_reduce", True))
        for module in (evaluator, task):
            stack.enter_context(_replaced(module, "tqdm", _without_bar(module.tqdm)))
        stack.enter_context(_hidden(RANK_VARIABLES))
        stack.enter_context(_without_bars())
        yield


@contextmanager
def _import_undone() -> Iterator[None]:
    """What importing lmms-eval changes for everybody stays as it was.

    The import replaces the handlers of loguru, hides all warnings and loads a `.env` file of the working folder. It
    raises the timeout of `torch.distributed` to a day, and lets Pillow accept pictures that are cut off.
    """
    import dotenv
    from loguru import logger
    from PIL import ImageFile
    from torch.distributed import distributed_c10d

    with (
        warnings.catch_warnings(),
        _replaced(logger, "remove", lambda *arguments: None),
        _replaced(logger, "add", lambda *arguments, **options: 0),
        _replaced(dotenv, "load_dotenv", lambda *arguments, **options: False),
        _replaced(distributed_c10d, "default_pg_timeout", distributed_c10d.default_pg_timeout),
        _replaced(ImageFile, "LOAD_TRUNCATED_IMAGES", ImageFile.LOAD_TRUNCATED_IMAGES),
    ):
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` meanwhile; it is removed again where the owner itself had no such attribute."""
    had = name in vars(owner)
    original = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, original)
        else:
            delattr(owner, name)


@contextmanager
def _without_bars() -> Iterator[None]:
    """While a task loads its data."""
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()


@contextmanager
def _hidden(variables: tuple[str, ...]) -> Iterator[None]:
    hidden = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _without_bar(tqdm: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments, **options: tqdm(*arguments, **options | {"disable": True})
