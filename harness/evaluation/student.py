"""What both evaluation libraries share: the questions, the engine's answers by the one protocol, and their grades."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.config import EvalConfig
from harness.evaluation.protocol import TASK_VERSION, eval_sampling, generation_kwargs
from harness.evaluation.suites import Benchmark
from harness.rollout.base import RolloutEngine
from harness.types import Prompt, Question, Rollout
from methods.prompts import plain_messages

if TYPE_CHECKING:
    from harness.rewards.workers import Grader

NO_LOG_LIKELIHOODS = "the protocol scores generated answers only: a rollout engine has no log-likelihoods"


@dataclass(frozen=True, kw_only=True)
class Response:
    """One prompt with its graded rollout."""

    benchmark: str
    prompt: Prompt
    rollout: Rollout


Responses = dict[str, Response]
"""By the prompt's uid, in the order of the requests."""


RUN_OPTIONS: dict[str, Any] = {
    "bootstrap_iters": 0,
    "log_samples": False,
    "random_seed": None,
    "numpy_random_seed": None,
    "torch_random_seed": None,
}
"""Of both libraries' `simple_evaluate`. With seeds they would reset the global generators, even CUDA's before CUDA
starts; samples are kept by `Student`."""


class Student:
    """The live student as the libraries use it: uids of questions in, graded texts out.

    Fills `responses` with everything the libraries have no place for, graded in one batch a call.
    """

    def __init__(
        self, engine: RolloutEngine, grader: Grader, config: EvalConfig, benchmarks: Sequence[Benchmark]
    ) -> None:
        self.config = config
        self.questions = questions_by_uid(benchmarks)
        self.responses: Responses = {}
        self._engine = engine
        self._grader = grader

    def answer(self, uids: Sequence[str]) -> list[str]:
        """The responses' texts in the order of `uids`. All prompts reach the engine in one call."""
        prompts = [self._prompt(uid) for uid in uids]
        groups = self._engine.generate(prompts, eval_sampling(self.config))
        by_uid = {group.uid: group.rollouts[0] for group in groups}
        assert by_uid.keys() == set(uids), "the engine lost or invented groups"
        rollouts = [by_uid[uid] for uid in uids]
        grades = self._grader.grade([(r.text, p.question) for r, p in zip(rollouts, prompts, strict=True)])
        for prompt, rollout, grade in zip(prompts, rollouts, grades, strict=True):
            rollout.answer, rollout.verdict, rollout.reward = grade.answer, grade.verdict, grade.reward
            benchmark = prompt.uid.split("/")[1]
            self.responses[prompt.uid] = Response(benchmark=benchmark, prompt=prompt, rollout=rollout)
        return [rollout.text for rollout in rollouts]

    def score(self, uid: str, results: Sequence[str]) -> dict[str, float]:
        """A library's metric of a document: the reward of the response, which `answer` has graded by then."""
        rollout = self.responses[uid].rollout
        assert list(results) == [rollout.text], "the library scores another text than the one that was graded"
        return {"score": rollout.reward}

    def _prompt(self, uid: str) -> Prompt:
        question = self.questions[uid]
        return Prompt(uid=uid, question=question, messages=plain_messages(question))


def questions_by_uid(benchmarks: Sequence[Benchmark]) -> dict[str, Question]:
    """The uid of a question's prompt, `eval/<benchmark>/<position>`, decides its random draws."""
    return {
        f"eval/{benchmark.name}/{position}": question
        for benchmark in benchmarks
        for position, question in enumerate(benchmark.questions)
    }


def task_config(benchmark: Benchmark, student: Student) -> dict[str, Any]:
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
        for uid, question in questions_by_uid([benchmark]).items()
    ]


def mean_scores(results: Any, benchmarks: Sequence[Benchmark]) -> dict[str, float]:
    """The mean score in [0, 1] of each benchmark, from what a library's `simple_evaluate` returned."""
    assert results is not None, "evaluation runs on the main process only"
    return {b.name: float(results["results"][b.name]["score,none"]) for b in benchmarks}
