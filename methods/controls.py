"""Control arms: what is left of a method's gain when its idea is taken out and its cost or its form is kept."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from harness.types import Actors, QuestionBatch, RolloutGroup
from methods.contract import MethodConfig
from methods.hard import AugmentConfig, hard_groups, num_slots, ranked
from methods.keys import register
from methods.options import Share
from methods.policy import PolicyGradientConfig, PolicyGradientMethod
from methods.samples import kind_metrics

if TYPE_CHECKING:
    import numpy as np


@register("grpo_equal_tokens")
class EqualTokens(PolicyGradientMethod):
    """GRPO with replay and as many further groups on the hard questions as ZPPO's extra rollouts cost.

    ZPPO spends G_T teacher rollouts on each hard question and G_S rollouts on each BCQ and NCQ prompt, two a hard
    question up to the cap. The same number, rounded up to complete groups, goes to the same questions again, in ZPPO's
    order, on their plain prompts. A teacher's rollout counts as one of the student's; rewrites are not counted.
    """

    Config: ClassVar[type[MethodConfig]] = AugmentConfig
    prompt_kinds = frozenset({"plain", "extra"})

    def collect(self, batch: QuestionBatch, actors: Actors, rng: np.random.Generator) -> list[RolloutGroup]:
        plain = self.plain_groups(batch, actors).list()
        hard = ranked(hard_groups(plain, self.config.tau), rng)
        num_groups = self.extra_groups(len(hard), num_slots(self.config.augment_ratio, batch))
        prompts = [
            replace(group.prompt, uid=f"{group.prompt.question.id}/extra/{i // len(hard)}", kind="extra")
            for i, group in enumerate(itertools.islice(itertools.cycle(hard), num_groups))
        ]
        extra = actors.student(prompts, self.config.group_size).list() if prompts else []
        return [*plain, *extra]

    def metrics(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        return kind_metrics(groups, "extra")

    def extra_groups(self, num_hard: int, cap: int) -> int:
        """ceil((G_T hard + G_S min(cap, 2 hard)) / G_S). Example: 6 hard, cap 3, G_S 8, G_T 4: (24 + 24) / 8 = 6."""
        size = self.config.group_size
        rollouts = self.config.teacher_group_size * num_hard + size * min(cap, 2 * num_hard)
        return -(-rollouts // size)


@dataclass(frozen=True, kw_only=True)
class RandomRewardConfig(PolicyGradientConfig):
    """Options of the control whose training rewards are coin flips."""

    reward_probability: Share = 0.5
    """Chance that a rollout gets the training reward 1, from 0 to 1. It gets 0 otherwise."""


@register("grpo_random_reward")
class RandomReward(PolicyGradientMethod):
    """GRPO whose training rewards are coin flips; what it reports, and the buffer, keep the graded ones."""

    Config: ClassVar[type[MethodConfig]] = RandomRewardConfig

    def collect(self, batch: QuestionBatch, actors: Actors, rng: np.random.Generator) -> list[RolloutGroup]:
        groups = super().collect(batch, actors, rng)
        for group in groups:
            for rollout in group.rollouts:
                rollout.training_reward = float(rng.random() < self.config.reward_probability)
        return groups
