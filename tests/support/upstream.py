"""The task files of lm-eval and lmms-eval, which the wording and the options of columns are held against."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import yaml


class Loader(yaml.SafeLoader):
    """Reads `!function` as None."""


Loader.add_constructor("!function", lambda loader, node: None)


def upstream_config(library: str, file: str) -> dict[str, Any]:
    """A task file of a library, with what it includes; functions are left out."""
    package = importlib.util.find_spec(library)
    assert package is not None and package.origin is not None
    return _read(Path(package.origin).parent / "tasks" / file)


def _read(path: Path) -> dict[str, Any]:
    config = yaml.load(path.read_text(encoding="utf-8"), Loader)
    included = config.pop("include", [])
    merged: dict[str, Any] = {}
    for name in [included] if isinstance(included, str) else included:
        merged |= _read(path.parent / name)
    return merged | config
