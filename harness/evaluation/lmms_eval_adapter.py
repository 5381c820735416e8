"""lmms-eval on the live student: benchmarks whose questions have pictures or clips, which it passes on by reference.

Importing lmms-eval changes the entire process: import this module under `isolation.quiet_lmms_eval`.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import datasets
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.api.task import ConfigurableMessagesTask

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
from harness.types import Question
from methods.prompts import plain_messages


class StudentLMM(lmms):
    """lmms-eval's view of the student: chat generation by the one protocol. The engine opens the media, nobody else."""

    is_simple = False

    def __init__(self, student: Respondent) -> None:
        super().__init__()
        self._student = student

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return self._student.answer([self._uid(request) for request in requests])

    def generate_until_multi_round(self, requests: list[Instance]) -> NoReturn:
        raise NotImplementedError("the protocol asks each question once")

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        raise NotImplementedError(NO_LOG_LIKELIHOODS)

    def clean(self) -> None:
        """The engine goes on training: nothing is freed."""

    def _uid(self, request: Instance) -> str:
        _, doc_to_messages, kwargs, position, task, split = request.args
        doc = self.task_dict[task][split][position]
        question = self._student.questions[doc["uid"]]
        assert kwargs == generation_kwargs(self._student.config), f"{task} wants other decoding: {kwargs}"
        messages = doc_to_messages(doc)
        assert _texts(messages) == list(plain_messages(question)), f"{task} changed the wording of a question"
        videos = () if question.video is None else (question.video,)
        assert _media(messages, "image") == question.images, f"{task} changed the images of a question"
        assert _media(messages, "video") == videos, f"{task} changed the video of a question"
        return doc["uid"]


class MediaBenchmarkTask(ConfigurableMessagesTask):
    """An lmms-eval chat task over questions in memory, scored by the reward of the graded response."""

    def __init__(self, benchmark: Benchmark, student: Respondent) -> None:
        self._rows = task_rows(benchmark)
        self._questions = student.questions
        super().__init__(config=task_config(benchmark, student), model_name="student")

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Nothing to fetch: the rows are the benchmark's questions."""
        self.dataset = {"held_out": datasets.Dataset.from_list(self._rows)}
        self.dataset_no_image = self.dataset

    def doc_to_messages(self, doc: dict[str, Any], **rounds: Any) -> list[dict[str, Any]]:
        return chat_messages(self._questions[doc["uid"]])

    def process_results(self, doc: dict[str, Any], results: list[str], full_docs: Any = None) -> dict[str, float]:
        """The score of the text as it is: lmms-eval's own method strips it, and repeats what fails for 8 seconds."""
        return self.config.process_results(doc, results)


def chat_messages(question: Question) -> list[dict[str, Any]]:
    """The question's turns in lmms-eval's form, with the references to its media in the last turn, before the text.

    They say what is shown, not where: placeholders in the text do, which the student's chat template resolves.
    """
    messages = [{"role": m["role"], "content": [_text(m["content"])]} for m in plain_messages(question)]
    media = [{"type": "image", "url": image} for image in question.images]
    if question.video is not None:
        media.append({"type": "video", "url": question.video})
    messages[-1]["content"] = [*media, *messages[-1]["content"]]
    return messages


def run_benchmarks(benchmarks: Sequence[Benchmark], student: Respondent) -> dict[str, float]:
    """Generate, grade and aggregate. Returns lmms-eval's mean score in [0, 1] of each benchmark."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    with _alone():
        results = simple_evaluate(
            model=StudentLMM(student),
            tasks=[MediaBenchmarkTask(benchmark, student) for benchmark in benchmarks],
            task_manager=TaskManager(include_defaults=False),
            **RUN_OPTIONS,
            fewshot_random_seed=None,
            distributed_executor_backend="torchrun",  # the other creates an Accelerator; in one process neither is used
            cli_args=Namespace(process_with_media=False, output_path=None, reasoning_tags=None),
            process_docs_parallel=1,
        )
    return mean_scores(results, benchmarks)


@contextmanager
def _alone() -> Iterator[None]:
    """The first of several ranks evaluates, and the library would wait for the others at barriers of its own."""
    import torch.distributed

    is_initialized = torch.distributed.is_initialized

    def seen() -> bool:
        return is_initialized() and not sys._getframe(1).f_globals["__name__"].startswith("lmms_eval.")

    torch.distributed.is_initialized = seen
    try:
        yield
    finally:
        torch.distributed.is_initialized = is_initialized


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _texts(messages: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [
        {"role": m["role"], "content": "".join(item["text"] for item in m["content"] if item["type"] == "text")}
        for m in messages
    ]


def _media(messages: list[dict[str, Any]], kind: str) -> tuple[Any, ...]:
    return tuple(item["url"] for m in messages for item in m["content"] if item["type"] == kind)
