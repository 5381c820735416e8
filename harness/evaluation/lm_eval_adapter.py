"""lm-eval on the live student: its tasks from our questions, its model from our rollout engine and grader.

Imports lm-eval, which is slow: import this module inside the function that evaluates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import datasets
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask

from harness.config import EvalConfig
from harness.evaluation.protocol import TASK_VERSION, eval_sampling, generation_kwargs
from harness.evaluation.suites import Benchmark
from harness.rollout.base import RolloutEngine
from harness.types import Prompt, Question, Rollout
from methods.prompts import plain_messages

if TYPE_CHECKING:
    from harness.rewards.workers import Grader


@dataclass(frozen=True, kw_only=True)
class Response:
    """One prompt with its graded rollout."""

    benchmark: str
    prompt: Prompt
    rollout: Rollout


Responses = dict[str, Response]
"""By the prompt's uid, in the order of the requests."""


class StudentLM(LM):
    """lm-eval's view of the student: only generation, by the one protocol, through the engine that also trains.

    Fills `responses` with everything lm-eval has no place for, graded in one batch.
    """

    def __init__(self, engine: RolloutEngine, grader: Grader, config: EvalConfig, questions: Mapping[str, Question]):
        super().__init__()
        self.responses: Responses = {}
        self._engine = engine
        self._grader = grader
        self._config = config
        self._questions = questions

    def generate_until(self, requests: list[Instance]) -> list[str]:
        prompts = [self._prompt(request) for request in requests]
        groups = self._engine.generate(prompts, eval_sampling(self._config))
        by_uid = {group.uid: group.rollouts[0] for group in groups}
        assert by_uid.keys() == {prompt.uid for prompt in prompts}, "the engine lost or invented groups"
        rollouts = [by_uid[prompt.uid] for prompt in prompts]
        grades = self._grader.grade([(r.text, p.question) for r, p in zip(rollouts, prompts, strict=True)])
        for request, prompt, rollout, grade in zip(requests, prompts, rollouts, grades, strict=True):
            rollout.answer, rollout.verdict, rollout.reward = grade.answer, grade.verdict, grade.reward
            assert request.task_name is not None
            self.responses[prompt.uid] = Response(benchmark=request.task_name, prompt=prompt, rollout=rollout)
        return [rollout.text for rollout in rollouts]

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        raise NotImplementedError("the protocol scores generated answers only: a rollout engine has no log-likelihoods")

    def loglikelihood_rolling(self, requests: list[Instance]) -> NoReturn:
        self.loglikelihood(requests)

    def _prompt(self, request: Instance) -> Prompt:
        text, kwargs = request.args
        question = self._questions[request.doc["uid"]]
        messages = plain_messages(question)
        assert kwargs == generation_kwargs(self._config), f"{request.task_name} wants another decoding: {kwargs}"
        assert text == messages[-1]["content"], f"{request.task_name} changed the wording of a question"
        return Prompt(uid=request.doc["uid"], question=question, messages=messages)


class BenchmarkTask(ConfigurableTask):
    """An lm-eval task over questions in memory, zero-shot, scored by the reward of the graded response, which the
    student has put into `responses` by then.
    """

    def __init__(self, benchmark: Benchmark, config: EvalConfig, responses: Responses) -> None:
        def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
            rollout = responses[doc["uid"]].rollout
            assert results == [rollout.text], "lm-eval scores another text than the one that was graded"
            return {"score": rollout.reward}

        self._benchmark = benchmark
        super().__init__(
            config={
                "task": benchmark.name,
                "output_type": "generate_until",
                "generation_kwargs": generation_kwargs(config),
                "num_fewshot": 0,
                "test_split": "held_out",
                "doc_to_text": "prompt",
                "doc_to_target": "answer",
                "metric_list": [{"metric": "score", "aggregation": "mean", "higher_is_better": True}],
                "process_results": score,  # no method: lm-eval deep-copies its configuration, all rows with it
                "metadata": {"version": TASK_VERSION},
            }
        )

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Nothing to fetch: the rows are the benchmark's questions."""
        rows = [
            {"uid": uid, "prompt": plain_messages(question)[-1]["content"], "answer": question.answer}
            for uid, question in questions_by_uid([self._benchmark]).items()
        ]
        self.dataset = {"held_out": datasets.Dataset.from_list(rows)}


def questions_by_uid(benchmarks: list[Benchmark]) -> dict[str, Question]:
    """The uid of a question's prompt, `eval/<benchmark>/<position>`, decides its random draws."""
    return {
        f"eval/{benchmark.name}/{position}": question
        for benchmark in benchmarks
        for position, question in enumerate(benchmark.questions)
    }


def run_benchmarks(
    benchmarks: list[Benchmark], engine: RolloutEngine, grader: Grader, config: EvalConfig
) -> tuple[dict[str, float], Responses]:
    """Generate, grade and aggregate. Returns lm-eval's mean score in [0, 1] of each benchmark, and all responses.

    All prompts reach the engine in one call. Seeds are None: lm-eval would reset the global generators, even CUDA's
    before CUDA starts.
    """
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    student = StudentLM(engine, grader, config, questions_by_uid(benchmarks))
    tasks = [BenchmarkTask(benchmark, config, student.responses) for benchmark in benchmarks]
    results = simple_evaluate(
        model=student,
        tasks=tasks,
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        log_samples=False,
        random_seed=None,
        numpy_random_seed=None,
        torch_random_seed=None,
    )
    assert results is not None, "evaluation runs on the main process only"
    return {b.name: results["results"][b.name]["score,none"] for b in benchmarks}, student.responses
