"""What endpoints answer, checked against what was asked: nothing of it is taken on trust. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

MIB = 1 << 20
BYTES_PER_TOKEN = 1024
"""An answer has at most so many: id, text and log-probability of a token with white space, as JSON escapes it."""
BYTES_PER_ENTRY = 256
"""A token that is listed at a position of the prompt has at most so many."""
ROUNDING = 1e-4
"""What a log-probability may be above 0; it is taken for 0 then."""


class WrongAnswer(Exception):
    """What an endpoint did, in half a line that follows its name."""


def most_bytes(body: Mapping[str, Any]) -> int:
    """How large the answer to a completion or chat request can be."""
    prompt = body.get("prompt")
    num_given = len(prompt) if isinstance(prompt, list) else 0
    num_new = int(body.get("max_tokens") or 0) * int(body.get("n") or 1)
    listed = (int(body["prompt_logprobs"]) + 1) if body.get("prompt_logprobs") is not None else 0
    return MIB + BYTES_PER_TOKEN * (num_given + num_new) + BYTES_PER_ENTRY * num_given * listed


def choices_of(answer: Mapping[str, Any], num: int) -> list[dict[str, Any]]:
    """The `num` replies of an answer, in their order."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != num:
        found = len(choices) if isinstance(choices, list) else 0
        raise WrongAnswer(f"gave {found} replies where {num} were asked for: does it honour n?")
    if not all(isinstance(choice, dict) for choice in choices):
        raise WrongAnswer("gave replies that are no records")
    placed = {choice.get("index", place): choice for place, choice in enumerate(choices) if _is_int(choice, "index")}
    if placed.keys() != set(range(num)):
        raise WrongAnswer(f"numbered its {num} replies otherwise than 0 to {num - 1}")
    return [placed[place] for place in range(num)]


def token_ids(value: Any) -> list[int]:
    """Integers; which of them are allowed the caller knows."""
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise WrongAnswer("gives token ids that are no integers")
    return value


def check_sampled(ids: list[int], *, num_tokens: int, stop_ids: Collection[int], banned_ids: Collection[int]) -> None:
    """Ids of a reply: of the vocabulary, none that was forbidden, and nothing after a token that ends a turn."""
    for i in ids:
        if not 0 <= i < num_tokens:
            raise WrongAnswer(
                f"sampled id {str(i)[:20]}, and its tokenizer has {num_tokens} tokens: does it serve another model?"
            )
    if (forbidden := next((i for i in ids if i in banned_ids), None)) is not None:
        raise WrongAnswer(f"sampled id {forbidden}, which was forbidden: does it honour logit_bias?")
    if (early := next((i for i in ids[:-1] if i in stop_ids), None)) is not None:
        raise WrongAnswer(f"went on after id {early}, which ends a turn: does it honour stop_token_ids?")


def logprob(value: Any) -> float:
    """A natural-log probability: finite, and at most 0 but for rounding."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not _is_finite(value):
        raise WrongAnswer("gives log-probabilities that are no numbers")
    if value > ROUNDING:
        raise WrongAnswer("gives log-probabilities above 0")
    return min(float(value), 0.0)


def listed_logprobs(entry: Any, most: int) -> dict[int, float]:
    """The log-probabilities at one position of a prompt, at most `most` of them, by token id."""
    if not isinstance(entry, dict) or len(entry) > most:
        raise WrongAnswer(f"does not list at most {most} tokens at each position")
    found = {}
    for key, value in entry.items():
        if not key.isdecimal() or not key.isascii() or len(key) > 9 or not isinstance(value, dict):
            raise WrongAnswer("lists tokens by what is no id")
        found[int(key)] = logprob(value.get("logprob"))
    if len(found) < len(entry):
        raise WrongAnswer("lists a token twice at one position")
    if sum(map(math.exp, found.values())) > 1.0 + 1e-2:
        raise WrongAnswer("gives probabilities of more than 1 together")
    return found


def readable(text: Any) -> str:
    """The text of a reply: empty for what is none, and half of a surrogate pair is a question mark."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else ""


def _is_int(choice: Mapping[str, Any], name: str) -> bool:
    return name not in choice or type(choice[name]) is int


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False
