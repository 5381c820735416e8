"""Kinds of values that options of several groups have. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field


def _as_text(value: Any) -> Any:
    """YAML reads a number where a name or a revision looks like one."""
    return str(value) if type(value) in (int, float) else value


Text = Annotated[str, BeforeValidator(_as_text)]
Seconds = Annotated[float, Field(gt=0, le=1_000_000_000)]
"""No clock of the system waits for much longer."""
PositiveShare = Annotated[float, Field(gt=0, le=1)]
