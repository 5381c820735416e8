"""ZPPO (arXiv 2606.18216, Alg. 1): GRPO plus BCQ and NCQ groups on hard questions, with prompt replay.

The teacher writes only into prompts: every trained token was sampled by the current student.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveInt

from harness.types import Actors, Prompt, Question, QuestionBatch, Rewrite, RolloutGroup
from methods.contract import MethodConfig
from methods.hard import RewriteConfig, early_teacher_groups, fitting, hard_groups, num_slots, ranked, right_trace
from methods.keys import register
from methods.policy import PolicyGradientMethod
from methods.prompts import bcq_text, compress_text, ncq_text, response_text, user_turn
from methods.rewrites import ACCEPTED, Rewriter, Trace
from methods.samples import kind_metrics, sampled_by_student, teacher_metrics

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class ZPPOConfig(RewriteConfig):
    """Options of ZPPO and its ablations (Alg. 1)."""

    bcq: bool = True
    """Ask hard questions again as a BCQ, which shows one right teacher trace and one wrong student trace. `false`: the
    teacher samples nothing."""
    ncq: bool = True
    """Ask hard questions again as an NCQ, which lists the student's wrong answers and shows its wrong traces."""
    compress: bool = True
    """Let the teacher rewrite a trace as a summary before a prompt shows it (published). `false` shows the trace
    without its thinking tags."""
    compress_max_lines: PositiveInt = 5
    """Most lines of a summary, blank ones not counted, 1 or more (published: 5). A longer one is redrawn once, then
    given up."""
    compress_max_tokens: PositiveInt = 512
    """Most tokens of a summary, 1 or more (published: 512). A longer one is redrawn once, then given up. The request
    does not name the limit."""
    ncq_on_failed_rewrite: Literal["skip_prompt", "drop_trace"] = "skip_prompt"
    """What an NCQ does where a trace has no usable summary. `skip_prompt`: it is given up, and its slot is free;
    `drop_trace`: it shows the other traces, if any, and still lists all answers. Of 8 traces with 5% failures each,
    34% of the prompts are given up otherwise."""
    bcq_positive: Literal["right", "wrong"] = "right"
    """What a BCQ shows next to the wrong student trace. `right`: a right teacher trace (published); `wrong`: a second
    wrong trace, as a control on the same questions."""
    ncq_source: Literal["own", "foreign"] = "own"
    """Whose wrong answers and traces an NCQ shows. `own`: the question's own (published); `foreign`: those of another
    hard question of the step, as a control."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_rewrite_tokens("compress_max_tokens")
        if self.augment_ratio == 0 or not (self.bcq or self.ncq):
            raise ValueError("without BCQ and NCQ prompts zppo is GRPO: use method=grpo or method=grpo_replay")
        needs = (
            ("bcq_positive", "bcq"),
            ("ncq_source", "ncq"),
            *(("ncq_on_failed_rewrite", n) for n in ("ncq", "compress")),
            *((name, "compress") for name in ("compress_max_lines", "compress_max_tokens", "rewrite_tokens")),
        )
        for name, form in needs:
            if getattr(self, name) != getattr(type(self), name) and not getattr(self, form):
                raise ValueError(f"method.{name}={getattr(self, name)} needs method.{form}=true")


@dataclass(frozen=True, kw_only=True)
class Reformulation:
    """A BCQ or NCQ prompt before its traces are compressed.

    `shown` are the traces of its candidates, in their order; `positive` is the right one, which an NCQ does not show.
    `answers` are the wrong boxed answers that an NCQ lists.
    """

    kind: Literal["bcq", "ncq"]
    question: Question
    shown: tuple[Trace, ...]
    positive: Trace | None
    answers: tuple[str, ...] = ()

    @property
    def positive_position(self) -> int | None:
        """Where the right trace is shown; None where it is not."""
        return next((i for i, trace in enumerate(self.shown) if trace is self.positive), None)


@register("zppo")
class ZPPO(PolicyGradientMethod):
    """GRPO plus candidate prompts that the teacher writes (arXiv 2606.18216).

    `credit` and `loss` are GRPO's; plain, BCQ and NCQ groups are centred separately.
    """

    Config: ClassVar[type[MethodConfig]] = ZPPOConfig

    def __init__(self, config: ZPPOConfig) -> None:
        super().__init__(config)
        self.needs_teacher = "rollouts" if config.bcq or config.compress else "none"
        chosen = {"bcq": config.bcq, "ncq": config.ncq, "compress": config.compress}
        self.prompt_kinds = frozenset({"plain", *(kind for kind, is_chosen in chosen.items() if is_chosen)})

    def collect(self, batch: QuestionBatch, actors: Actors, rng: np.random.Generator) -> list[RolloutGroup]:
        stream = self.plain_groups(batch, actors)
        teacher: list[RolloutGroup] = []  # for NCQ alone it only compresses
        if self.config.bcq:
            teacher = early_teacher_groups(stream, self.config.tau, actors, self.config.teacher_group_size)
        plain = stream.list()
        hard = hard_groups(plain, self.config.tau)
        cap = num_slots(self.config.augment_ratio, batch)
        walk = self.reformulations(hard, teacher, cap, rng)
        prompts = fill_slots(walk, cap, actors, self.config)
        augmented = actors.student(prompts, self.config.group_size).list() if prompts else []
        return [*plain, *teacher, *augmented]

    def reformulations(
        self, hard: Sequence[RolloutGroup], teacher: Sequence[RolloutGroup], cap: int, rng: np.random.Generator
    ) -> list[Reformulation]:
        """Steps 3 and 4: what the first `cap` admissible questions by ascending accuracy admit, BCQ before NCQ.

        Questions that admit nothing are passed over and use no slot.
        """
        theirs = {group.prompt.question.id: group for group in teacher}
        walk: list[Reformulation] = []
        num_kept = 0
        for group in ranked(hard, rng):
            if num_kept == cap:
                break
            admitted = self._admitted(group, theirs.get(group.prompt.question.id), hard, rng)
            walk += admitted
            num_kept += bool(admitted)
        return walk

    def _admitted(
        self,
        group: RolloutGroup,
        teacher: RolloutGroup | None,
        hard: Sequence[RolloutGroup],
        rng: np.random.Generator,
    ) -> list[Reformulation]:
        question = group.prompt.question
        wrong = wrong_traces(group)
        right = None if teacher is None else right_trace(teacher, rng)
        positive = None if right is None else (question, right)
        admitted = []
        if positive is not None and teacher is not None and wrong:
            negative = wrong[rng.integers(len(wrong))]
            other: Trace | None = positive
            if self.config.bcq_positive == "wrong":
                other = second_wrong(teacher, wrong, negative, rng)
            if other is not None:
                shown = (other, negative) if rng.integers(2) else (negative, other)
                kept = positive if other is positive else None
                admitted.append(Reformulation(kind="bcq", question=question, shown=shown, positive=kept))
        listed = wrong if self.config.ncq_source == "own" else foreign_traces(question, hard, rng)
        if self.config.ncq and wrong and listed:
            boxed = ((rollout.answer or "").strip() for _, rollout in listed)
            answers = tuple(dict.fromkeys(answer for answer in boxed if answer))
            admitted.append(
                Reformulation(kind="ncq", question=question, shown=tuple(listed), positive=positive, answers=answers)
            )
        return admitted

    def metrics(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """Eligibility before the cap as shares of all questions, and what BCQ, NCQ and the teacher got right."""
        plain = [group for group in groups if group.prompt.kind == "plain" and sampled_by_student(group)]
        metrics: dict[str, float] = {}
        solved = {group.prompt.question.id for group in groups if group.correct("teacher")}
        hard = [group for group in hard_groups(plain, self.config.tau) if group.wrong("student")]
        if plain:
            metrics["precap/easy_frac"] = sum(g.accuracy >= self.config.tau for g in plain) / len(plain)
            num_bcq = sum(g.prompt.question.id in solved for g in hard)
            metrics["precap/bcq_frac"] = self.config.bcq * num_bcq / len(plain)
            metrics["precap/ncq_frac"] = self.config.ncq * len(hard) / len(plain)
        return metrics | kind_metrics(groups, "bcq", "ncq") | teacher_metrics(groups)


def wrong_traces(group: RolloutGroup) -> list[Trace]:
    """Those of the student that a prompt may call wrong."""
    return [(group.prompt.question, rollout) for rollout in group.wrong("student")]


def second_wrong(
    teacher: RolloutGroup, wrong: Sequence[Trace], negative: Trace, rng: np.random.Generator
) -> Trace | None:
    """Control: one of the teacher's wrong traces, else another one of the student's; None where there is neither."""
    theirs = [(teacher.prompt.question, rollout) for rollout in teacher.wrong("teacher")]
    others = theirs or [trace for trace in wrong if trace is not negative]
    return others[rng.integers(len(others))] if others else None


def foreign_traces(question: Question, hard: Sequence[RolloutGroup], rng: np.random.Generator) -> list[Trace]:
    """Control: the wrong traces of another hard question, drawn uniformly; none where there is no other.

    Traces that happen to give this question's answer are left out: the prompt says that all are wrong.
    """
    others = [traces for group in hard if group.prompt.question.id != question.id and (traces := wrong_traces(group))]
    if not others:
        return []
    answer = question.answer.strip()
    return [trace for trace in others[rng.integers(len(others))] if (trace[1].answer or "").strip() != answer]


def fill_slots(walk: Sequence[Reformulation], cap: int, actors: Actors, config: ZPPOConfig) -> list[Prompt]:
    """Step 5: the first `cap` reformulations of the walk whose traces could be compressed, in its order.

    Works in waves: as many as there are open slots are compressed together; a failure frees its slot for the next wave.
    """
    candidates = Candidates(actors, config)
    prompts: list[Prompt] = []
    num_walked = 0
    while len(prompts) < cap and num_walked < len(walk):
        wave = walk[num_walked : num_walked + cap - len(prompts)]
        num_walked += len(wave)
        candidates.prepare(wave)
        prompts += fitting([p for item in wave if (p := candidates.prompt(item)) is not None], actors)
    candidates.report()
    return prompts


class Candidates:
    """Turns reformulations into prompts, with the teacher's summaries of the traces where `compress` is set."""

    OUTCOMES = ("no_summary", "too_long", "other_answer")

    def __init__(self, actors: Actors, config: ZPPOConfig) -> None:
        self._actors = actors
        self._num_skipped = 0
        self._may_drop = config.ncq_on_failed_rewrite == "drop_trace"
        self._rewriter: Rewriter | None = None
        if config.compress:
            self._rewriter = Rewriter(
                actors,
                section="compress",
                kind="compress",
                tag="summary",
                max_tokens=config.compress_max_tokens,
                budget=config.rewrite_tokens,
                ask=partial(compress_text, max_lines=config.compress_max_lines),
                outcome=partial(summary_outcome, max_lines=config.compress_max_lines),
                outcomes=self.OUTCOMES,
            )

    def prepare(self, wave: Sequence[Reformulation]) -> None:
        if self._rewriter is not None:
            self._rewriter.prepare([trace for item in wave for trace in item.shown])

    def prompt(self, item: Reformulation) -> Prompt | None:
        """None, counted, where a trace that it needs could not be compressed."""
        candidates = [(trace, self._candidate(trace)) for trace in item.shown]
        kept = [(trace, candidate) for trace, candidate in candidates if candidate is not None]
        num_failed = len(candidates) - len(kept)
        if num_failed and not (kept and self._may_drop and item.kind == "ncq"):
            self._num_skipped += 1
            self._actors.count(f"{item.kind}/skipped_rewrites")
            return None
        if num_failed:
            self._actors.count("ncq/dropped_traces", num_failed)
        question, texts = item.question, [text for _, (text, _) in kept]
        text = bcq_text(question, texts) if item.kind == "bcq" else ncq_text(question, item.answers, texts)
        negatives = [answer for trace, (_, answer) in kept if trace is not item.positive]
        return Prompt(
            uid=f"{question.id}/{item.kind}",
            question=question,
            messages=user_turn(question, text),
            kind=item.kind,
            positive_answer=self._positive_answer(item),
            positive_position=item.positive_position,
            negative_answers=tuple(dict.fromkeys(answer for answer in (*item.answers, *negatives) if answer)),
        )

    def report(self) -> None:
        if self._rewriter is not None:
            self._rewriter.report()
            self._actors.count("compress/skipped", self._num_skipped)

    def _candidate(self, trace: Trace) -> tuple[str, str | None] | None:
        """What stands in a candidate's block, and its boxed answer."""
        if self._rewriter is None:
            return response_text(trace[1].text), trace[1].answer
        summary = self._rewriter.get(trace)
        return None if summary is None else (summary.text, summary.answer)

    def _positive_answer(self, item: Reformulation) -> str | None:
        """The boxed answer of the compressed right trace. For an NCQ it is there if the question's BCQ asked for it."""
        candidate = None if item.positive is None else self._candidate(item.positive)
        return None if candidate is None else candidate[1]


def summary_outcome(prompt: Prompt, rewrite: Rewrite, *, max_lines: int) -> str:
    """`accepted`, or why a rewrite is no summary: over a cap, empty, or without the answer as its end."""
    num_lines = sum(bool(line.strip()) for line in rewrite.text.splitlines())
    if rewrite.truncated or num_lines > max_lines:
        return "too_long"
    if not rewrite.text.strip():
        return "no_summary"
    ends_with_answer = rewrite.answer is None or rewrite.ends_with_box  # a trace may have no answer to keep
    return ACCEPTED if rewrite.same_answer and ends_with_answer else "other_answer"
