"""The grader of a run: answers that need a library are judged in worker processes that can be killed.

`5^(5^(5^(5^5)))` in a box must cost one answer, not the run. Limits belong to a single answer and start when a worker
takes it up, so that waiting in a queue never counts. What needs no library is decided in the calling process.

The limit is CPU time, which the load of the machine does not change: an answer that uses it up is a `timeout` at once.
So is one that meets the worker's limit of memory or recursion.
A worker that is lost in another way (wall limit, killed from outside) may be no fault of the answer. A fresh
worker grades it once more. Where that one is lost too the answer is `ungraded`: nobody has said that it is wrong.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from harness.config.schema import RewardConfig
from harness.errors import UserError
from harness.rewards import rules, scorer
from harness.rewards.boxed import last_boxed
from harness.rewards.process import DIED, LOST, Job, Worker
from harness.rewards.rules import Grade
from harness.types import Question

logger = logging.getLogger(__name__)

T = TypeVar("T")

BATCH_SIZE = 64
NUM_FAILURES = 5
"""Failures of scorers that are logged."""
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
        self._tried: set[str] = set()
        self._num_failed = 0
        self.num_replaced = 0
        """Workers that a limit ended or that were lost otherwise."""

    def grade(self, items: Sequence[tuple[str, Question]]) -> list[Grade]:
        """Grade (response, question) pairs, in order.

        An answer that uses up its CPU time is a `timeout`, one that two workers are lost at `ungraded`. So is one at
        which the question's own scorer fails.
        """
        answers = [last_boxed(response) for response, _ in items]

        def job(index: int) -> Job:
            response, question = items[index]
            if question.scorer:
                return scorer.job_of(response, question)
            return {"kind": "grade", "answer": answers[index], **_fields(question)}

        def grade(index: int, result: Any) -> Grade:
            answer, question = answers[index], items[index][1]
            if result is LOST or result is DIED:
                return Grade.of(answer, "ungraded" if result is LOST else "timeout")
            return self._scored(result, question) if question.scorer else Grade.of(answer, rules.verdict_of(result))

        quick = [_quick_grade(answer, question) for answer, (_, question) in zip(answers, items, strict=True)]
        return self._complete(quick, job, grade)

    def _scored(self, result: Any, question: Question) -> Grade:
        grade = scorer.grade_of(result)
        if grade.verdict == "ungraded":
            with self._lock:
                self._num_failed += 1
                shown = self._num_failed <= NUM_FAILURES
            if shown:
                logger.warning("ungraded: question %s: %s", question.id, scorer.failure(result, question.scorer))
        return grade

    def are_right(self, answers: Sequence[tuple[Question, str]]) -> list[bool]:
        """Whether each answer, without its box, is the question's. No verdict means no."""
        grades = self.grade([(f"\\boxed{{{answer}}}", question) for question, answer in answers])
        return [grade.verdict == "correct" for grade in grades]

    def same(self, pairs: Sequence[tuple[str | None, str | None]]) -> list[bool]:
        """Whether the two boxed answers of each pair are the same; (None, None) is. No verdict means no."""
        quick = [rules.quick_same(a, b) for a, b in pairs]
        return self._complete(
            quick, lambda i: {"kind": "same", "a": pairs[i][0], "b": pairs[i][1]}, lambda _, result: result is True
        )

    def gold_errors(self, questions: Sequence[Question]) -> list[str | None]:
        """Why each question's gold answer cannot be graded; None where it can, or where a scorer of its own grades.

        Such a scorer is tried once. Raises UserError where there is none of its name, and for what it does wrong.
        """
        self._try_scorers(questions)
        late = f"the gold answer takes more than {self.config.cpu_seconds:g} s to read"
        lost = "the gold answer has lost two grading workers, see the log"

        def job(index: int) -> Job:
            return {"kind": "gold_error", **_fields(questions[index])}

        def error(_: int, result: Any) -> str:
            return lost if result is LOST else late if result is DIED else result or ""

        quick = [
            "" if question.scorer
            else None if rules.needs_library(question)
            else rules.gold_error(question, self.config.grader) or ""
            for question in questions
        ]  # fmt: skip
        return [found or None for found in self._complete(quick, job, error)]

    def _try_scorers(self, questions: Sequence[Question]) -> None:
        for question in questions:
            if not question.scorer or question.scorer in self._tried:
                continue
            (result,) = self._run([scorer.job_of(f"\\boxed{{{question.answer}}}", question)])
            if result is DIED or result is LOST:
                raise UserError(
                    f"data.reward={question.scorer} does not end on a right reply to question {question.id}: "
                    f"it has reward.cpu_seconds={self.config.cpu_seconds:g}"
                )
            if (failure := scorer.failure(result, question.scorer)) is not None:
                raise UserError(f"{failure}, on a right reply to question {question.id}: fix it there")
            self._tried.add(question.scorer)

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

    def _complete(self, quick: Sequence[T | None], job: Callable[[int], Job], read: Callable[[int, Any], T]) -> list[T]:
        """Where `quick` has None, `read` the result of the worker's `job`."""
        slow = [index for index, value in enumerate(quick) if value is None]
        results = dict(zip(slow, self._run([job(index) for index in slow]), strict=True))
        return [read(index, results[index]) if value is None else value for index, value in enumerate(quick)]

    def _run(self, jobs: Sequence[Job]) -> list[Any]:
        """The results of the jobs, in order; DIED for one that used up its time, LOST for one that lost two workers."""
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
        again = False  # the next job has lost a worker already
        while len(results) < len(jobs):
            worker = self._take_worker(fresh=again)
            try:
                done = worker.run(jobs[len(results) :])
            finally:
                self._return_worker(worker)
            self._check_open()  # a worker that `close` killed says nothing about the answer
            results += done
            lost = len(results) < len(jobs) and DIED not in done
            twice = lost and again and not done
            if lost:
                outcome = "stays ungraded" if twice else "is graded once more"
                logger.warning("a grading worker was lost (exit code %s): its answer %s", worker.exit_code, outcome)
            if twice:
                results.append(LOST)
            again = lost and not twice
        return results

    def _take_worker(self, *, fresh: bool) -> Worker:
        with self._lock:
            if self._closed:
                raise RuntimeError("the grader is closed")
            if self._idle and not fresh:
                return self._idle.pop()
        for _ in range(2):
            worker = self._start_worker()
            if worker is not None:
                return worker
        raise RuntimeError("no grading worker starts: the log says how two of them ended")

    def _start_worker(self) -> Worker | None:
        """A worker that is ready; None where the process ended before it was."""
        with self._lock:
            self._check_open()
            worker = Worker(self.config.grader, self.config.cpu_seconds)
            self._alive.add(worker)
        try:
            ready = worker.start()
        except BaseException:
            self._return_worker(worker)
            raise
        if ready:
            return worker
        self._return_worker(worker)
        self._check_open()
        logger.warning("a grading worker did not start (exit code %s)", worker.exit_code)
        return None

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the grader was closed while it was grading")

    def _return_worker(self, worker: Worker) -> None:
        with self._lock:
            if worker.usable and worker.num_jobs < MAX_JOBS_PER_WORKER and not self._closed:
                self._idle.append(worker)
                return
            self._alive.discard(worker)
            self.num_replaced += not worker.usable
        worker.dispose()


def _quick_grade(answer: str | None, question: Question) -> Grade | None:
    if question.scorer:
        return None
    if answer is None:
        return Grade.of(answer, "unparsable")
    correct = rules.quick_check(answer, question)
    return None if correct is None else Grade.of(answer, rules.verdict_of(correct))


def _fields(question: Question) -> Job:
    """What a worker's verifier reads of a question; images stay here."""
    metadata = question.metadata if question.answer_type == "reasoning_gym" else {}
    if question.answer_type == "choice":
        metadata = {"choices": list(question.metadata.get("choices", ()))}
    return {"golds": list(question.golds), "answer_type": question.answer_type, "metadata": metadata}
