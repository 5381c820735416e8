"""Scalars of a row as text."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any


def text_of(value: Any) -> str:
    """A scalar as text: `3.0` is `3`, `1e-07` is `0.0000001`. Raises ValueError for anything else."""
    if isinstance(value, str):
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise ValueError("holds half a surrogate pair, which no tokenizer takes")
        return value.strip()
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int | float | Decimal):
        if not math.isfinite(value):
            raise ValueError(f"is {value}, not a finite number")
        text = format(Decimal(str(value)), "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    raise ValueError(f"is a {type(value).__name__}, not text or a number")
