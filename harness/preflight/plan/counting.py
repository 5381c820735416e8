"""The tokens of one step of a method: its own `collect` and `credit` run on groups of the assumed lengths and rewards.

Nothing is sampled: a `~` in a text stands for some tokens (`unit_of`), and an id for as many. What a method asks of
the two models is counted as `harness.rollout.actors.LiveActors` counts it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from harness.config.schema import RunConfig
from harness.training.metrics import token_metrics
from harness.types import Prompt, Question, ReplayedQuestion, Rewrite, Rollout, RolloutGroup, Sampler, TrainingSample
from methods.base import Method

MARK = "~"
NUM_UNITS = 192
"""Ids at least of a response at its limit: so fine is the count."""


STEPS_PER_SECOND = {"vllm": 100.0, "transformers": 25.0, "server": 100.0}
"""What launching a step's kernels leaves: with CUDA graphs, and one by one from Python. Assumed, not measured."""
OF_OTHERS = 100.0
"""A limit for an engine of others, which is made to be fast."""


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What a plan cannot know. Tokens are means; 0 for a response is `rollout.max_response_tokens`, the paper's own."""

    response_tokens: int = 0
    prompt_tokens: int = 1024
    """Tokens of a plain prompt, its picture included."""
    accuracy: float = 0.5
    """Mean accuracy of the student. A question's own is spread about it: Beta(2a, 2 - 2a), even for 0.5."""
    teacher_accuracy: float = 0.7
    """Accuracy of every rollout of the teacher."""
    num_questions: int = 76_800
    """Questions of data whose size is known when they are read; the paper's pass of 200 steps with 384 each."""
    mfu: float = 0.35
    """Share of the GPU's bf16 peak in updates and in scoring."""
    bandwidth: float = 0.6
    """Share of its memory's bandwidth in decoding."""
    max_steps_per_second: float = 0.0
    """Tokens a second of one sequence at most, however small the model; 0: `STEPS_PER_SECOND` of the engine."""
    rollout_rate: float = 0.0
    """Student tokens a second on a GPU; 0: from the bandwidth."""
    run_sd: float = 1.0
    """Standard deviation of a run's accuracy over seeds, percentage points."""
    response_sd: float = 35.0
    """Of one response about its question's own accuracy, percentage points, at most 50."""


@dataclass(frozen=True, kw_only=True)
class StepCount:
    """Counts of one step: `tokens` as in metrics.jsonl, and what bounds its time and memory."""

    tokens: dict[str, float]
    num_student: int
    """Rollouts of the student."""
    num_teacher: int
    num_samples: int
    longest: int
    """Tokens of the longest sequence that is trained, with a prompt and a response at their limits."""


class _Stream(list[RolloutGroup]):
    """Groups that are there at once."""

    def list(self) -> list[RolloutGroup]:
        return [*self]


class CountingActors:
    """`harness.types.Actors` without models."""

    def __init__(self, config: RunConfig, assumed: Assumptions, seed: int = 0) -> None:
        limit = config.rollout.max_response_tokens
        self.unit = unit_of(limit)
        self.response = self._units(min(assumed.response_tokens or limit, limit))
        self.prompt = self._units(assumed.prompt_tokens)
        self.counts: Counter[str] = Counter()
        self.num_rollouts: Counter[str] = Counter()
        self._assumed = assumed
        self._rng = np.random.default_rng(seed)
        self._ease: dict[str, float] = {}

    def student(self, prompts: Iterable[Prompt], num_rollouts: int) -> _Stream:
        return _Stream(self._groups("student", prompts, num_rollouts))

    def teacher(self, prompts: Iterable[Prompt], num_rollouts: int) -> _Stream:
        return _Stream(self._groups("teacher", prompts, num_rollouts))

    def rewrite(
        self, prompts: Sequence[Prompt], *, tag: str, max_tokens: int, sample: bool = False, budget: int | None = None
    ) -> list[Rewrite]:
        """Every rewrite succeeds, at its limit."""
        for prompt in prompts:
            length = self._units(budget or max_tokens)
            self._count("teacher", prompt.messages[-1]["content"].count(MARK), [length])
        text = MARK * self._units(max_tokens)
        return [Rewrite(uid=p.uid, text=text, answer="1", same_answer=True, truncated=False) for p in prompts]

    def demonstrate(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[RolloutGroup]:
        """An answer of one id each; nothing is sampled."""
        return [self._group("teacher", prompt, [self._rollout("teacher", prompt, 0, 1, True)]) for prompt in prompts]

    def fits(self, prompts: Sequence[Prompt]) -> list[bool]:
        return [True] * len(prompts)

    def boxed(self, completion_ids: Sequence[int]) -> str | None:
        return None

    def are_right(self, answers: Sequence[tuple[Question, str]]) -> list[bool]:
        return [False] * len(answers)

    def count(self, name: str, value: float = 1.0) -> None:
        """Ignored: what a method counts, other than tokens, is not asked for."""

    def _units(self, num_tokens: int) -> int:
        return max(1, -(-num_tokens // self.unit))

    def _groups(self, sampler: Sampler, prompts: Iterable[Prompt], num_rollouts: int) -> Iterator[RolloutGroup]:
        for prompt in prompts:
            right = self._rng.random(num_rollouts) < self._chance(sampler, prompt.question)
            rollouts = [
                self._rollout(sampler, prompt, i, self.response, bool(is_right)) for i, is_right in enumerate(right)
            ]
            given = len(prompt.prefix_ids)
            sampled = [len(rollout.completion_ids) - given for rollout in rollouts]
            self._count(sampler, len(rollouts[0].prompt_ids) + given, sampled)
            yield self._group(sampler, prompt, rollouts)

    def _group(self, sampler: Sampler, prompt: Prompt, rollouts: list[Rollout]) -> RolloutGroup:
        self.num_rollouts[sampler] += len(rollouts)
        return RolloutGroup(uid=prompt.uid, prompt=prompt, rollouts=rollouts)

    def _rollout(self, sampler: Sampler, prompt: Prompt, index: int, length: int, is_right: bool) -> Rollout:
        length = max(length, len(prompt.prefix_ids) + 1)
        return Rollout(
            sampler=sampler,
            index=index,
            prompt_ids=[0] * (self.prompt + prompt.messages[-1]["content"].count(MARK)),
            completion_ids=[1] * length,
            rollout_logprobs=[0.0] * length,
            text=MARK * length,
            finish_reason="length",
            num_prefix=len(prompt.prefix_ids),
            answer=prompt.question.answer if is_right else f"wrong {index}",
            reward=float(is_right),
            verdict="correct" if is_right else "wrong",
        )

    def _chance(self, sampler: Sampler, question: Question) -> float:
        """A question is as easy in every group that asks it."""
        if sampler == "teacher":
            return self._assumed.teacher_accuracy
        mean = self._assumed.accuracy
        if question.id not in self._ease:
            self._ease[question.id] = mean if mean in (0.0, 1.0) else float(self._rng.beta(2 * mean, 2 - 2 * mean))
        return self._ease[question.id]

    def _count(self, sampler: str, num_prompt: int, lengths: Sequence[int]) -> None:
        self.counts[f"tokens/{sampler}_prompt"] += num_prompt * self.unit
        self.counts[f"tokens/{sampler}_generated"] += sum(lengths) * self.unit


@dataclass
class _Batch:
    new: Sequence[Question]
    replayed: Sequence[ReplayedQuestion]
    step: int = 1
    num_steps: int = 2

    def more(self, num_questions: int) -> list[Question]:
        return _questions("more", num_questions)


def count_step(method: Method, config: RunConfig, assumed: Assumptions) -> StepCount:
    """A step with a full replay buffer."""
    num_new = config.data.batch_size
    num_replayed = int(method.config.replay_ratio * num_new) if method.config.replay else 0
    replayed = [ReplayedQuestion(question=q, visits=0, entry_accuracy=0.0) for q in _questions("old", num_replayed)]
    actors = CountingActors(config, assumed)
    groups = method.collect(_Batch(_questions("new", num_new), replayed), actors, np.random.default_rng(0))
    samples = method.credit(groups)
    active = [sample for sample in samples if not sample.inert]
    trained = sum(len(sample.token_ids) for sample in active)
    rescored = _num_rescored(active, config.update.old_logprobs)
    scores = method.needs_teacher == "distribution"
    measured = token_metrics(samples, num_updated=trained, num_rescored=rescored, teacher_scores=scores)
    limit = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
    given = max((len(sample.token_ids) - actors.prompt - actors.response for sample in active), default=0)
    return StepCount(
        tokens={**actors.counts, **{name: value * actors.unit for name, value in measured.items()}},
        num_student=actors.num_rollouts["student"],
        num_teacher=actors.num_rollouts["teacher"],
        num_samples=len(samples),
        longest=limit + max(0, given) * actors.unit,
    )


def _num_rescored(samples: Sequence[TrainingSample], old_logprobs: str) -> int:
    """Read once more for their old log-probabilities: all that have advantages, or those that the engine gave none."""
    policy = [sample for sample in samples if sample.advantages is not None]
    again = [s for s in policy if old_logprobs == "recompute" or s.rollout_logprobs is None]
    return sum(len(sample.token_ids) for sample in again)


def _questions(name: str, number: int) -> list[Question]:
    return [Question(id=f"{name}/{i}", text="?", answer="1") for i in range(number)]


def unit_of(max_response_tokens: int) -> int:
    """Tokens of an id: 64 for the published limit of 12,288, 1 for what is short."""
    unit = 1
    while 2 * unit * NUM_UNITS <= max_response_tokens:
        unit *= 2
    return unit
