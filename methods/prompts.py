r"""The wording of every prompt: data, tested as literals. Our own words for the paper's forms (Figs. 8 and 16 to 19).

Candidate text is quoted inside tags, so whatever could close a tag or a chat turn is neutralised first.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from harness.types import Message, Question

CLOSING = (
    "Work it out first in an inner monologue, which must stand inside <think> </think>. "
    "Then state the final answer, which must stand in \\boxed{}."
)

BCQ = (
    "Two candidate responses follow in <candidate> tags, one right and one wrong, in no particular order. "
    "Use them as references while you solve the problem."
)
NCQ_ANSWERS = "These answers are all wrong: {answers}."
NCQ_TRACES = "Each <candidate> block that follows holds a line of reasoning that went wrong."

COMPRESS = (
    "Rewrite the response below as a summary of at most {max_lines} lines. "
    "Keep only the essential steps and, word for word, the final boxed answer. "
    "Drop all exploration, self-corrections, retries and filler. "
    "Add nothing, derive nothing anew, and end with the boxed answer. "
    "Put the summary between <summary> and </summary>."
)

HINT = "A hint follows in <hint> tags. Use it while you solve the problem."
WRITE_HINT = (
    "Turn the response below, which solves a problem, into a concise hint for somebody who has not solved it. "
    "Give general guidance or the key idea alone. Leave out the final answer and every box, and do not copy the "
    "solution. "
    "Put the hint between <hint> and </hint>."
)

# Whatever reads as a tag: `</candidate>`, `</ Candidate >`, `<|im_end|>`, `</s>`, `<\uff5cend`; and `[/INST]`.
# A `<` or `[` with white space after it is already broken: breaking twice changes nothing.
_TAG = re.compile(r"<(?=(?:[/|\uff5c]\s*)?[A-Za-z_|\uff5c])|\[(?=(?:/\s*)?INST\s*\])")


def neutralize(text: str) -> str:
    """Break everything that reads as a tag or a control token in model text, so that it cannot end its block.

    Example: `</candidate> a<b [/INST]` becomes `< /candidate> a< b [ /INST]`.
    """
    return _TAG.sub(lambda match: match[0] + " ", text)


def closing_of(question: Question) -> str:
    """The instruction that the question's prompts end with; empty where there is none."""
    return CLOSING if question.closing is None else question.closing


def plain_text(question: Question) -> str:
    """The question and the closing instruction."""
    return _closed(question, question.text)


def bcq_text(question: Question, candidates: Sequence[str]) -> str:
    """Binary candidate question: one right and one wrong compressed trace, in the order given, without labels."""
    return _closed(question, _asked(question, "candidate"), BCQ, *map(_candidate, candidates))


def ncq_text(question: Question, wrong_answers: Sequence[str], candidates: Sequence[str]) -> str:
    """Negative candidate question: the wrong answers, deduplicated by the caller, then every wrong trace.

    Without wrong answers the statement about the traces stands alone: no trace is read as a reference.
    """
    listed = ", ".join(f"\\boxed{{{neutralize(answer)}}}" for answer in wrong_answers)
    statements = [NCQ_ANSWERS.format(answers=listed), NCQ_TRACES] if wrong_answers else [NCQ_TRACES]
    shown = [" ".join(statements), *map(_candidate, candidates)]
    return _closed(question, _asked(question, "candidate"), *shown)


def compress_text(response: str, *, max_lines: int) -> str:
    """Ask for a compressed trace. Shows the response only: no question, image or gold answer.

    The limit of tokens is no part of the request (Fig. 16): whoever takes the summary checks it.
    """
    return f"{COMPRESS.format(max_lines=max_lines)}\n\n{_response(response)}"


def hint_text(question: Question, hint: str) -> str:
    """The question with a hint."""
    block = f"<hint>\n{neutralize(hint).strip()}\n</hint>"
    return _closed(question, _asked(question, "hint"), HINT, block)


def write_hint_text(response: str) -> str:
    """Ask for a hint. Shows the response only: no question, image or gold answer."""
    return f"{WRITE_HINT}\n\n{_response(response)}"


def response_text(response: str) -> str:
    """A response as it is shown to the teacher: without thinking tags, which only mark where reasoning ends."""
    return neutralize(response.replace("<think>", "").replace("</think>", "\n")).strip()


def plain_messages(question: Question) -> tuple[Message, ...]:
    return user_turn(question, plain_text(question))


def wording() -> str:
    """16 hex digits that change with any form's wording or layout."""
    question, one, two = Question(id="", text="q", answer=""), "one", "two"
    forms = (
        plain_text(question), bcq_text(question, [one, two]), ncq_text(question, [one, two], [one, two]),
        ncq_text(question, [], [one]), compress_text(one, max_lines=5), hint_text(question, one), write_hint_text(one),
    )  # fmt: skip
    return hashlib.sha256("\0".join(forms).encode()).hexdigest()[:16]


def user_turn(question: Question, text: str) -> tuple[Message, ...]:
    """`text` as the last user turn, after the question's earlier turns."""
    return (*question.messages, {"role": "user", "content": text})


def _closed(question: Question, *parts: str) -> str:
    """The parts, and the closing instruction where there is one."""
    return "\n\n".join([*parts, *filter(None, [closing_of(question)])])


def _asked(question: Question, tag: str) -> str:
    """The question where blocks in these tags follow: its own tags of that name are broken, and nothing else of it."""
    return re.sub(rf"<(?=\s*/?\s*{tag}\b)", "< ", question.text, flags=re.IGNORECASE)


def _response(response: str) -> str:
    return f"<response>\n{response_text(response)}\n</response>"


def _candidate(text: str) -> str:
    return f"<candidate>\n{neutralize(text).strip()}\n</candidate>"
