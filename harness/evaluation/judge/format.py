"""What a judge is asked and how its reply is read: the form of all benchmarks, and official ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.types import Message, Question


@dataclass(frozen=True, kw_only=True)
class JudgeFormat:
    """The two halves of one form."""

    messages: Callable[[Question, str, str | None], list[Message]]
    """From the question, the whole response and the content of its box (None without one)."""
    read: Callable[[Question, str], float | None]
    """The score in [0, 1] that a reply gives; None where it is not in the form, which counts as wrong."""
