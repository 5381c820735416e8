"""MaxRL (arXiv 2602.02710): the advantage divides by the mean reward of the group, not by a deviation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from harness.types import RolloutGroup
from methods.base import (
    MethodConfig,
    PolicyGradientConfig,
    PolicyGradientMethod,
    sampled_by_student,
    training_rewards,
)


@dataclass(frozen=True, kw_only=True)
class MaxRLConfig(PolicyGradientConfig):
    advantage_normalization: Literal["none"] = "none"
    """MaxRL has its own; the inherited option would have no effect, so it has no other value."""


class MaxRL(PolicyGradientMethod):
    """GRPO whose advantage is (reward - mean) / mean within a group: hard questions weigh more (arXiv 2602.02710)."""

    Config: ClassVar[type[MethodConfig]] = MaxRLConfig

    def advantages(self, groups: Sequence[RolloutGroup]) -> list[list[float]]:
        """One list a group, one number a student rollout."""
        return [maxrl_advantages(training_rewards(sampled_by_student(group))) for group in groups]


def maxrl_advantages(rewards: Sequence[float]) -> list[float]:
    """(r - mean) / mean, all 0 where the mean is 0. Example: [1, 0, 0, 0] has mean 1/4 and gives [3, -1, -1, -1]."""
    mean = sum(rewards) / max(1, len(rewards))
    return [(reward - mean) / mean if mean else 0.0 for reward in rewards]
