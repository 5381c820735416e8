"""GRPO with prefixes (Alg. 6): the first tokens of a right teacher trace start the student's response, masked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from harness.types import Actors, Prompt, PromptKind, Rollout
from methods.contract import MethodConfig, plain_prompt
from methods.hard import GuidedConfig, GuidedMethod
from methods.keys import register
from methods.rewrites import Trace


@dataclass(frozen=True, kw_only=True)
class PrefixConfig(GuidedConfig):
    """Options of the method that starts a response with the first tokens of a teacher trace."""

    prefix_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.4
    """Share of the trace's tokens that is given, above 0 and below 1 (alpha, published: 0.4)."""


@register("prefix")
class Prefix(GuidedMethod):
    """GRPO plus groups that continue the first 40% of one right teacher trace; the given tokens are not trained."""

    Config: ClassVar[type[MethodConfig]] = PrefixConfig
    kind: ClassVar[PromptKind] = "prefix"
    prompt_kinds = frozenset({"plain", "prefix"})

    def is_usable(self, trace: Rollout, actors: Actors) -> bool:
        """A prefix with a complete box is an answer: every continuation without a box would be right."""
        if actors.boxed(first_tokens(trace, self.config.prefix_ratio)) is None:
            return True
        actors.count("prefix/boxed")
        return False

    def prompts(self, traces: Sequence[Trace], actors: Actors) -> list[Prompt]:
        prompts = []
        for question, trace in traces:
            prefix_ids = first_tokens(trace, self.config.prefix_ratio)
            if prefix_ids:
                plain = plain_prompt(question)
                uid = f"{question.id}/prefix"
                prompts.append(
                    Prompt(uid=uid, question=question, messages=plain.messages, kind="prefix", prefix_ids=prefix_ids)
                )
            else:
                actors.count("prefix/empty")
        return prompts


def first_tokens(trace: Rollout, ratio: float) -> tuple[int, ...]:
    """The first floor(ratio * L) of a trace's L tokens. The token that ends it is not one of them.

    Example: [7, 8, 9, 5, 4, 2], ended by 2, has L = 5; ratio 0.4 gives (7, 8).
    """
    length = len(trace.completion_ids) - (trace.finish_reason == "stop")
    return tuple(trace.completion_ids[: math.floor(ratio * length + 1e-9)])
