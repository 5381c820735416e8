"""Steps between rollouts and training samples that the methods share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from harness.types import Prompt, PromptKind, Question, Rollout, RolloutGroup, TrainingSample
from methods.contract import plain_prompt


def rollout_sample(uid: str, rollout: Rollout, *, advantage: float | None = None) -> TrainingSample:
    """One sequence that trains the completion tokens after the prefix, each with the same advantage.

    The engine's log-probabilities are kept only if the student sampled: a teacher's are no log-probabilities of the
    policy. A sample with advantage 0, or without a trained token, is inert.

    Example: prompt [5, 6] and completion [7, 8, 2] with `num_prefix` 1 and advantage 1.5 give

        token_ids [5, 6, 7, 8, 2], loss_mask [0, 0, 0, 1, 1], advantages [0, 0, 0, 1.5, 1.5]
    """
    num_given = len(rollout.prompt_ids) + rollout.num_prefix
    num_trained = len(rollout.completion_ids) - rollout.num_prefix
    logprobs = [0.0] * len(rollout.prompt_ids) + list(rollout.rollout_logprobs)
    return TrainingSample(
        uid=uid,
        token_ids=[*rollout.prompt_ids, *rollout.completion_ids],
        loss_mask=[0] * num_given + [1] * num_trained,
        advantages=None if advantage is None else [0.0] * num_given + [advantage] * num_trained,
        rollout_logprobs=logprobs if rollout.sampler == "student" else None,
        inert=advantage == 0.0 or num_trained == 0,
        rollout=rollout,
    )


def sampled_by_student(group: RolloutGroup) -> list[Rollout]:
    return [rollout for rollout in group.rollouts if rollout.sampler == "student"]


def teacher_prompt(question: Question) -> Prompt:
    """The plain prompt under a name of its own, for the teacher's rollouts."""
    return replace(plain_prompt(question), uid=f"{question.id}/teacher")


def teacher_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Accuracy of the teacher's own groups; empty where it has none."""
    own = [group for group in groups if group.rollouts and not sampled_by_student(group)]
    rewards = [rollout.reward for group in own for rollout in group.rollouts if rollout.is_graded]
    return {"teacher/accuracy": sum(rewards) / len(rewards)} if rewards else {}


def kind_metrics(groups: Sequence[RolloutGroup], *kinds: PromptKind) -> dict[str, float]:
    """How many groups the student sampled of each kind of prompt, and their mean accuracy where it is known."""
    metrics: dict[str, float] = {}
    for kind in kinds:
        accuracies = [g.accuracy for g in groups if g.prompt.kind == kind and sampled_by_student(g)]
        metrics[f"{kind}/prompts"] = len(accuracies)
        known = [accuracy for accuracy in accuracies if not math.isnan(accuracy)]
        if known:
            metrics[f"{kind}/accuracy"] = sum(known) / len(known)
    return metrics
