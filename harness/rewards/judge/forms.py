"""What a judge is asked and how its reply is read: the contract of a form, and the form that benchmarks share.

The shared form asks whether the student's answer means the same as the gold answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.rewards.judge.sections import (
    FENCES,
    data,
    judge_messages,
    question_sections,
    read_object,
    student_section,
)
from harness.types import Message, Question


@dataclass(frozen=True, kw_only=True)
class JudgeFormat:
    """The two halves of one form."""

    messages: Callable[[Question, str, str | None], list[Message]]
    """Messages from the question, the complete response and the content of its box (None without one)."""
    read: Callable[[Question, str], float | None]
    """The score in [0, 1] that a reply gives; None where it is not in the form, which counts as wrong."""


REPLY = 'Reply with one JSON object, {"verdict": "correct"} or {"verdict": "wrong"}, and nothing else.'

RULES = f"""You check a student's answer to a question against the reference answer. You compare; you do not solve. \
Take the reference to be right, and do not work out an answer of your own.

The parts that you get: `question`, after `conversation` with its earlier turns where there were any; `options`, where \
there are options to choose from; `reference`, the right answer; and either `answer`, the final answer that was taken \
from the student's response, or, where none could be taken from it, `response`, all that the student wrote. In a \
`response`, look for the final answer inside the reasoning too: what counts is the answer that the student settles on, \
not one that is only tried, quoted or listed among several.

The verdict is `correct` if the student's answer means the same as the reference: the same value, option, set, name or \
statement. Form does not matter: notation, rounding that the question allows, units that go without saying, letter \
case, an option's letter or its text, words around the answer. The verdict is `wrong` if it means something else, \
covers only a part of the reference, adds something that contradicts it, leaves several answers open, or is missing.

{FENCES}

{REPLY}"""


def _messages(question: Question, response: str, answer: str | None) -> list[Message]:
    sections = question_sections(question) | {"reference": data(question.answer)} | student_section(response, answer)
    return judge_messages(RULES, sections)


def read_verdict(question: Question, reply: str) -> float | None:
    """1 for `correct`, 0 for `wrong`, None for any other reply."""
    found = read_object(reply, {"verdict"})
    verdict = None if found is None else found["verdict"]
    return {"correct": 1.0, "wrong": 0.0}.get(verdict) if isinstance(verdict, str) else None


SHARED = JudgeFormat(messages=_messages, read=read_verdict)
