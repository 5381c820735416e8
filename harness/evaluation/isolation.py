"""Keeps lm-eval's process-wide side effects out of a training run."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def preserved_state() -> Iterator[None]:
    """Give back the global python, numpy and torch generators and the `HF_*` variables as they were.

    CUDA generators are kept where CUDA is in use already; asking for them elsewhere would start it.
    """
    import numpy as np
    import torch

    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    variables = _hub_variables()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)
        for name in _hub_variables().keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """No log lines below ERROR, no progress bars, and none of the subprocesses with which lm-eval describes the
    machine and the git commit: they cost 0.6 s, print on stderr outside a repository, and nobody reads their result.
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
        ):
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


def _hub_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("HF_")}
