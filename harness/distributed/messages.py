"""What ranks tell each other. Media travel as references: the pixels are made anew where they are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any

from harness.errors import RunInterrupted, UserError
from harness.models.vision import Vision
from harness.types import TrainingSample

_processor: Callable[[], Vision] | None = None


def share_vision(processor: Callable[[], Vision]) -> None:
    """From here on a medium that arrives is opened by this rank's own processor."""
    global _processor
    _processor = processor
    ForkingPickler.register(Vision, lambda vision: (_own_vision, ()))


def _own_vision() -> Vision:
    assert _processor is not None, "media came to a rank that has no processor"
    return _processor()


def slim(samples: Sequence[TrainingSample]) -> list[TrainingSample]:
    """Copies without what an update does not read: texts, and the completions, which are in `token_ids` already."""
    without: dict[str, Any] = {"text": "", "completion_ids": [], "rollout_logprobs": []}
    return [
        sample
        if sample.rollout is None
        else dataclasses.replace(sample, rollout=dataclasses.replace(sample.rollout, **without))
        for sample in samples
    ]


def plain_error(error: UserError) -> UserError:
    """An error that a user can fix, as it can travel: classes may have constructors of their own."""
    return RunInterrupted(str(error)) if isinstance(error, RunInterrupted) else UserError(str(error))
