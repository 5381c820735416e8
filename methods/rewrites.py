"""The teacher's rewrites of traces (App. D.1): greedy, a failure once more by sampling, then given up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from harness.types import Actors, Prompt, PromptKind, Question, Rewrite, Rollout

ACCEPTED, REDRAWN = "accepted", "redrawn"
Trace = tuple[Question, Rollout]
"""A rollout with the question that it answers."""


class Rewriter:
    """The rewrites of one step; each trace is rewritten once, whoever asks for it.

    `ask(response)` words the request, `outcome(prompt, rewrite)` says `accepted` or what is wrong with a rewrite.
    `report` counts `<section>/<outcome>`, redrawn traces and each of `outcomes` included.
    """

    def __init__(
        self,
        actors: Actors,
        *,
        section: str,
        kind: PromptKind,
        tag: str,
        max_tokens: int,
        ask: Callable[[str], str],
        outcome: Callable[[Prompt, Rewrite], str],
        outcomes: Sequence[str],
        budget: int | None = None,
    ) -> None:
        self._actors = actors
        self._section = section
        self._kind: PromptKind = kind
        self._tag = tag
        self._max_tokens = max_tokens
        self._budget = budget
        self._ask = ask
        self._outcome = outcome
        self._rewrites: dict[str, Rewrite | None] = {}
        self._counts = Counter(dict.fromkeys((ACCEPTED, *outcomes, REDRAWN), 0))

    def prepare(self, traces: Sequence[Trace]) -> None:
        """Rewrite those of the traces that are new."""
        prompts = {(prompt := self._prompt(trace)).uid: prompt for trace in traces}
        new = [prompt for uid, prompt in prompts.items() if uid not in self._rewrites]
        failed = self._rewrite(new, sample=False)
        self._counts[REDRAWN] += len(failed)
        for prompt in self._rewrite(failed, sample=True):
            self._rewrites[prompt.uid] = None

    def get(self, trace: Trace) -> Rewrite | None:
        """The accepted rewrite of a trace; None where it failed, or nobody asked for it."""
        return self._rewrites.get(self._uid(trace))

    def report(self) -> None:
        for outcome, number in self._counts.items():
            self._actors.count(f"{self._section}/{outcome}", number)

    def _prompt(self, trace: Trace) -> Prompt:
        question, rollout = trace
        return Prompt(
            uid=self._uid(trace),
            # The teacher sees the response only: no question, image or gold answer.
            question=replace(question, text="", answer="", messages=(), images=(), video=None, metadata={}),
            messages=({"role": "user", "content": self._ask(rollout.text)},),
            kind=self._kind,
            reference=rollout.text,
        )

    def _uid(self, trace: Trace) -> str:
        question, rollout = trace
        return f"{question.id}/{self._kind}/{rollout.sampler}/{rollout.index}"

    def _rewrite(self, prompts: Sequence[Prompt], *, sample: bool) -> list[Prompt]:
        """Keep the usable rewrites and return the prompts of the others."""
        if not prompts:
            return []
        rewrites = self._actors.rewrite(
            prompts, tag=self._tag, max_tokens=self._max_tokens, sample=sample, budget=self._budget
        )
        failed = []
        for prompt, rewrite in zip(prompts, rewrites, strict=True):
            outcome = self._outcome(prompt, rewrite)
            self._counts[outcome] += 1
            if outcome == ACCEPTED:
                self._rewrites[prompt.uid] = rewrite
            else:
                failed.append(prompt)
        return failed
