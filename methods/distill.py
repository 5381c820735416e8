"""Distillation: per-token JSD between student and teacher (arXiv 2606.18216, Algs. 2 and 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveInt

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
from methods.contract import Method, MethodConfig, TeacherUse, plain_prompts
from methods.keys import register
from methods.losses import entropy_sum, jsd_loss, jsd_topk_loss
from methods.options import Share
from methods.samples import rollout_sample, sampled_by_student, teacher_metrics, teacher_prompt

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True, kw_only=True)
class DistillConfig(MethodConfig):
    """Options of the methods with a divergence to the teacher for each token (Algs. 2 and 3)."""

    jsd_beta: Share = 0.5
    """Share of the teacher in the mixture of the JSD, from 0 to 1; the paper names none. 0 is the forward KL(teacher ||
    student), 1 the reverse KL(student || teacher)."""


@dataclass(frozen=True, kw_only=True)
class OffPolicyKDConfig(DistillConfig):
    """Options of the distillation on the teacher's own rollouts (Alg. 2)."""

    teacher_group_size: PositiveInt = 4
    """Fresh teacher rollouts of every prompt in every step (G_T, published: 4)."""


def distillation_loss(student_logits_NV: torch.Tensor, teacher: TeacherDistribution, beta: float) -> torch.Tensor:
    """JSD of each token [N], in nats: `jsd_loss`, or `jsd_topk_loss` where the teacher's distribution is partial."""
    if teacher.is_partial:
        return jsd_topk_loss(student_logits_NV, teacher.topk_ids_NK, teacher.topk_logprobs_NK, beta)
    return jsd_loss(student_logits_NV, teacher.logits_NV, beta)


class DistillationMethod(Method):
    """Per-token JSD to the teacher on whatever `credit` trains."""

    Config: ClassVar[type[MethodConfig]] = DistillConfig
    needs_teacher: TeacherUse = "distribution"

    def logit_temperature(self, sampling: float) -> float:
        """The divergence is one of the models' own distributions, however boldly they sample."""
        return 1.0

    def loss(self, logits_NV: torch.Tensor, batch: TokenBatch, teacher: TeacherDistribution | None) -> LossOutput:
        assert teacher is not None, "the trainer gives the teacher's distribution to methods that need it"
        loss_N = distillation_loss(logits_NV, teacher, self.config.jsd_beta)
        return LossOutput(loss_N=loss_N, sums={"entropy": entropy_sum(logits_NV)})


@register("on_policy_kd")
class OnPolicyKD(DistillationMethod):
    """JSD to the teacher on the student's own rollouts, token mean (On-Distill, Alg. 3)."""

    def credit(self, groups: Sequence[RolloutGroup]) -> list[TrainingSample]:
        return [rollout_sample(group.uid, rollout) for group in groups for rollout in sampled_by_student(group)]


@register("off_policy_kd")
class OffPolicyKD(DistillationMethod):
    """JSD to the teacher on the teacher's right rollouts (Off-Distill, Alg. 2).

    The student's rollouts are for the records and the buffer.
    """

    Config: ClassVar[type[MethodConfig]] = OffPolicyKDConfig
    trained_samplers: ClassVar[frozenset[Sampler]] = frozenset({"teacher"})

    def collect(self, batch: QuestionBatch, actors: Actors, rng: np.random.Generator) -> list[RolloutGroup]:
        """Plain student groups, then a teacher group a question; both are started before either is waited for."""
        student = self.plain_groups(batch, actors)
        prompts = [teacher_prompt(prompt.question) for prompt in plain_prompts(batch)]
        teacher = actors.teacher(prompts, self.config.teacher_group_size)
        return [*student.list(), *teacher.list()]

    def is_trained(self, group: RolloutGroup) -> bool:
        return bool(group.correct("teacher"))

    def credit(self, groups: Sequence[RolloutGroup]) -> list[TrainingSample]:
        """Right teacher rollouts. Of N_x traces of a question, one of length L weighs 1 / (L N_x) a token; its norm
        is 1 / N_x. So the loss is a mean over tokens, then over a question's right traces, then over the questions that
        have one.
        """
        samples = []
        for group in groups:
            traces = [rollout_sample(group.uid, rollout) for rollout in group.correct("teacher")]
            for sample in traces:
                weight = 1.0 / (max(sample.num_trained, 1) * len(traces))
                sample.weights = [weight * trained for trained in sample.loss_mask]
                sample.norm = 1.0 / len(traces)
            samples += traces
        return samples

    def metrics(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        return teacher_metrics(groups)
