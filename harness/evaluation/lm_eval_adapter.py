"""lm-eval on the live student: its tasks from our questions, its model from our rollout engine and grader.

Imports lm-eval, which is slow: import this module inside the function that evaluates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import datasets
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask

from harness.evaluation.protocol import generation_kwargs
from harness.evaluation.student import (
    NO_LOG_LIKELIHOODS,
    RUN_OPTIONS,
    Respondent,
    mean_scores,
    task_config,
    task_rows,
)
from harness.evaluation.suites import Benchmark
from methods.prompts import plain_messages


class StudentLM(LM):
    """lm-eval's view of the student: only generation, by the one protocol, through the engine that also trains."""

    def __init__(self, student: Respondent) -> None:
        super().__init__()
        self._student = student

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return self._student.answer([self._uid(request) for request in requests])

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        raise NotImplementedError(NO_LOG_LIKELIHOODS)

    def loglikelihood_rolling(self, requests: list[Instance]) -> NoReturn:
        raise NotImplementedError(NO_LOG_LIKELIHOODS)

    def _uid(self, request: Instance) -> str:
        text, kwargs = request.args
        uid = request.doc["uid"]
        assert kwargs == generation_kwargs(self._student.config), f"{request.task_name} wants other decoding: {kwargs}"
        wording = plain_messages(self._student.questions[uid])[-1]["content"]
        assert text == wording, f"{request.task_name} changed the wording of a question"
        return uid


class BenchmarkTask(ConfigurableTask):
    """An lm-eval task over questions in memory, scored by the reward of the graded response."""

    def __init__(self, benchmark: Benchmark, student: Respondent) -> None:
        self._rows = task_rows(benchmark)
        super().__init__(config=task_config(benchmark, student))

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Nothing to fetch: the rows are the benchmark's questions."""
        self.dataset = {"held_out": datasets.Dataset.from_list(self._rows)}


def run_benchmarks(benchmarks: Sequence[Benchmark], student: Respondent) -> dict[str, float]:
    """Generate, grade and aggregate. Returns lm-eval's mean score in [0, 1] of each benchmark."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    results = simple_evaluate(
        model=StudentLM(student),
        tasks=[BenchmarkTask(benchmark, student) for benchmark in benchmarks],
        task_manager=TaskManager(include_defaults=False),
        **RUN_OPTIONS,
    )
    return mean_scores(results, benchmarks)
