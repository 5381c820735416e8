"""The built-in classes of methods by their registry keys: `@register("grpo")`. `methods.registry` looks them up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from methods.contract import Method, MethodError

METHODS: dict[str, type[Method]] = {}

M = TypeVar("M", bound=type[Method])


def register(key: str) -> Callable[[M], M]:
    """Class decorator that claims a registry key. Raises MethodError if another class has it."""

    def claim(cls: M) -> M:
        if key in METHODS:
            owners = f"{class_path(METHODS[key])} and by {class_path(cls)}"
            raise MethodError(f"method class '{key}' is claimed by {owners}: give one of them another name")
        METHODS[key] = cls
        return cls

    return claim


def class_path(cls: type) -> str:
    """`methods.zppo:ZPPO`."""
    return f"{cls.__module__}:{cls.__qualname__}"
