"""The recipe of every column."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from harness.evaluation.benchmarks.recipe import Recipe

MODULES = ("knowledge", "competition", "pictures", "visual_maths", "documents", "videos")
"""Each has `RECIPES` by the column's name."""


@cache
def recipes() -> dict[str, Recipe]:
    return {
        name: recipe
        for module in MODULES
        for name, recipe in import_module(f"harness.evaluation.benchmarks.{module}").RECIPES.items()
    }


def recipe(column: str) -> Recipe:
    return recipes()[column]
