"""GRPO with hints (Alg. 5): the teacher turns a right trace into a hint, which is appended to the question."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import PositiveInt

from harness.types import Actors, Prompt, PromptKind, Question, Rewrite, Rollout
from methods.contract import MethodConfig
from methods.hard import GuidedConfig, GuidedMethod, RewriteConfig
from methods.keys import register
from methods.prompts import hint_text, response_text, user_turn, write_hint_text
from methods.rewrites import ACCEPTED, Rewriter, Trace
from methods.shown import shown_values

_SENTENCE = re.compile(r"\n|(?<=[.!?])\s")
OUTCOMES = ("no_hint", "too_long", "gives_answer", "copies_solution")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")


@dataclass(frozen=True, kw_only=True)
class HintConfig(RewriteConfig, GuidedConfig):
    """Options of the method that appends a hint to a hard question."""

    hint_max_tokens: PositiveInt = 512
    """Most tokens of a hint, 1 or more; longer ones are refused. The request does not name the limit. The paper has
    none: this is that of a compressed candidate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_rewrite_tokens("hint_max_tokens")


@register("hint")
class Hint(GuidedMethod):
    """GRPO plus groups on prompts with a hint that the teacher writes from one of its right traces."""

    Config: ClassVar[type[MethodConfig]] = HintConfig
    kind: ClassVar[PromptKind] = "hint"
    prompt_kinds = frozenset({"plain", "hint", "write_hint"})

    def prompts(self, traces: Sequence[Trace], actors: Actors) -> list[Prompt]:
        known = {question.id: (question, spellings(question, trace, actors)) for question, trace in traces}

        def outcome(prompt: Prompt, rewrite: Rewrite) -> str:
            question, answers = known[prompt.question.id]
            return hint_outcome(
                prompt, rewrite, answers, are_right=lambda values: actors.are_right([(question, v) for v in values])
            )

        rewriter = Rewriter(
            actors,
            section="hint",
            kind="write_hint",
            tag="hint",
            max_tokens=self.config.hint_max_tokens,
            budget=self.config.rewrite_tokens,
            ask=write_hint_text,
            outcome=outcome,
            outcomes=OUTCOMES,
        )
        rewriter.prepare(traces)
        rewriter.report()
        hints = [(trace[0], rewriter.get(trace)) for trace in traces]
        return [_hint_prompt(question, hint.text) for question, hint in hints if hint is not None]


def spellings(question: Question, trace: Rollout, actors: Actors) -> list[str]:
    """The answer as the trace and the data have it, and that of a multiple choice as its letter and its option."""
    choices = question.metadata.get("choices", ())
    names = [*choices, *string.ascii_uppercase[: len(choices)]]
    right = zip(names, actors.are_right([(question, name) for name in names]), strict=True)
    return [trace.answer or "", question.answer, *(name for name, is_right in right if is_right)]


def hint_outcome(
    prompt: Prompt, rewrite: Rewrite, answers: Sequence[str], *, are_right: Callable[[Sequence[str]], Sequence[bool]]
) -> str:
    """`accepted`, or why a rewrite is no hint: none, too long, gives the answer or a box, or copies the solution.

    `answers` are `spellings`, of which none must stand there as it is. `are_right` grades numbers and formulas of the
    hint, which must not be the gold answer in another spelling.
    """
    hint = rewrite.text.strip()
    if rewrite.truncated:
        return "too_long"
    if not hint:
        return "no_hint"
    if "\\boxed" in hint or any(gives_answer(hint, answer) for answer in answers) or any(are_right(shown_values(hint))):
        return "gives_answer"
    return "copies_solution" if copies(hint, response_text(prompt.reference or "")) else ACCEPTED


def gives_answer(hint: str, answer: str) -> bool:
    r"""Whether the answer stands in the hint as a word of its own; a single letter only where it reads as a choice.

    Example: `15` is given by `8+7=15` and `(15)`, not by `150` or `1.15`; `B` by `(B)` and `answer is B`, `A` not by
    `the answer is a number`; `\text{blue}` by `Blue`.
    """
    answer = _TEXT.sub(r"\1", answer).strip()
    if not answer:
        return False
    word = re.escape(answer)
    if len(answer) == 1 and answer.isalpha():
        article = r"(?!(?-i:a)\s+\w)"
        pattern = rf"\({word}\)|\b(?:answer|option|choice)(?:\s+is)?[^\w.]+{article}{word}\b"
    else:
        pattern = rf"(?<![\w.]){word}(?!\w|\.\w)"
    return re.search(pattern, hint, re.IGNORECASE) is not None


def _hint_prompt(question: Question, hint: str) -> Prompt:
    messages = user_turn(question, hint_text(question, hint))
    return Prompt(uid=f"{question.id}/hint", question=question, messages=messages, kind="hint")


def copies(hint: str, solution: str) -> bool:
    """Whether more than half of the solution's sentences and lines, its box left out, stand in the hint literally."""
    pieces = [_normal(piece) for piece in _SENTENCE.split(solution.partition("\\boxed")[0])]
    pieces, shown = [piece for piece in pieces if piece], _normal(hint)
    return 2 * sum(piece in shown for piece in pieces) > len(pieces)


def _normal(text: str) -> str:
    return " ".join(text.split())
