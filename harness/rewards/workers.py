"""The grader of a run: answers that need a library are judged in worker processes that can be killed.

`5^(5^(5^(5^5)))` in a box must cost one answer, not the run. Limits belong to a single answer and start when a worker
takes it up, so that waiting in a queue never counts. What needs no library is decided in the calling process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from harness.config import RewardConfig
from harness.rewards import rules
from harness.rewards.boxed import last_boxed
from harness.rewards.process import DIED, Job, Worker
from harness.rewards.rules import Grade
from harness.types import Question, Verdict

T = TypeVar("T")

BATCH_SIZE = 64
MAX_JOBS_PER_WORKER = 20_000  # the libraries' caches grow with every new answer


class Grader:
    """Grades responses in `config.num_workers` processes, which start when the first answer needs one.

    Thread-safe: several threads may call at the same time. Use it as a context manager, or call `close`.
    A call that needs a worker raises UserError if the grader's library is missing, RuntimeError after `close`.
    """

    def __init__(self, config: RewardConfig) -> None:
        self.config = config
        self._threads = ThreadPoolExecutor(config.num_workers, thread_name_prefix="grader")
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._alive: set[Worker] = set()
        self._closed = False

    def grade(self, items: Sequence[tuple[str, Question]]) -> list[Grade]:
        """Grade (response, question) pairs, in order. An answer that exceeds a limit gets the verdict `timeout`."""
        answers = [last_boxed(response) for response, _ in items]

        def job(index: int) -> Job:
            return {"kind": "grade", "answer": answers[index], **_fields(items[index][1])}

        def verdict(result: Any) -> Verdict:
            return "timeout" if result is DIED else rules.verdict_of(result)

        quick: list[Verdict | None] = [
            _quick_verdict(answer, question) for answer, (_, question) in zip(answers, items, strict=True)
        ]
        verdicts: list[Verdict] = self._complete(quick, job, verdict)
        return list(map(Grade.of, answers, verdicts))

    def same(self, pairs: Sequence[tuple[str | None, str | None]]) -> list[bool]:
        """Whether the two boxed answers of each pair are the same; (None, None) is. A timeout means no."""
        quick = [rules.quick_same(a, b) for a, b in pairs]
        return self._complete(
            quick, lambda i: {"kind": "same", "a": pairs[i][0], "b": pairs[i][1]}, lambda result: result is True
        )

    def gold_errors(self, questions: Sequence[Question]) -> list[str | None]:
        """Why each question's gold answer cannot be graded; None where it can."""
        late = f"the gold answer takes more than {self.config.cpu_seconds:g} s to read"

        def job(index: int) -> Job:
            return {"kind": "gold_error", **_fields(questions[index])}

        quick = [
            None if rules.needs_library(question) else rules.gold_error(question, self.config.grader) or ""
            for question in questions
        ]
        errors = self._complete(quick, job, lambda result: late if result is DIED else result or "")
        return [error or None for error in errors]

    def close(self) -> None:
        """End the worker processes. Calls that are under way in other threads fail."""
        with self._lock:
            self._closed = True
            for worker in self._alive:
                worker.kill()
        self._threads.shutdown(wait=True)
        for worker in self._idle:
            worker.dispose()
        self._idle.clear()
        self._alive.clear()

    def __enter__(self) -> Grader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _complete(self, quick: Sequence[T | None], job: Callable[[int], Job], read: Callable[[Any], T]) -> list[T]:
        """Where `quick` has None, `read` the result of the worker's `job`."""
        slow = [index for index, value in enumerate(quick) if value is None]
        results = dict(zip(slow, self._run([job(index) for index in slow]), strict=True))
        return [read(results[index]) if value is None else value for index, value in enumerate(quick)]

    def _run(self, jobs: Sequence[Job]) -> list[Any]:
        """The results of the jobs, in order; DIED for one that killed its worker."""
        size = max(1, min(BATCH_SIZE, -(-len(jobs) // (4 * self.config.num_workers))))
        futures = [
            self._threads.submit(self._run_batch, jobs[start : start + size]) for start in range(0, len(jobs), size)
        ]
        try:
            return [result for future in futures for result in future.result()]
        finally:
            for future in futures:
                future.cancel()

    def _run_batch(self, jobs: Sequence[Job]) -> list[Any]:
        results: list[Any] = []
        while len(results) < len(jobs):
            worker = self._take_worker()
            try:
                results += worker.run(jobs[len(results) :])
            finally:
                self._return_worker(worker)
            if self._closed:  # a worker that `close` killed says nothing about the answer
                raise RuntimeError("the grader was closed while it was grading")
        return results

    def _take_worker(self) -> Worker:
        with self._lock:
            if self._closed:
                raise RuntimeError("the grader is closed")
            if self._idle:
                return self._idle.pop()
            worker = Worker(self.config.grader, self.config.cpu_seconds)
            self._alive.add(worker)
            return worker

    def _return_worker(self, worker: Worker) -> None:
        with self._lock:
            if worker.usable and worker.num_jobs < MAX_JOBS_PER_WORKER and not self._closed:
                self._idle.append(worker)
                return
            self._alive.discard(worker)
        worker.dispose()


def _quick_verdict(answer: str | None, question: Question) -> Verdict | None:
    if answer is None:
        return "unparsable"
    correct = rules.quick_check(answer, question)
    return None if correct is None else rules.verdict_of(correct)


def _fields(question: Question) -> Job:
    """What a worker's verifier reads of a question; images stay here."""
    metadata = question.metadata if question.answer_type == "reasoning_gym" else {}
    return {"gold": question.answer, "answer_type": question.answer_type, "metadata": metadata}
