"""A scorer of others, `data.reward=package.module:function`: called in the workers, and held to a reward in [0, 1].

`function(question, response, gold)` takes texts, a list of them where there are several gold answers. It gives a
reward, or a reward and the answer that it has read. One with a parameter `extra` is given further columns as well.
"""

from __future__ import annotations

import inspect
import math
import numbers
import traceback
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from harness.config.data import SCORERS
from harness.errors import first_line
from harness.rewards.boxed import last_boxed
from harness.rewards.rules import Grade
from harness.types import Question, Verdict


def job_of(response: str, question: Question) -> dict[str, Any]:
    """What a worker needs to score a response."""
    gold: str | list[str] = list(question.golds) if question.other_answers else question.answer
    texts = {"question": question.text, "response": response, "gold": gold}
    return {"kind": "score", "scorer": question.scorer, "extra": question.extra, **texts}


@lru_cache(maxsize=8)
def load(name: str) -> Callable[..., Any]:
    """The function of a name, as one of a job. Raises UserError."""
    function: Callable[..., Any] = SCORERS.load(name)
    try:
        takes_extra = "extra" in inspect.signature(function).parameters
    except ValueError:  # of a function that is not written in Python
        takes_extra = False

    def call(job: dict[str, Any]) -> Any:
        further = {"extra": job["extra"]} if takes_extra else {}
        return function(job["question"], job["response"], job["gold"], **further)

    return call


def score(function: Callable[[dict[str, Any]], Any], job: dict[str, Any]) -> dict[str, Any]:
    """`{"reward": ..., "answer": ...}`, or `{"failed": ...}` with what is wrong."""
    try:
        given = function(job)
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # whatever a function of others does
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return {"failed": f"raised {type(error).__name__}: {first_line(error)} ({frame.filename}:{frame.lineno})"}
    reward, answer = given if isinstance(given, tuple | list) and len(given) == 2 else (given, None)
    if not isinstance(reward, numbers.Real):
        kind = type(reward).__name__
        return {"failed": f"gave {str(reward)[:80]!r}, a {kind}, as its reward: rewards lie in [0, 1]"}
    reward = float(reward)
    if not math.isfinite(reward) or not 0.0 <= reward <= 1.0:
        return {"failed": f"gave the reward {reward:g}: rewards lie in [0, 1]"}
    return {"reward": reward, "answer": last_boxed(job["response"]) if answer is None else str(answer)}


def grade_of(result: dict[str, Any]) -> Grade:
    """A reward above one half counts as right. Where the scorer failed nobody has said anything."""
    if "failed" in result:
        return Grade.of(None, "ungraded")
    reward, answer = result["reward"], result["answer"]
    verdict: Verdict = "correct" if reward > 0.5 else "unparsable" if answer is None else "wrong"
    return Grade(answer=answer, verdict=verdict, reward=reward)


def failure(result: dict[str, Any], name: str) -> str | None:
    """The line for a result of a scorer that failed; None for another one."""
    return f"{SCORERS.option}={name} {result['failed']}" if "failed" in result else None
