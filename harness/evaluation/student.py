"""The live student under the one protocol: prompts to its engine, responses to the store, and their marks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.config.schema import EvalConfig
from harness.errors import UserError
from harness.evaluation.benchmarks.recipe import Mark
from harness.evaluation.media import MediaDigests
from harness.evaluation.protocol import UNKNOWN, Setup, answered_by, eval_sampling
from harness.evaluation.store import Sample, SampleStore, sample_key
from harness.evaluation.suites import Benchmark
from harness.rewards.rules import Grade
from harness.rollout.base import RolloutEngine
from harness.types import Prompt, Rollout, RolloutGroup
from methods.prompts import plain_messages

if TYPE_CHECKING:
    from harness.rewards.workers import Grader

logger = logging.getLogger(__name__)

REPORT_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Response:
    """One prompt with its sample and what the rule says about it."""

    benchmark: Benchmark
    prompt: Prompt
    sample: Sample
    grade: Grade
    mark: Mark


Responses = dict[str, Response]
"""By the prompt's uid, in the order of the requests."""


class Respondent:
    """Answers the questions of benchmarks and marks the answers: `responses` has both.

    Every response goes to the store as it comes, and what is there already is not asked again. Without an `engine` the
    store has to have all.
    """

    def __init__(
        self,
        engine: RolloutEngine | None,
        grader: Grader,
        config: EvalConfig,
        benchmarks: Sequence[Benchmark],
        *,
        store: SampleStore,
        identity: str,
        setup: Setup = UNKNOWN,
    ) -> None:
        self.config = config
        self.responses: Responses = {}
        self.digests = MediaDigests()
        self._engine = engine
        self._grader = grader
        self._store = store
        self._identity = identity
        self._answered = answered_by(setup, grader.config.grader)
        self._sampling = eval_sampling(config)
        self._progress = Progress(config.num_samples * sum(len(b.questions) for b in benchmarks))

    def answer(self, benchmark: Benchmark) -> None:
        """Answer every question of a benchmark. All prompts that are not in the store reach the engine at once.

        Raises UserError where responses are missing and there is no engine, and for media that cannot be shown.
        """
        prompts = [Prompt(uid=uid, question=q, messages=plain_messages(q)) for uid, q in benchmark.uids().items()]
        keys = {prompt.uid: self._keys(prompt) for prompt in prompts}
        missing = [prompt for prompt in prompts if any(self._store.get(key) is None for key in keys[prompt.uid])]
        self._progress.skip(self.config.num_samples * (len(prompts) - len(missing)))
        if missing and self._engine is None:
            raise UserError(
                f"{len(missing)} of {len(prompts)} responses to {benchmark.name} are not there: "
                "generate them first, with eval.stage=generate or all"
            )
        if missing and self._engine is not None:
            for group in self._engine.generate(missing, self._sampling):
                for rollout, key in zip(group.rollouts, keys[group.uid], strict=True):
                    sample = _sample(benchmark.name, group, rollout, key)
                    if self._store.get(key) is None:
                        self._store.add(sample)
                    self._progress.add(sample.num_tokens)
        asked = [(prompt, index) for prompt in prompts for index in range(self.config.num_samples)]
        samples = [self._store.get(keys[prompt.uid][index]) for prompt, index in asked]
        assert None not in samples, "the engine lost groups"
        present = [sample for sample in samples if sample is not None]
        grades = self._grader.grade([(s.response, p.question) for s, (p, _) in zip(present, asked, strict=True)])
        for (prompt, index), sample, grade in zip(asked, present, grades, strict=True):
            mark = benchmark.scorer(prompt.question, grade)
            own = replace(prompt, uid=sample_uid(prompt.uid, index))
            self.responses[own.uid] = Response(benchmark=benchmark, prompt=own, sample=sample, grade=grade, mark=mark)

    def of(self, benchmark: Benchmark) -> list[Response]:
        """The responses to a benchmark that has been answered: question by question, sample by sample."""
        num = self.config.num_samples
        return [self.responses[sample_uid(uid, index)] for uid in benchmark.uids() for index in range(num)]

    def report(self) -> None:
        """Log what was generated, and how fast."""
        self._progress.report()

    def _keys(self, prompt: Prompt) -> list[str]:
        media = self.digests.of(prompt.question)
        given = (self._identity, self._answered, self._sampling, prompt, media)
        return [sample_key(*given, index) for index in range(self.config.num_samples)]


def sample_uid(uid: str, index: int) -> str:
    """What names a question's sample: the question's own uid for the first."""
    return f"{uid}.{index}" if index else uid


def _sample(benchmark: str, group: RolloutGroup, rollout: Rollout, key: str) -> Sample:
    return Sample(
        key=key,
        benchmark=benchmark,
        uid=group.uid,
        question_id=group.prompt.question.id,
        response=rollout.text,
        num_tokens=len(rollout.completion_ids),
        finish_reason=rollout.finish_reason,
    )


class Progress:
    """A line now and then: how far, how fast, how long yet."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._clock = total, clock
        self._done = self._made = self._tokens = 0
        self._started = self._reported = clock()

    def skip(self, num: int) -> None:
        """Rows that were there already."""
        self._done += num

    def add(self, num_tokens: int) -> None:
        self._done, self._made, self._tokens = self._done + 1, self._made + 1, self._tokens + num_tokens
        if self._clock() - self._reported >= REPORT_SECONDS:
            self.report()

    def report(self) -> None:
        if not self._made:
            return
        self._reported = self._clock()
        seconds = max(self._reported - self._started, 1e-9)
        left = (self._total - self._done) * seconds / self._made
        logger.info(
            "evaluation: %d of %d rows, %.1f rows/s, %.0f tokens/s, %.1f min left",
            self._done, self._total, self._made / seconds, self._tokens / seconds, left / 60,
        )  # fmt: skip
