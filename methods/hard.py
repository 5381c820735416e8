"""Hard questions (Sec. 3.2): which they are, in which order they are helped, what the teacher does on them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveInt

from harness.types import Actors, GroupStream, Prompt, PromptKind, QuestionBatch, Rollout, RolloutGroup
from methods.contract import MethodConfig, TeacherUse
from methods.options import Share
from methods.policy import PolicyGradientConfig, PolicyGradientMethod
from methods.rewrites import Trace
from methods.samples import kind_metrics, teacher_metrics, teacher_prompt

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class TeacherAidedConfig(PolicyGradientConfig):
    """Options of the methods that ask the teacher about hard questions."""

    replay: bool = True
    teacher_group_size: PositiveInt = 4
    """Fresh teacher rollouts of a hard question in each step that meets it (G_T, published: 4)."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(TeacherAidedConfig):
    """Options of the methods that give hard questions further prompts."""

    augment_ratio: Share = 0.25
    """Most questions that get further prompts, and most BCQ and NCQ prompts, relative to new questions (rho_aug,
    published: 0.25). From 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class RewriteConfig(AugmentConfig):
    """Options of the methods whose prompts show what the teacher has rewritten."""

    rewrite_tokens: int | None = None
    """Most tokens of a reply in which the teacher rewrites a trace, thinking included; the text between the tags keeps
    its own limit. `null` is that limit and 16 for the tags, which leaves a teacher that thinks no room."""

    def check_rewrite_tokens(self, limit: str) -> None:
        """Raises ValueError where a reply could not hold the text that the option `limit` allows."""
        if self.rewrite_tokens is not None and self.rewrite_tokens < getattr(self, limit):
            raise ValueError(
                f"method.rewrite_tokens={self.rewrite_tokens} is less than method.{limit}={getattr(self, limit)}, "
                "which is a part of it: raise it, or lower the other"
            )


@dataclass(frozen=True, kw_only=True)
class GuidedConfig(AugmentConfig):
    """Options of the methods whose further prompts are led by one right teacher trace."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment_ratio == 0:
            raise ValueError("method.augment_ratio=0 leaves plain groups alone: use method=grpo_replay")


class GuidedMethod(PolicyGradientMethod):
    """Plain groups, and a group each on prompts that one right teacher trace leads (Algs. 5 and 6).

    Only the first rho_aug N hard questions by ascending accuracy are kept; the teacher is asked about those alone. A
    question that it fails gets no further prompt, and its place goes to nobody. A subclass words the prompts.
    """

    Config: ClassVar[type[MethodConfig]] = GuidedConfig
    needs_teacher: TeacherUse = "rollouts"
    kind: ClassVar[PromptKind]

    def collect(self, batch: QuestionBatch, actors: Actors, rng: np.random.Generator) -> list[RolloutGroup]:
        plain = self.plain_groups(batch, actors).list()
        kept = ranked(hard_groups(plain, self.config.tau), rng)[: num_slots(self.config.augment_ratio, batch)]
        teacher = teacher_groups(kept, actors, self.config.teacher_group_size)
        drawn = [right_trace(g, rng, usable=partial(self.is_usable, actors=actors)) for g in teacher]
        traces = [(g.prompt.question, t) for g, t in zip(teacher, drawn, strict=True) if t is not None]
        prompts = fitting(self.prompts(traces, actors), actors)
        guided = actors.student(prompts, self.config.group_size).list() if prompts else []
        return [*plain, *teacher, *guided]

    def is_usable(self, trace: Rollout, actors: Actors) -> bool:
        """Whether a right trace may lead a prompt; another one is drawn in its place. Asked once of each."""
        return True

    @abstractmethod
    def prompts(self, traces: Sequence[Trace], actors: Actors) -> list[Prompt]:
        """Prompts from questions with one right teacher trace each; fewer where a trace is of no use."""

    def metrics(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        return kind_metrics(groups, self.kind) | teacher_metrics(groups)


def hard_groups(plain: Sequence[RolloutGroup], tau: float) -> list[RolloutGroup]:
    """The plain groups whose accuracy is below `tau`; none whose accuracy is not known (NaN)."""
    return [group for group in plain if group.accuracy < tau]


def ranked(hard: Sequence[RolloutGroup], rng: np.random.Generator) -> list[RolloutGroup]:
    """By ascending accuracy, ties in random order."""
    shuffled = [hard[i] for i in rng.permutation(len(hard))]
    return sorted(shuffled, key=lambda group: group.accuracy)


def num_slots(ratio: float, batch: QuestionBatch) -> int:
    """floor(ratio * new questions)."""
    return math.floor(ratio * len(batch.new) + 1e-9)  # 0.29 * 100 is 28.999999999999996


def teacher_groups(hard: Sequence[RolloutGroup], actors: Actors, num_rollouts: int) -> list[RolloutGroup]:
    """Fresh teacher rollouts on the plain prompts of hard questions, in their order."""
    prompts = [teacher_prompt(group.prompt.question) for group in hard]
    return actors.teacher(prompts, num_rollouts).list() if prompts else []


def early_teacher_groups(plain: GroupStream, tau: float, actors: Actors, num_rollouts: int) -> list[RolloutGroup]:
    """`teacher_groups` of the plain groups below `tau`, each asked for as soon as it is known that it is one."""
    stream = actors.teacher((teacher_prompt(g.prompt.question) for g in plain if g.accuracy < tau), num_rollouts)
    order = {group.prompt.question.id: position for position, group in enumerate(plain.list())}
    return sorted(stream.list(), key=lambda group: order[group.prompt.question.id])


def right_trace(
    group: RolloutGroup, rng: np.random.Generator, usable: Callable[[Rollout], bool] = lambda _: True
) -> Rollout | None:
    """One of the teacher's right and usable rollouts, uniformly; None where it has none."""
    right = [rollout for rollout in group.correct("teacher") if usable(rollout)]
    return right[rng.integers(len(right))] if right else None


def fitting(prompts: Sequence[Prompt], actors: Actors) -> list[Prompt]:
    """The prompts that fit into the student's context window; the others are counted as `<kind>/over_window`."""
    kept = []
    for prompt, fits in zip(prompts, actors.fits(prompts), strict=True):
        if fits:
            kept.append(prompt)
        else:
            actors.count(f"{prompt.kind}/over_window")
    return kept
