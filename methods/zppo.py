"""ZPPO (Alg. 1, METHOD section 4): GRPO plus BCQ and NCQ groups on hard questions, with prompt replay.

The teacher writes only into prompts: every trained token was sampled by the current student.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from harness.types import Actors, Prompt, Question, QuestionBatch, Rewrite, Rollout, RolloutGroup
from methods.base import MethodConfig
from methods.policy import PolicyGradientConfig, PolicyGradientMethod
from methods.prompts import bcq_text, compress_text, ncq_text, response_text, user_turn
from methods.registry import register
from methods.samples import sampled_by_student, teacher_prompt

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class ZPPOConfig(PolicyGradientConfig):
    replay: bool = True
    teacher_group_size: int = 4
    """Fresh teacher rollouts a hard question (G_T)."""
    augment_ratio: float = 0.25
    """Cap on BCQ and NCQ prompts, relative to new questions (rho_aug)."""
    bcq: bool = True
    ncq: bool = True
    compress: bool = True
    """False shows traces as they are, without the teacher's rewriting."""
    compress_max_lines: int = 5
    compress_max_tokens: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("teacher_group_size", "compress_max_lines", "compress_max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"method.{name} must be at least 1, got {getattr(self, name)}")
        if self.augment_ratio <= 0 or not (self.bcq or self.ncq):
            raise ValueError("without BCQ and NCQ prompts zppo is GRPO: use method=grpo or method=grpo_replay")


@dataclass(frozen=True, kw_only=True)
class Reformulation:
    """A BCQ or NCQ prompt before its traces are compressed. `traces` are in the order of the candidates."""

    kind: Literal["bcq", "ncq"]
    question: Question
    traces: tuple[Rollout, ...]
    answers: tuple[str, ...] = ()
    """NCQ: the wrong boxed answers that the prompt lists."""

    def prompt(self, texts: Sequence[str]) -> Prompt:
        question = self.question
        text = bcq_text(question, texts) if self.kind == "bcq" else ncq_text(question, self.answers, texts)
        uid = f"{question.id}/{self.kind}"
        return Prompt(uid=uid, question=question, messages=user_turn(question, text), kind=self.kind)


@register("zppo")
class ZPPO(PolicyGradientMethod):
    """GRPO plus candidate prompts that the teacher writes (arXiv 2606.18216).

    `credit` and `loss` are GRPO's; plain, BCQ and NCQ groups are centred separately.
    """

    Config: ClassVar[type[MethodConfig]] = ZPPOConfig
    needs_teacher: ClassVar[Literal["none", "rollouts", "distribution"]] = "rollouts"

    def collect(self, batch: QuestionBatch, actors: Actors, rng: np.random.Generator) -> list[RolloutGroup]:
        plain = self.plain_groups(batch, actors).list()
        hard = [group for group in plain if group.accuracy < self.config.tau]
        teacher = self._teacher_groups(hard, actors)
        cap = math.floor(self.config.augment_ratio * len(batch.new) + 1e-9)  # 0.29 * 100 is 28.999999999999996
        walk = self.reformulations(hard, teacher, cap, rng)
        prompts = fill_slots(walk, cap, actors, self.config)
        augmented = actors.student(prompts, self.config.group_size).list() if prompts else []
        return [*plain, *teacher, *augmented]

    def _teacher_groups(self, hard: Sequence[RolloutGroup], actors: Actors) -> list[RolloutGroup]:
        """The teacher tries the hard questions; for NCQ alone it only compresses."""
        if not hard or not self.config.bcq:
            return []
        prompts = [teacher_prompt(group.prompt.question) for group in hard]
        return actors.teacher(prompts, self.config.teacher_group_size).list()

    def reformulations(
        self, hard: Sequence[RolloutGroup], teacher: Sequence[RolloutGroup], cap: int, rng: np.random.Generator
    ) -> list[Reformulation]:
        """Steps 3 and 4: what the first `cap` admissible questions by ascending accuracy admit, BCQ before NCQ.

        Ties are in random order. Questions that admit nothing are passed over and use no slot.
        """
        right = {group.prompt.question.id: group.correct("teacher") for group in teacher}
        shuffled = [hard[i] for i in rng.permutation(len(hard))]
        walk: list[Reformulation] = []
        num_kept = 0
        for group in sorted(shuffled, key=lambda g: g.accuracy):
            if num_kept == cap:
                break
            admitted = self._admitted(group, right.get(group.prompt.question.id, []), rng)
            walk += admitted
            num_kept += bool(admitted)
        return walk

    def _admitted(self, group: RolloutGroup, right: list[Rollout], rng: np.random.Generator) -> list[Reformulation]:
        question, wrong = group.prompt.question, group.wrong("student")
        admitted = []
        if self.config.bcq and right and wrong:
            pair = (right[rng.integers(len(right))], wrong[rng.integers(len(wrong))])
            traces = pair if rng.integers(2) else pair[::-1]
            admitted.append(Reformulation(kind="bcq", question=question, traces=traces))
        if self.config.ncq and wrong:
            boxed = ((rollout.answer or "").strip() for rollout in wrong)
            answers = tuple(dict.fromkeys(answer for answer in boxed if answer))
            admitted.append(Reformulation(kind="ncq", question=question, traces=tuple(wrong), answers=answers))
        return admitted

    def metrics(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """Eligibility before the cap as shares of all questions, and what BCQ, NCQ and the teacher got right."""
        students = [group for group in groups if sampled_by_student(group)]
        plain = [group for group in students if group.prompt.kind == "plain"]
        metrics: dict[str, float] = {}
        solved = {group.prompt.question.id for group in groups if group.correct("teacher")}
        hard = [group for group in plain if group.accuracy < self.config.tau and group.wrong("student")]
        if plain:
            metrics["precap/easy_frac"] = sum(g.accuracy >= self.config.tau for g in plain) / len(plain)
            num_bcq = sum(g.prompt.question.id in solved for g in hard)
            metrics["precap/bcq_frac"] = self.config.bcq * num_bcq / len(plain)
            metrics["precap/ncq_frac"] = self.config.ncq * len(hard) / len(plain)
        for kind in ("bcq", "ncq"):
            accuracies = [group.accuracy for group in students if group.prompt.kind == kind]
            metrics[f"{kind}/prompts"] = len(accuracies)
            if accuracies:
                metrics[f"{kind}/accuracy"] = sum(accuracies) / len(accuracies)
        rewards = [r.reward for group in groups for r in group.rollouts if r.sampler == "teacher"]
        if rewards:
            metrics["teacher/accuracy"] = sum(rewards) / len(rewards)
        return metrics


def fill_slots(walk: Sequence[Reformulation], cap: int, actors: Actors, config: ZPPOConfig) -> list[Prompt]:
    """Step 5: the first `cap` reformulations of the walk whose traces could be compressed, in its order.

    Works in waves: as many as there are open slots are compressed together; a failure frees its slot for the next wave.
    """
    compressor = Compressor(actors, config)
    prompts: list[Prompt] = []
    num_walked = 0
    while len(prompts) < cap and num_walked < len(walk):
        wave = walk[num_walked : num_walked + cap - len(prompts)]
        num_walked += len(wave)
        compressor.prepare(wave)
        for item in wave:
            texts = [compressor.text(item.question, trace) for trace in item.traces]
            kept = [text for text in texts if text is not None]
            if len(kept) == len(texts):
                prompts.append(item.prompt(kept))
            else:
                compressor.counts["skipped"] += 1
                actors.count(f"{item.kind}/skipped_rewrites", 1)
    compressor.report()
    return prompts


class Compressor:
    """The teacher's summaries of the traces of one step; each trace is compressed once."""

    OUTCOMES = ("accepted", "no_summary", "too_long", "other_answer", "redrawn", "skipped")

    def __init__(self, actors: Actors, config: ZPPOConfig) -> None:
        self._actors = actors
        self._config = config
        self._summaries: dict[str, str | None] = {}
        self.counts: Counter[str] = Counter()

    def prepare(self, wave: Sequence[Reformulation]) -> None:
        """Compress the wave's new traces: greedily, then once more by sampling where the result is not usable."""
        if not self._config.compress:
            return
        traces = {_trace_uid(item.question, trace): (item.question, trace) for item in wave for trace in item.traces}
        new = [self._rewrite_prompt(*pair) for uid, pair in traces.items() if uid not in self._summaries]
        failed = self._rewrite(new, sample=False)
        self.counts["redrawn"] += len(failed)
        for prompt in self._rewrite(failed, sample=True):
            self._summaries[prompt.uid] = None

    def text(self, question: Question, trace: Rollout) -> str | None:
        """What stands in the candidate block; None if the trace could not be compressed."""
        return self._summaries[_trace_uid(question, trace)] if self._config.compress else response_text(trace.text)

    def report(self) -> None:
        if self._config.compress:
            for outcome in self.OUTCOMES:
                self._actors.count(f"compress/{outcome}", self.counts[outcome])

    def _rewrite_prompt(self, question: Question, trace: Rollout) -> Prompt:
        config = self._config
        text = compress_text(trace.text, max_lines=config.compress_max_lines, max_tokens=config.compress_max_tokens)
        return Prompt(
            uid=_trace_uid(question, trace),
            # The teacher sees the response only: no question, image or gold answer.
            question=replace(question, text="", answer="", messages=(), images=(), video=None, metadata={}),
            messages=({"role": "user", "content": text},),
            kind="compress",
            reference=trace.text,
        )

    def _rewrite(self, prompts: Sequence[Prompt], *, sample: bool) -> list[Prompt]:
        """Keep the usable summaries and return the prompts of the others."""
        if not prompts:
            return []
        max_tokens = self._config.compress_max_tokens
        rewrites = self._actors.rewrite(prompts, tag="summary", max_tokens=max_tokens, sample=sample)
        failed = []
        for prompt, rewrite in zip(prompts, rewrites, strict=True):
            outcome = self._outcome(rewrite)
            self.counts[outcome] += 1
            if outcome == "accepted":
                self._summaries[prompt.uid] = rewrite.text
            else:
                failed.append(prompt)
        return failed

    def _outcome(self, rewrite: Rewrite) -> str:
        num_lines = sum(bool(line.strip()) for line in rewrite.text.splitlines())
        if rewrite.truncated or num_lines > self._config.compress_max_lines:
            return "too_long"
        if not rewrite.text.strip():
            return "no_summary"
        return "accepted" if rewrite.same_answer else "other_answer"


def _trace_uid(question: Question, trace: Rollout) -> str:
    return f"{question.id}/compress/{trace.sampler}/{trace.index}"
