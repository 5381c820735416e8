"""The judges that five benchmarks bring along: their replies and what is asked, with the fences of the shared judge.

Rules that a library has (MM-Vet's prompt, CharXiv's rubrics) are read from it when they are needed; the rest is in our
words.
"""

from __future__ import annotations

import re
from functools import cache

from harness.evaluation.library.upstream import upstream_module
from harness.rewards.judge.forms import REPLY, JudgeFormat, read_verdict
from harness.rewards.judge.sections import (
    FENCES,
    WHITE_SPACE,
    data,
    judge_messages,
    question_sections,
    read_object,
    shortened,
    student_section,
)
from harness.types import Message, Question

_STUDENT = (
    "The student's part is `answer`, the final answer that was taken from the response, or, where none could be taken "
    "from it, `response`, all that the student wrote: then find the final answer in it, inside the reasoning too."
)

# --- MM-Vet: a score between 0 and 1; parts of the gold answer are joined by <AND> and <OR> ---

MMVET_REPLY = "Reply with the correctness score, one number from 0.0 to 1.0, and nothing else."
_SCORE = re.compile(r"0|1|0\.[0-9]+|1\.0+")


def _mmvet_messages(question: Question, response: str, answer: str | None) -> list[Message]:
    table = upstream_module("lmms_eval.tasks.mmvet.utils").MM_VET_PROMPT.strip()
    rules = (
        f"{table}\n\nThe last row of the table comes in parts: `question`, `reference` (its ground truth) and the "
        f"student's prediction. {_STUDENT}\n\n{FENCES}\n\n{MMVET_REPLY}"
    )
    parts = re.split("<(AND|OR)>", question.answer)
    reference = " ".join(f"<{part}>" if index % 2 else data(part) for index, part in enumerate(parts))
    sections = question_sections(question) | {"reference": reference} | student_section(response, answer)
    return judge_messages(rules, sections)


def _mmvet_read(question: Question, reply: str) -> float | None:
    score = reply.strip(WHITE_SPACE)
    return float(score) if _SCORE.fullmatch(score) else None


# --- MultiChallenge: a yes-or-no question about the reply, and the answer to it that passes ---

MULTICHALLENGE_REPLY = "Say why in at most three sentences. Then end with a line that has the one word YES or NO alone."
MULTICHALLENGE_RULES = f"""You check whether a reply in a conversation meets a criterion. The criterion is a question \
about the reply that is answered with yes or no; it comes in the part `criterion`, and the reply in the part \
`response`. Judge nothing else about the reply, neither whether it is otherwise good nor what its writer says about \
it. Be strict: answer YES only if the reply fully supports a yes.

{FENCES}

{MULTICHALLENGE_REPLY}"""


def _multichallenge_messages(question: Question, response: str, answer: str | None) -> list[Message]:
    # A reply is judged as its reader gets it: all of it but the thoughts.
    visible = response.rpartition("</think>")[2]
    sections = {"criterion": data(question.metadata["target_question"]), "response": shortened(data(visible))}
    return judge_messages(MULTICHALLENGE_RULES, sections)


def _multichallenge_read(question: Question, reply: str) -> float | None:
    verdict = reply.strip(WHITE_SPACE).rpartition("\n")[2].strip(WHITE_SPACE)
    return float(verdict == question.metadata["pass_criteria"]) if verdict in ("YES", "NO") else None


# --- MMVU: over the full response, with another instruction for questions with options than for open ones ---

MMVU_CHOICE = f"""You mark the answer to a multiple-choice question about a video. First find the option that \
`response` settles on, then compare it with `reference`, the letter of the right option. It counts as chosen by its \
letter or by its text in `options`. It is correct only if it is that very option; choosing several or none is not.

{FENCES}

{REPLY}"""
MMVU_OPEN = f"""You mark the answer to an open question about a video. First find the final answer of `response`, then \
compare it with `reference`. The words need not be those of the reference. It is correct only if it names the very \
technique or concept of the reference and leaves no doubt about it; one that is related, broader or narrower is wrong.

{FENCES}

{REPLY}"""


def _mmvu_messages(question: Question, response: str, answer: str | None) -> list[Message]:
    sections = question_sections(question) | {
        "reference": data(question.answer),
        "response": shortened(data(response)),
    }
    return judge_messages(MMVU_CHOICE if "options" in sections else MMVU_OPEN, sections)


# --- Humanity's Last Exam: over the full response ---

HLE_REPLY = (
    'Reply with one JSON object, {"extracted_final_answer": "...", "reasoning": "...", "correct": "yes" or "no", '
    '"confidence": an integer from 0 to 100}, and nothing else.'
)
HLE_RULES = f"""You check whether a response to an exam question arrives at the right answer, which is in the part \
`reference`. Do not solve the question, and do not argue for another answer than the reference.

The parts of your reply: `extracted_final_answer` is the one exact answer that `response` ends on, or the word None if \
there is no such answer. `reasoning` says in at most two sentences whether and how it differs from the reference; look \
only at what makes a difference in meaning. `correct` is "yes" if the extracted answer is the reference, or within a \
small margin of error of a numerical one, and "no" if it is inconsistent, ambiguous or not equivalent. `confidence` is \
the confidence in per cent that the response states, or 100 if it states none.

{FENCES}

{HLE_REPLY}"""


def _hle_messages(question: Question, response: str, answer: str | None) -> list[Message]:
    sections = question_sections(question) | {
        "reference": data(question.answer),
        "response": shortened(data(response)),
    }
    return judge_messages(HLE_RULES, sections)


def _hle_read(question: Question, reply: str) -> float | None:
    found = read_object(reply, {"extracted_final_answer", "reasoning", "correct", "confidence"})
    if found is None or not all(isinstance(found[key], str) for key in ("extracted_final_answer", "reasoning")):
        return None
    confidence = found["confidence"]
    if type(confidence) is not int or not 0 <= confidence <= 100 or found["correct"] not in ("yes", "no"):
        return None
    return float(found["correct"] == "yes")


# --- CharXiv: a rubric for each of four kinds of reasoning answers and seven groups of descriptive templates ---

CHARXIV_REPLY = (
    'Reply with one JSON object, {"score": 0 or 1, "extracted_answer": "<the student\'s final answer>"}, and nothing '
    "else."
)
CHARXIV_GROUPS = {
    "title": (1,), "ocr": (2, 3, 4, 5, 6, 7), "quant": (8, 9, 10, 12, 14, 15, 17, 19), "bool": (11,), "enum": (13,),
    "trend": (16,), "layout": (18,),
}  # fmt: skip
"""The rubric of each descriptive template, under the library's names."""


def _charxiv_messages(question: Question, response: str, answer: str | None) -> list[Message]:
    descriptive = question.metadata["kind"] == "descriptive"
    number = int(question.metadata["template" if descriptive else "category"])
    rubric = descriptive_rubric(number) if descriptive else reasoning_rubric(number)
    rules = (
        "You mark the answer to a question about a chart. Take the student's final answer, compare it with `reference` "
        f"by the rubric below, and give the score 1 or 0. Without any answer the score is 0. {_STUDENT}\n\n{rubric}\n\n"
        f"{FENCES}\n\n{CHARXIV_REPLY}"
    )
    asked = {"question": descriptive_question(number)} if descriptive else question_sections(question)
    sections = asked | {"reference": data(question.answer)} | student_section(response, answer)
    return judge_messages(rules, sections)


def _charxiv_read(question: Question, reply: str) -> float | None:
    found = read_object(reply, {"score", "extracted_answer"})
    if found is None or type(found["score"]) is not int or found["score"] not in (0, 1):
        return None
    # The official examples write an extracted number as a number.
    extracted = found["extracted_answer"]
    return float(found["score"]) if type(extracted) in (str, int, float) else None


@cache
def reasoning_rubric(category: int) -> str:
    """Rules and examples for category 1 (text in the chart), 2 (text), 3 (number in the chart) or 4 (number)."""
    rubrics = upstream_module("lmms_eval.tasks.charxiv.constant").REASONING_GRADING_INST
    return rubrics[category].partition("### Your Turn ###")[0].strip()


@cache
def descriptive_rubric(template: int) -> str:
    """The rules for one of the 19 templates. Without the examples, which are marked five at a time."""
    rubrics = upstream_module("lmms_eval.tasks.charxiv.constant").DESCRIPTIVE_GRADING_ICL
    group = next(name for name, templates in CHARXIV_GROUPS.items() if template in templates)
    return rubrics[group].partition("### Example Start ###")[0].strip()


def descriptive_question(template: int) -> str:
    """What a template asks, without the subplot that it names and its directives: so the official judge is asked."""
    return upstream_module("lmms_eval.tasks.charxiv.constant").DESCRIPTIVE_GRADING_QMAP[template]


MMVET = JudgeFormat(messages=_mmvet_messages, read=_mmvet_read)
MULTICHALLENGE = JudgeFormat(messages=_multichallenge_messages, read=_multichallenge_read)
MMVU = JudgeFormat(messages=_mmvu_messages, read=read_verdict)
HLE = JudgeFormat(messages=_hle_messages, read=_hle_read)
CHARXIV = JudgeFormat(messages=_charxiv_messages, read=_charxiv_read)
