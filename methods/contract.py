"""The contract of a method: it inherits rollouts, grading, replay, logging, checkpoints and evaluation.

Plugins import all of this from `methods.base`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import PositiveInt

from harness.types import (
    Actors,
    GroupStream,
    LossOutput,
    Prompt,
    Question,
    QuestionBatch,
    RolloutGroup,
    Sampler,
    TeacherDistribution,
    TokenBatch,
    TrainingSample,
)
from methods.options import Share, check_limits
from methods.prompts import plain_messages

if TYPE_CHECKING:
    import numpy as np
    import torch

TeacherUse = Literal["none", "rollouts", "distribution"]


class MethodError(ValueError):
    """A method that cannot be used; the message is one line with the remedy."""


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Options that every method has; the defaults are the published setting (Table 8)."""

    group_size: PositiveInt = 8
    """Student rollouts of each prompt (G_S, published: 8)."""
    tau: Share = 0.5
    """A question is hard when the mean reward of its plain group is below this, from 0 to 1 (published: 0.5)."""
    updates_per_step: PositiveInt = 1
    """Mini-batches that a rollout step is split into, one optimizer update each (I). Published: 4 with a policy
    gradient, 1 for distillation."""
    replay: bool = False
    """Draw hard questions again from the prompt replay buffer. The paper marks such rows with a dagger."""
    replay_ratio: Share = 0.25
    """Replayed questions of a step relative to new ones, from 0 to 1 (rho_replay, published: 0.25). Only with
    `replay`."""
    buffer_capacity: PositiveInt = 10_000
    """Most questions in the prompt replay buffer (published: 10,000). The oldest leave first. Only with `replay`."""

    def __post_init__(self) -> None:
        """Raises ValueError, one line, for a value beyond its field's limits. A subclass adds what makes no sense."""
        check_limits(self, "method.")


class Method(ABC):
    """A method says what a step samples (`collect`), which tokens are trained with which weight (`credit`), and the
    per-token loss (`loss`). It keeps no state: `rng` is made from (seed, step).
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    needs_teacher: TeacherUse = "none"
    """`rollouts`: the teacher samples or rewrites; `distribution`: its logits are read. An instance may need less than
    its class: then the teacher is not loaded."""
    trained_samplers: ClassVar[frozenset[Sampler]] = frozenset({"student"})
    """Whose tokens `credit` may train. Anything but the student's own has to be declared here."""
    prompt_kinds: frozenset[str] = frozenset({"plain"})
    """Kinds of the prompts that `collect` may ask, those of rewrites too. An instance may ask fewer. The conformance
    kit says which of them it has not seen."""

    def __init__(self, config: MethodConfig) -> None:
        self.config: Any = config

    def collect(self, batch: QuestionBatch, actors: Actors, rng: np.random.Generator) -> list[RolloutGroup]:
        """Everything this step samples, graded. Default: one plain student group a question."""
        return self.plain_groups(batch, actors).list()

    @abstractmethod
    def credit(self, groups: Sequence[RolloutGroup]) -> list[TrainingSample]:
        """Which tokens are trained, with which advantage or weight. Sees all groups of the step at once, and in
        `RolloutGroup.mini_batch` which of them are trained together."""

    def is_trained(self, group: RolloutGroup) -> bool:
        """Whether `credit` trains tokens of a group: such groups are dealt to mini-batches before it. Default: those
        with a rollout of one of `trained_samplers`."""
        return any(rollout.sampler in self.trained_samplers for rollout in group.rollouts)

    @abstractmethod
    def loss(self, logits_NV: torch.Tensor, batch: TokenBatch, teacher: TeacherDistribution | None) -> LossOutput:
        """Loss of the N trained tokens of one chunk, before weights. Logits are fp32, over `logit_temperature`."""

    def logit_temperature(self, sampling: float) -> float:
        """The temperature of the logits that `loss` is given, of student and teacher alike. Default: that of sampling,
        as a ratio to the probability of what was sampled needs it."""
        return sampling

    def metrics(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """Further `section/name` numbers of a step, read off its groups."""
        return {}

    def plain_groups(self, batch: QuestionBatch, actors: Actors) -> GroupStream:
        """Start `group_size` student rollouts of every question of the batch."""
        return actors.student(plain_prompts(batch), self.config.group_size)


def plain_prompts(batch: QuestionBatch) -> list[Prompt]:
    """One plain prompt a question: the new ones, then the replayed ones."""
    return [plain_prompt(q) for q in (*batch.new, *(entry.question for entry in batch.replayed))]


def plain_prompt(question: Question) -> Prompt:
    return Prompt(uid=f"{question.id}/plain", question=question, messages=plain_messages(question))
