"""The libraries' own task files and functions: configurations, official metrics, official wording of judge prompts."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

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


def upstream_config(library: str, file: str) -> dict[str, Any]:
    """A task file of a library, with what it includes; functions are left out. Empty for an empty name."""
    if not file:
        return {}
    package = importlib.util.find_spec(library)
    assert package is not None and package.origin is not None
    return _read(Path(package.origin).parent / "tasks" / file)


def _read(path: Path) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads `!function` as None."""

    Loader.add_constructor("!function", lambda loader, node: None)
    config = yaml.load(path.read_text(encoding="utf-8"), Loader)
    included = config.pop("include", [])
    merged: dict[str, Any] = {}
    for name in [included] if isinstance(included, str) else included:
        merged |= _read(path.parent / name)
    return merged | config
