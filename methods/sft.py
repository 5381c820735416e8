"""Supervised training on the gold answers: a cold start that teaches the box, without any rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from harness.types import (
    Actors,
    LossOutput,
    QuestionBatch,
    RolloutGroup,
    Sampler,
    TeacherDistribution,
    TokenBatch,
    TrainingSample,
)
from methods.contract import Method, MethodConfig, plain_prompts
from methods.keys import register
from methods.losses import cross_entropy_loss, entropy_sum
from methods.samples import rollout_sample

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True, kw_only=True)
class SFTConfig(MethodConfig):
    """Options of the supervised training on gold answers. It samples nothing, so `replay` has to be `false`."""

    template: str = "\\boxed{{answer}}"
    """The response that is trained. `{answer}` stands for the gold answer, every other brace for itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if "{answer}" not in self.template:
            raise ValueError(f"method.template must contain {{answer}}, got {self.template!r}")
        if self.replay:
            raise ValueError("method.replay needs the student's rollouts, and sft samples none: set replay=false")


@register("sft")
class SFT(Method):
    """Cross-entropy on the gold answer of every question: a cold start, no rollouts."""

    Config: ClassVar[type[MethodConfig]] = SFTConfig
    trained_samplers: ClassVar[frozenset[Sampler]] = frozenset({"teacher"})

    def collect(self, batch: QuestionBatch, actors: Actors, rng: np.random.Generator) -> list[RolloutGroup]:
        prompts = plain_prompts(batch)
        texts = [self.config.template.replace("{answer}", prompt.question.answer) for prompt in prompts]
        return actors.demonstrate(prompts, texts)

    def credit(self, groups: Sequence[RolloutGroup]) -> list[TrainingSample]:
        return [rollout_sample(group.uid, rollout) for group in groups for rollout in group.rollouts]

    def loss(self, logits_NV: torch.Tensor, batch: TokenBatch, teacher: TeacherDistribution | None) -> LossOutput:
        loss_N = cross_entropy_loss(logits_NV, batch.ids_N)
        return LossOutput(loss_N=loss_N, sums={"entropy": entropy_sum(logits_NV)})
