"""The worker process of `process.Worker`: `python -m harness.rewards.child GRADER CPU_SECONDS`.

Reads batches of jobs from stdin, one JSON list a line, and writes one JSON reply a line: first that it is ready, then
one for each job, in order. The kernel kills the process when a job exceeds its CPU time, inside C code too. Ends with
stdin, so it never outlives its parent.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, TextIO

from harness.errors import UserError
from harness.rewards import rules, scorer
from harness.types import Question

MEMORY_BYTES = 4 * 2**30


def main(grader: str, cpu_seconds: float) -> None:
    # Libraries may print: only replies go to the parent's pipe.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _limit_process()
    if not _reply(replies, partial(rules.load, grader)):
        return
    for line in sys.stdin:
        for job in json.loads(line):
            if not _reply(replies, partial(_run, job, grader, cpu_seconds)):
                return


def _reply(replies: TextIO, work: Callable[[], Any]) -> bool:
    """Send the result of `work`, or why there is none. False if the worker cannot go on."""
    try:
        reply = {"result": work()}
    except (MemoryError, RecursionError):
        os.kill(os.getpid(), signal.SIGPROF)  # the answer's doing, like its CPU time: a second try would end alike
        return False
    except UserError as error:
        reply = {"user_error": str(error)}
    except Exception:
        reply = {"error": traceback.format_exc()}
    replies.write(json.dumps(reply) + "\n")
    replies.flush()
    return "result" in reply


def _run(job: dict[str, Any], grader: str, cpu_seconds: float) -> Any:
    if job["kind"] == "same":
        return _limited(cpu_seconds, partial(rules.same_answer, job["a"], job["b"], grader))
    if job["kind"] == "score":
        function = scorer.load(job["scorer"])
        return _limited(cpu_seconds, partial(scorer.score, function, job))
    gold, *others = job["golds"]
    question = Question(
        id="",
        text="",
        answer=gold,
        other_answers=tuple(others),
        answer_type=job["answer_type"],
        metadata=job["metadata"],
    )
    if job["kind"] == "gold_error" and question.answer_type == "reasoning_gym":
        return rules.gold_error(question, grader)  # imports a library: no limit
    if job["kind"] == "gold_error":
        return _limited(cpu_seconds, partial(rules.gold_error, question, grader))
    rules.prepare(question)
    return _limited(cpu_seconds, partial(rules.is_correct, job["answer"], question, grader))


def _limited(cpu_seconds: float, work: Callable[[], Any]) -> Any:
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        return work()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def _limit_process() -> None:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(hard, MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
