"""What a run trains with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.config.schema import RunConfig
from harness.data.replay import PromptReplayBuffer
from harness.data.sampler import QuestionSampler
from harness.models.chat import Chat
from harness.records.folder import RunFolder
from harness.records.tracking import Tracker
from harness.rollout.actors import LiveActors
from harness.rollout.base import RolloutEngine
from harness.training.models import Teacher
from harness.training.update import Updater
from methods.base import Method


@dataclass(frozen=True, kw_only=True)
class RunParts:
    """The open parts of a run that trains. `engine` is the student's; `evaluate` scores it, after a step."""

    config: RunConfig
    method: Method
    sampler: QuestionSampler
    buffer: PromptReplayBuffer
    actors: LiveActors
    engine: RolloutEngine
    updater: Updater
    teacher: Teacher
    chat: Chat
    folder: RunFolder
    tracker: Tracker
    num_steps: int
    evaluate: Callable[[int], None]
