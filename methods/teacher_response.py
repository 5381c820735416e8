"""GRPO with a teacher's response in the group: the drifting baseline of the paper's project page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from harness.types import Actors, QuestionBatch, Rollout, RolloutGroup, Sampler
from methods.contract import MethodConfig, TeacherUse
from methods.hard import TeacherAidedConfig, early_teacher_groups, hard_groups, right_trace
from methods.keys import register
from methods.policy import PolicyGradientMethod
from methods.samples import sampled_by_student, teacher_metrics

if TYPE_CHECKING:
    import numpy as np


@register("grpo_teacher_response")
class TeacherResponse(PolicyGradientMethod):
    """GRPO where a right teacher response joins the group of a hard question as if it were the student's.

    It is one member more (G_S + 1). Its old log-probabilities are the student's own, computed before the first update.
    """

    Config: ClassVar[type[MethodConfig]] = TeacherAidedConfig
    needs_teacher: TeacherUse = "rollouts"
    trained_samplers: ClassVar[frozenset[Sampler]] = frozenset({"student", "teacher"})

    def collect(self, batch: QuestionBatch, actors: Actors, rng: np.random.Generator) -> list[RolloutGroup]:
        stream = self.plain_groups(batch, actors)
        teacher = early_teacher_groups(stream, self.config.tau, actors, self.config.teacher_group_size)
        plain = stream.list()
        for group, theirs in zip(hard_groups(plain, self.config.tau), teacher, strict=True):
            trace = right_trace(theirs, rng)
            if trace is not None:
                group.rollouts.append(replace(trace, index=len(group.rollouts)))
        return [*plain, *teacher]

    def members(self, group: RolloutGroup) -> list[Rollout]:
        """The teacher's response too where it has joined."""
        return group.rollouts if sampled_by_student(group) else []

    def metrics(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        num_joined = sum(bool(sampled_by_student(g)) and bool(g.correct("teacher")) for g in groups)
        return {"teacher/joined": float(num_joined)} | teacher_metrics(groups)
