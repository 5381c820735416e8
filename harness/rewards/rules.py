"""Is an answer right? Pure functions, one for each answer type; `workers` runs them under a time limit.

The rule of App. D.1: the last box against the gold answer, LaTeX- and number-aware, and once more without
degree and percent marks. Libraries are imported on use: the parent process needs none of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args

from harness.errors import UserError, did_you_mean
from harness.rewards import guard, notation, values
from harness.rewards.boxed import last_boxed
from harness.rewards.choice import LETTERS, choice_letter, is_bare_letter, normal_text
from harness.types import AnswerType, Question, Verdict

MAX_LENGTH = 2000
"""Characters of a mathematical answer, and four more for each of the other one's. What is longer is not read: it would
only take a worker to its limit of time."""

MAX_OPTION_LENGTH = 80
"""Most characters of an answer that is compared with the options of a multiple choice."""

# Decided here, exactly: mathruler compares integers as floats. Python reads at most 4300 digits.
_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}")


@dataclass(frozen=True, kw_only=True)
class Grade:
    """What the grader says about one response. `reward` is 1.0 for `correct`, else 0.0: without a meaning for
    `ungraded`."""

    answer: str | None
    verdict: Verdict
    reward: float
    judged: bool = False
    """Left to a judge; the verdict is then `ungraded` where no reply came."""
    malformed: bool = False
    """The judge's reply was no verdict in the form, which makes the answer `wrong`."""

    @classmethod
    def of(cls, answer: str | None, verdict: Verdict, *, judged: bool = False, malformed: bool = False) -> Grade:
        reward = float(verdict == "correct")
        return cls(answer=answer, verdict=verdict, reward=reward, judged=judged, malformed=malformed)


def grade(response: str, question: Question, grader: str) -> Grade:
    """Grade a response without any time limit. `grader` is `math_verify` or `mathruler`."""
    answer = last_boxed(response)
    return Grade.of(answer, "unparsable" if answer is None else verdict_of(is_correct(answer, question, grader)))


def verdict_of(correct: bool) -> Verdict:
    return "correct" if correct else "wrong"


def is_correct(answer: str, question: Question, grader: str) -> bool:
    """Whether the content of a box answers the question. Raises UserError if the grader's library is missing."""
    quick = quick_check(answer, question)
    if quick is not None:
        return quick
    if question.answer_type == "reasoning_gym":
        return _reasoning_gym_correct(answer, question.metadata)
    if question.answer_type == "choice":
        return any(_choice_by_value(gold, answer, question, grader) for gold in question.golds)
    return any(_math_equal(gold, answer, grader) for gold in question.golds)


def quick_check(answer: str, question: Question) -> bool | None:
    """`is_correct` where no library is needed, in microseconds; None where one is."""
    found = [_quick_one(gold, answer, question) for gold in question.golds]
    return True if True in found else None if None in found else False


def _quick_one(gold: str, answer: str, question: Question) -> bool | None:
    if question.answer_type == "math":
        return _quick_math(gold, answer)
    if question.answer_type == "text":
        return bool(normal_text(gold)) and normal_text(gold) == normal_text(answer)
    if question.answer_type == "choice":
        return _quick_choice(gold, answer, question.metadata.get("choices", ()))
    return None


def _quick_choice(gold: str, answer: str, choices: Sequence[str]) -> bool | None:
    """By letter or by the option's text; None for another text, which may have the value of an option."""
    right = choice_letter(gold, choices)
    given = choice_letter(answer, choices)
    if right is None or given is not None:
        return right is not None and given == right
    if is_bare_letter(answer):  # beyond the options
        return False
    limit = MAX_OPTION_LENGTH + 4 * max(map(len, choices), default=0)
    return None if choices and answer.strip() and len(answer) <= limit else False


def _choice_by_value(gold: str, answer: str, question: Question, grader: str) -> bool:
    """Whether the answer equals the gold option as mathematics, and no other option."""
    choices = question.metadata["choices"]
    right = choice_letter(gold, choices)
    equal = [letter for letter, option in zip(LETTERS, choices, strict=False) if _math_equal(option, answer, grader)]
    return equal == [right]


def same_answer(a: str | None, b: str | None, grader: str) -> bool:
    """Whether two boxed answers are the same, whatever the answer type; symmetric. Two missing answers are."""
    quick = quick_same(a, b)
    if quick is not None:
        return quick
    assert a is not None and b is not None
    return _math_equal(a, b, grader) or _math_equal(b, a, grader)


def quick_same(a: str | None, b: str | None) -> bool | None:
    """`same_answer` where no library is needed; None where one is."""
    if a is None or b is None:
        return a is b
    if a.strip() == b.strip() or (normal_text(a) and normal_text(a) == normal_text(b)):
        return True
    return _quick_math(a, b)


def gold_error(question: Question, grader: str) -> str | None:
    """Why one of the question's gold answers cannot be graded; None if all can."""
    kind = question.answer_type
    if kind not in get_args(AnswerType):
        return f"unknown answer type {kind!r}.{did_you_mean(kind, get_args(AnswerType))}"
    if kind == "reasoning_gym":
        return _reasoning_gym_error(question.metadata)
    return next(filter(None, (_one_gold_error(gold.strip(), question, grader) for gold in question.golds)), None)


def _one_gold_error(gold: str, question: Question, grader: str) -> str | None:
    kind = question.answer_type
    if not gold:
        return "the gold answer is empty"
    if kind == "text" and not normal_text(gold):
        return f"the gold answer {gold!r} has nothing but punctuation"
    if kind == "choice" and choice_letter(gold, question.metadata.get("choices", ())) is None:
        return f"the gold answer {gold!r} is neither a letter nor an option"
    if kind == "math" and not _INTEGER.fullmatch(gold):
        if problem := values.gold_problem(gold):
            return f"the gold answer {gold!r} {problem}: give the question the type text"
        if not (notation.reads(gold) or values.readable(gold)):
            return f"{grader} reads no value in the gold answer {gold!r}"
    if last_boxed(f"\\boxed{{{gold}}}") != gold:
        return f"the gold answer {gold!r} has braces without a partner: in a box it would be another one"
    return None


def needs_library(question: Question) -> bool:
    """Whether `gold_error` has to ask a library, which may take long."""
    if question.answer_type == "math":
        golds = [gold.strip() for gold in question.golds]
        return any(gold and not _INTEGER.fullmatch(gold) for gold in golds)
    return question.answer_type == "reasoning_gym"


def load(grader: str) -> None:
    """Import the grader's library and run every kind of comparison once, so that no answer pays for it.

    Raises UserError if a package is missing.
    """
    try:
        _library(grader)
    except ImportError as error:
        raise UserError(f"reward.grader={grader} needs the package '{error.name}': pip install {error.name}") from error
    guard.install()
    for gold, answer in (
        (r"\frac{1}{2}", "0.75"), ("x+1", "1+y"), ("(1,2)", "[1,2]"), ("x=1", "y=2"), (r"\{1,2\}", "2,3"),
        ("x>1", "2<x"), (r"\sqrt{2}", r"\sin x"), (r"\begin{pmatrix}1\\2\end{pmatrix}", "5"),
    ):  # fmt: skip
        _compare(gold, answer, grader)


def prepare(question: Question) -> None:
    """Build what a question's verifier needs before its time is measured: the scorer of its reasoning-gym data set."""
    if question.answer_type == "reasoning_gym":
        _scorer(question.metadata)


def _quick_math(gold: str, answer: str) -> bool | None:
    gold, answer = gold.strip(), answer.strip()
    if gold == answer:
        return bool(gold)
    if _INTEGER.fullmatch(gold) and _INTEGER.fullmatch(answer):
        return int(gold) == int(answer)
    shorter, longer = sorted((len(gold), len(answer)))
    return False if longer > MAX_LENGTH + 4 * shorter else None


def _math_equal(gold: str, answer: str, grader: str) -> bool:
    try:
        return _compare(gold, answer, grader)
    except (MemoryError, RecursionError):
        raise  # limits, not verdicts: the worker ends
    except Exception:
        # Both libraries catch what they raise themselves. Should one not, that is no reason for a run to end.
        return False


def _compare(gold: str, answer: str, grader: str) -> bool:
    equal = _library(grader)
    said = notation.same(gold, answer, equal)
    if said is not None:
        return said
    wanted, given = values.read(gold, answer)
    words = values.same_words(wanted.value, given.value)
    if words is not None:
        return words
    if values.clash(wanted, given):
        return False
    for gold_text, answer_text in values.both_ways(wanted.value, given.value):
        quick = _quick_math(gold_text, answer_text)
        if equal(gold_text, answer_text) if quick is None else quick:
            return True
    return False


def _library(grader: str) -> Callable[[str, str], bool]:
    if grader == "mathruler":
        from mathruler.grader import grade_answer

        return lambda gold, answer: bool(grade_answer(answer, gold))
    import math_verify  # noqa: F401  # a missing package is named before the first answer

    return values.equal


def _reasoning_gym_correct(answer: str, metadata: dict[str, Any]) -> bool:
    score_answer = _scorer(metadata)
    try:
        score = score_answer(answer, metadata["entry"])
    except (MemoryError, RecursionError):
        raise  # limits, not verdicts: the worker ends, and so does the one that tries again
    except Exception:
        # Many scorers raise on text that is no answer to their task (a word where a grid is expected).
        return False
    return float(score) >= 1.0 - 1e-9


def _reasoning_gym_error(metadata: dict[str, Any]) -> str | None:
    for key in ("dataset", "entry", "config"):
        if key not in metadata:
            return f"the question's metadata lack {key!r}"
    from reasoning_gym.factory import DATASETS

    name = metadata["dataset"]
    if name not in DATASETS:
        return f"reasoning_gym has no data set {name!r}.{did_you_mean(name, DATASETS)}"
    try:
        _scorer(metadata)
    except Exception as error:
        # Whatever a data set's own validation raises is the reason that the user needs.
        return f"reasoning_gym refuses the options of {name!r}: {error}"
    return None


def _scorer(metadata: dict[str, Any]) -> Callable[..., float]:
    return _cached_scorer(metadata["dataset"], json.dumps(metadata["config"], sort_keys=True))


@lru_cache(maxsize=64)
def _cached_scorer(name: str, config: str) -> Callable[..., float]:
    """The data set's `score_answer`, with its options: several scorers read them (decimal places, number ranges)."""
    import reasoning_gym

    guard.install()
    return reasoning_gym.create_dataset(name, **json.loads(config)).score_answer
