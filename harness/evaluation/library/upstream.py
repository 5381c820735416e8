"""The libraries' own functions: official metrics, official wording of judge prompts."""

from __future__ import annotations

import importlib
import os
from functools import cache
from pathlib import Path
from types import ModuleType

from harness.evaluation.library.isolation import preserved_state, quiet_lmms_eval

_IMPORT_ENVIRONMENT = {"OPENAI_API_KEY": "unused", "HF_HOME": str(Path.home() / ".cache" / "huggingface")}
"""Some task modules make a client, or a path, when they are imported; none is used."""


@cache
def upstream_module(name: str) -> ModuleType:
    """A module of a library's tasks, for its official functions: `upstream_module("lmms_eval.tasks.mmvet.utils")`."""
    with preserved_state(), quiet_lmms_eval():
        for variable, value in _IMPORT_ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        return importlib.import_module(name)
