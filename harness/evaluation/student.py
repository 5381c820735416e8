"""What both evaluation libraries share: the questions, the engine's answers by the one protocol, and their marks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.config.schema import EvalConfig
from harness.errors import UserError
from harness.evaluation.benchmarks.recipe import Mark
from harness.evaluation.media import MediaDigests
from harness.evaluation.protocol import (
    TASK_VERSION,
    UNKNOWN,
    Setup,
    answered_by,
    eval_sampling,
    generation_kwargs,
)
from harness.evaluation.store import Sample, SampleStore, sample_key
from harness.evaluation.suites import Benchmark
from harness.rewards.rules import Grade
from harness.rollout.base import RolloutEngine
from harness.types import Prompt, RolloutGroup
from methods.prompts import plain_messages

if TYPE_CHECKING:
    from harness.rewards.workers import Grader

logger = logging.getLogger(__name__)

NO_LOG_LIKELIHOODS = "the protocol scores generated answers only: a rollout engine has no log-likelihoods"
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


RUN_OPTIONS: dict[str, Any] = {
    "bootstrap_iters": 0,
    "log_samples": False,
    "random_seed": None,
    "numpy_random_seed": None,
    "torch_random_seed": None,
}
"""Options of both libraries' `simple_evaluate`. With seeds they would reset the global generators, even CUDA's before
CUDA starts; samples are kept by `Respondent`."""


class Respondent:
    """The live student as the libraries use it: uids of questions in, texts out, marked.

    Every response goes to the store as it comes, and what is there already is not asked again. Fills `responses` with
    everything the libraries have no place for. Without an `engine` the store has to have all.
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
        self.questions = {uid: question for b in benchmarks for uid, question in b.uids().items()}
        self.responses: Responses = {}
        self.digests = MediaDigests()
        self._benchmarks = {b.name: b for b in benchmarks}
        self._engine = engine
        self._grader = grader
        self._store = store
        self._identity = identity
        self._answered = answered_by(setup, grader.config.grader)
        self._sampling = eval_sampling(config)
        self._progress = _Progress(len(self.questions))

    def answer(self, uids: Sequence[str]) -> list[str]:
        """The responses' texts in the order of `uids`. All prompts that are not in the store reach the engine at once.

        Raises UserError where responses are missing and there is no engine, and for media that cannot be shown.
        """
        prompts = [self._prompt(uid) for uid in uids]
        keys = {prompt.uid: self._key(prompt) for prompt in prompts}
        missing = [prompt for prompt in prompts if self._store.get(keys[prompt.uid]) is None]
        self._progress.skip(len(prompts) - len(missing))
        if missing and self._engine is None:
            raise UserError(
                f"{len(missing)} of {len(prompts)} responses to {_benchmark_name(missing[0].uid)} are not there: "
                "generate them first, with eval.stage=generate or all"
            )
        if missing and self._engine is not None:
            for group in self._engine.generate(missing, self._sampling):
                sample = _sample(group, keys[group.uid])
                self._store.add(sample)
                self._progress.add(sample.num_tokens)
        samples = [self._store.get(keys[uid]) for uid in uids]
        assert None not in samples, "the engine lost groups"
        present = [sample for sample in samples if sample is not None]
        grades = self._grader.grade([(s.response, p.question) for s, p in zip(present, prompts, strict=True)])
        for prompt, sample, grade in zip(prompts, present, grades, strict=True):
            benchmark = self._benchmarks[_benchmark_name(prompt.uid)]
            mark = benchmark.scorer(prompt.question, grade)
            self.responses[prompt.uid] = Response(
                benchmark=benchmark, prompt=prompt, sample=sample, grade=grade, mark=mark
            )
        return [sample.response for sample in present]

    def score(self, uid: str, results: Sequence[str]) -> dict[str, float]:
        """A library's metric of a document: the mark of the response, which `answer` has given by then."""
        response = self.responses[uid]
        assert list(results) == [response.sample.response], (
            "the library scores another text than the one that was marked"
        )
        return {"score": response.mark.score}

    def report(self) -> None:
        """Log what was generated, and how fast."""
        self._progress.report()

    def _key(self, prompt: Prompt) -> str:
        media = self.digests.of(prompt.question)
        return sample_key(self._identity, self._answered, self._sampling, prompt, media)

    def _prompt(self, uid: str) -> Prompt:
        question = self.questions[uid]
        return Prompt(uid=uid, question=question, messages=plain_messages(question))


def _benchmark_name(uid: str) -> str:
    return uid.split("/")[1]


def _sample(group: RolloutGroup, key: str) -> Sample:
    (rollout,) = group.rollouts
    return Sample(
        key=key,
        benchmark=_benchmark_name(group.uid),
        uid=group.uid,
        question_id=group.prompt.question.id,
        response=rollout.text,
        num_tokens=len(rollout.completion_ids),
        finish_reason=rollout.finish_reason,
    )


class _Progress:
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


def task_config(benchmark: Benchmark, student: Respondent) -> dict[str, Any]:
    """The configuration of a benchmark's task, in the form that both libraries read: zero-shot, rows of `task_rows`."""

    def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
        return student.score(doc["uid"], results)

    return {
        "task": benchmark.name,
        "output_type": "generate_until",
        "generation_kwargs": generation_kwargs(student.config),
        "num_fewshot": 0,
        "test_split": "held_out",
        "doc_to_text": "prompt",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "score", "aggregation": "mean", "higher_is_better": True}],
        "process_results": score,  # no method: the libraries deep-copy the configuration, with what a method belongs to
        "metadata": {"version": TASK_VERSION},
    }


def task_rows(benchmark: Benchmark) -> list[dict[str, str]]:
    """The documents of a benchmark's task. Pictures and clips stay with the questions."""
    return [
        {"uid": uid, "prompt": plain_messages(question)[-1]["content"], "answer": question.answer}
        for uid, question in benchmark.uids().items()
    ]


def mean_scores(results: Any, benchmarks: Sequence[Benchmark]) -> dict[str, float]:
    """The mean score in [0, 1] of each benchmark, from what a library's `simple_evaluate` returned."""
    assert results is not None, "evaluation runs on the main process only"
    return {b.name: float(results["results"][b.name]["score,none"]) for b in benchmarks}
