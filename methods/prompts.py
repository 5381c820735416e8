r"""The wording of every prompt: data, tested as literals. Our own words for the paper's forms (Figs. 17 and 18).

Candidate text is quoted inside tags, so whatever could close a tag or a chat turn is neutralised first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.types import Message, Question

CLOSING = "Reason first inside <think> </think>, then give the final answer in \\boxed{}."

BCQ = (
    "Two candidate responses follow, one right and one wrong, in no particular order. "
    "Use them as references while you solve the problem."
)
NCQ = "These answers are all wrong: {answers}."

COMPRESS = (
    "Rewrite the response below as a summary of at most {max_lines} lines and {max_tokens} tokens. "
    "Keep the essential steps and the final boxed answer. Drop exploration, self-corrections, retries and filler. "
    "Add nothing, derive nothing anew, and end with the boxed answer. "
    "Put the summary between <summary> and </summary>."
)

_CONTROL = re.compile(r"<(?=\|)|<(?=/?(?:candidate|response|summary|hint|think)>)")


def neutralize(text: str) -> str:
    """Break every chat-control token and quoting tag in model text, so that it cannot end the block it stands in."""
    return _CONTROL.sub("< ", text)


def plain_text(question: Question) -> str:
    """The question and the closing instruction."""
    return f"{question.text}\n\n{CLOSING}"


def bcq_text(question: Question, candidates: Sequence[str]) -> str:
    """Binary candidate question: one right and one wrong compressed trace, in the order given, without labels."""
    return "\n\n".join([question.text, BCQ, *map(_candidate, candidates), CLOSING])


def ncq_text(question: Question, wrong_answers: Sequence[str], candidates: Sequence[str]) -> str:
    """Negative candidate question: the wrong answers, deduplicated by the caller, then every wrong trace."""
    listed = ", ".join(f"\\boxed{{{neutralize(answer)}}}" for answer in wrong_answers)
    statement = [NCQ.format(answers=listed)] if wrong_answers else []
    return "\n\n".join([question.text, *statement, *map(_candidate, candidates), CLOSING])


def compress_text(response: str, *, max_lines: int, max_tokens: int) -> str:
    """Ask for a compressed trace. Shows the response only: no question, image or gold answer."""
    instruction = COMPRESS.format(max_lines=max_lines, max_tokens=max_tokens)
    return f"{instruction}\n\n<response>\n{response_text(response)}\n</response>"


def response_text(response: str) -> str:
    """A response as it is shown to the teacher: without thinking tags, which only mark where reasoning ends."""
    return neutralize(response.replace("<think>", "").replace("</think>", "\n")).strip()


def plain_messages(question: Question) -> tuple[Message, ...]:
    return user_turn(question, plain_text(question))


def user_turn(question: Question, text: str) -> tuple[Message, ...]:
    """`text` as the last user turn, after the question's earlier turns."""
    return (*question.messages, {"role": "user", "content": text})


def _candidate(text: str) -> str:
    return f"<candidate>\n{neutralize(text).strip()}\n</candidate>"
