"""A tiny teacher, and micro-batches for it."""

from __future__ import annotations

from typing import Any

import pytest

from harness.models.forward import LanguageModel
from harness.types import TrainingSample
from tests.support.samples import chat, make_samples, make_student

__all__ = ["chat", "make_samples", "make_student"]


@pytest.fixture
def teacher(make_student: Any) -> LanguageModel:
    return make_student("teacher")


@pytest.fixture
def micro_batches(make_samples: Any) -> list[list[TrainingSample]]:
    """Three micro-batches; in each, one sample has another prompt for the teacher."""
    samples = make_samples(8)
    for sample in samples[::3]:
        sample.teacher_prompt_ids = [40, 41, *sample.token_ids[: sample.num_prompt]]
    return [samples[:3], samples[3:6], samples[6:]]
