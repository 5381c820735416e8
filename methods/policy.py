"""Policy-gradient methods: group advantages and the clipped surrogate (arXiv 2606.18216, Eqs. 1-6 and App. C)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from harness.types import (
    LossOutput,
    Rollout,
    RolloutGroup,
    TeacherDistribution,
    TokenBatch,
    TrainingSample,
    comparable,
)
from methods.advantages import Normalization, group_advantages
from methods.contract import Method, MethodConfig, MethodError
from methods.losses import policy_gradient_loss
from methods.samples import rollout_sample, sampled_by_student

if TYPE_CHECKING:
    import torch


AdvantageScope = Literal["step", "mini_batch"]


@dataclass(frozen=True, kw_only=True)
class PolicyGradientConfig(MethodConfig):
    """Options of the methods with group advantages and the clipped surrogate (Eqs. 1 to 6)."""

    updates_per_step: int = 4
    clip_ratio_low: NonNegativeFloat = 0.20
    """The ratio of new to old probability is clipped below at 1 minus this, 0 or more (published: 0.20)."""
    clip_ratio_high: NonNegativeFloat = 0.28
    """The ratio of new to old probability is clipped above at 1 plus this, 0 or more (published: 0.28)."""
    dual_clip: Annotated[float, Field(gt=1)] = 10.0
    """Bound for tokens with a negative advantage A, above 1: the surrogate is never below `dual_clip * A` (published:
    10.0)."""
    advantage_normalization: Normalization = "nontrivial"
    """Which groups the deviation of advantages is taken over (Eqs. 3 to 6). `nontrivial`: those whose rewards differ
    (published); `all`: every group; `group`: each for itself; `none`: no division."""
    advantage_scope: AdvantageScope = "step"
    """Over which groups advantages are normalised together. `step`: those of the rollout step (Alg. 1, line 18);
    `mini_batch`: those of the same mini-batch (the paper's appendix C)."""
    importance_cap: float | None = None
    """Multiply each token's loss by min(cap, exp(old - rollout log-probability)), for an engine whose log-probabilities
    differ from the trainer's. At least 1; needs `update.old_logprobs=recompute`. `null` is off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size < 2:
            raise ValueError("method.group_size must be at least 2: the advantage of a single rollout is always 0")
        if self.importance_cap is not None and not self.importance_cap >= 1:
            raise ValueError(
                f"method.importance_cap must be at least 1, got {self.importance_cap}: it bounds the weight of a "
                "token's loss, which is 1 where engine and trainer agree"
            )


class PolicyGradientMethod(Method):
    """Trains every token that the student sampled; a subclass decides in `collect` what is sampled."""

    Config: ClassVar[type[MethodConfig]] = PolicyGradientConfig

    def credit(self, groups: Sequence[RolloutGroup]) -> list[TrainingSample]:
        """One sample a rollout of `members`, advantages by Eqs. 1-6 over the groups of each scope.

        Rollouts without a verdict are kept from `advantages`, and groups where too few have one. Their advantage is 0,
        and their tokens stay in the denominator.
        """
        parts = [self._graded_part(group) for group in groups]
        compared = {number: part for number, part in enumerate(parts) if part is not None}
        given: dict[int, list[float]] = {}
        for scope in self._scopes(compared):
            advantages = self.advantages(list(scope.values()))
            self._check_lengths(advantages, [len(self.members(part)) for part in scope.values()])
            given |= dict(zip(scope, advantages, strict=True))
        samples = []
        for number, group in enumerate(groups):
            values = iter(given[number]) if number in given else None
            for rollout in self.members(group):
                advantage = next(values) if values is not None and rollout.is_graded else 0.0
                samples.append(rollout_sample(group.uid, rollout, advantage=advantage))
        return samples

    def members(self, group: RolloutGroup) -> list[Rollout]:
        """The rollouts of a group that are centred together and trained: the student's."""
        return sampled_by_student(group)

    def is_trained(self, group: RolloutGroup) -> bool:
        return bool(self.members(group))

    def _scopes(self, groups: Mapping[int, RolloutGroup]) -> list[dict[int, RolloutGroup]]:
        """The groups of each call of `advantages`, by their number in the step.

        Those that are in no mini-batch are in every scope, since a method may look at them. Before groups are dealt,
        the step is the scope.
        """
        batches = sorted({group.mini_batch for group in groups.values() if group.mini_batch is not None})
        if self.config.advantage_scope == "step" or not batches:
            return [dict(groups)]
        return [
            {number: group for number, group in groups.items() if group.mini_batch in (None, batch)}
            for batch in batches
        ]

    def _graded_part(self, group: RolloutGroup) -> RolloutGroup | None:
        """The group without what has no verdict; None where too few members are left."""
        members = self.members(group)
        if members and not comparable(members):
            return None
        graded = [rollout for rollout in group.rollouts if rollout.is_graded]
        return group if len(graded) == len(group.rollouts) else replace(group, rollouts=graded)

    def _check_lengths(self, given: Sequence[Sequence[float]], sizes: Sequence[int]) -> None:
        """A subclass gives one list a group and one number a rollout. Raises MethodError where it does not."""
        name = f"{type(self).__module__}:{type(self).__name__}.advantages"
        if len(given) != len(sizes):
            raise MethodError(f"{name} gives {len(given)} lists for {len(sizes)} groups: give one list a group")
        for number, (advantages, size) in enumerate(zip(given, sizes, strict=True)):
            if len(advantages) != size:
                raise MethodError(
                    f"{name} gives {len(advantages)} numbers for the {size} rollouts of group {number}: "
                    "give one number a rollout"
                )

    def advantages(self, groups: Sequence[RolloutGroup]) -> list[list[float]]:
        """Advantages of the members of each group of a scope, in their order. All rollouts of the groups are graded."""
        return self.normalized([training_rewards(self.members(group)) for group in groups])

    def normalized(self, rewards: Sequence[Sequence[float]]) -> list[list[float]]:
        """Advantages from rewards, one list a group, by `advantage_normalization`."""
        return group_advantages(rewards, self.config.advantage_normalization)

    def loss(self, logits_NV: torch.Tensor, batch: TokenBatch, teacher: TeacherDistribution | None) -> LossOutput:
        loss_N, sums = policy_gradient_loss(
            logits_NV,
            batch.ids_N,
            batch.advantages_N,
            batch.old_logprobs_N,
            clip_ratio_low=self.config.clip_ratio_low,
            clip_ratio_high=self.config.clip_ratio_high,
            dual_clip=self.config.dual_clip,
            rollout_logprobs_N=batch.rollout_logprobs_N,
            importance_cap=self.config.importance_cap,
        )
        return LossOutput(loss_N=loss_N, sums=sums)


def training_rewards(rollouts: Sequence[Rollout]) -> list[float]:
    """The graded rewards, or what a method put in their place."""
    return [r.reward if r.training_reward is None else r.training_reward for r in rollouts]
