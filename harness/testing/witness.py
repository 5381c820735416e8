"""What a step of the conformance kit really asked and sampled, recorded before the method got hold of it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from harness.rollout.actors import LiveActors
from harness.types import Prompt, Rewrite, Rollout, RolloutGroup, Sampler, TrainingSample
from methods.base import neutralize


@dataclass(frozen=True)
class Origin:
    """A rollout as it was sampled or demonstrated: its name, its tokens, and how many of them were given."""

    uid: str
    sampler: Sampler
    index: int
    token_ids: tuple[int, ...]
    num_given: int
    """Tokens of the prompt and of the prefix."""


class SampledIds(list[int]):
    """Completion ids that carry their origin, so that equal tokens of two rollouts are kept apart.

    Copies of the rollout (`dataclasses.replace`, `copy.deepcopy`) keep it, in whatever group and under whatever name.
    """

    origin: Origin


@dataclass(frozen=True)
class AskedRewrite:
    """A rewrite that the teacher was asked for: the kind of its prompt, its tag, and what came back."""

    kind: str
    tag: str
    rewrite: Rewrite


@dataclass
class Witness:
    """What was sampled for one step, and what the teacher rewrote."""

    origins: dict[tuple[str, Sampler, int], Origin] = field(default_factory=dict)
    """By uid, sampler and index at sampling."""
    student_groups: list[RolloutGroup] = field(default_factory=list)
    rewrites: list[AskedRewrite] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    """What prompts say apart from their questions, their prefixes, and demonstrated texts."""

    def record(self, group: RolloutGroup) -> None:
        for rollout in group.rollouts:
            ids = (*rollout.prompt_ids, *rollout.completion_ids)
            num_given = len(rollout.prompt_ids) + rollout.num_prefix
            origin = Origin(group.uid, rollout.sampler, rollout.index, ids, num_given)
            self.origins[group.uid, rollout.sampler, rollout.index] = origin
            marked = SampledIds(rollout.completion_ids)
            marked.origin = origin
            rollout.completion_ids = marked
        if any(rollout.sampler == "student" for rollout in group.rollouts):
            self.student_groups.append(copy.deepcopy(group))

    def origin(self, uid: str, rollout: Rollout) -> Origin | None:
        """Which rollout this one is: by its mark, else by its name; None for one that nobody sampled."""
        if isinstance(rollout.completion_ids, SampledIds):
            return rollout.completion_ids.origin
        return self.origins.get((uid, rollout.sampler, rollout.index))


class WitnessedActors(LiveActors):
    """The actors of a run, with a `Witness`."""

    witness: Witness

    def _grade(self, group: RolloutGroup) -> None:
        super()._grade(group)
        self.witness.record(group)
        self.witness.shown += self._added_texts(group.prompt)

    def rewrite(
        self, prompts: Sequence[Prompt], *, tag: str, max_tokens: int, sample: bool = False, budget: int | None = None
    ) -> list[Rewrite]:
        rewrites = super().rewrite(prompts, tag=tag, max_tokens=max_tokens, sample=sample, budget=budget)
        pairs = zip(prompts, rewrites, strict=True)
        self.witness.rewrites += [AskedRewrite(prompt.kind, tag, rewrite) for prompt, rewrite in pairs]
        return rewrites

    def demonstrate(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[RolloutGroup]:
        groups = super().demonstrate(prompts, texts)
        for group in groups:
            self.witness.record(group)
        self.witness.shown += texts
        return groups

    def _added_texts(self, prompt: Prompt) -> Iterator[str]:
        for message in prompt.messages:
            yield message["content"].replace(prompt.question.text, "")
        yield self._chat.decode(prompt.prefix_ids)


@dataclass
class Step:
    """What a step gave, and what really was sampled for it."""

    groups: list[RolloutGroup]
    samples: list[TrainingSample]
    witness: Witness
    counts: dict[str, float]
    """What the method added to the metrics of the step."""

    def origin(self, sample: TrainingSample) -> Origin | None:
        """Which rollout a sample trains; None where it names none, or one that nobody sampled."""
        return None if sample.rollout is None else self.witness.origin(sample.uid, sample.rollout)

    @property
    def num_prompts(self) -> Counter[str]:
        """Groups by the kind of their prompt."""
        return Counter(group.prompt.kind for group in self.groups)

    @property
    def num_rewrites(self) -> Counter[str]:
        """Rewrites that the teacher was asked for, by the kind of their prompt."""
        return Counter(asked.kind for asked in self.witness.rewrites)

    @property
    def num_accepted(self) -> Counter[str]:
        """Rewrites that were accepted, by kind: the method counted `<kind>/accepted`, or showed their text."""
        shown = [neutralize(text) for text in self.witness.shown]
        texts = [(asked.kind, neutralize(asked.rewrite.text).strip()) for asked in self.witness.rewrites]
        stands = Counter(kind for kind, text in texts if text and any(text in other for other in shown))
        counted = Counter({kind: int(self.counts.get(f"{kind}/accepted", 0)) for kind in self.num_rewrites})
        return stands | counted

    def unseen(self, declared: frozenset[str]) -> list[str]:
        """The declared kinds of which there was no prompt, and those of rewrites of which none was accepted."""
        rejected = self.num_rewrites.keys() - self.num_accepted.keys()
        return sorted((declared - self.num_prompts.keys() - self.num_rewrites.keys()) | rejected)

    def __str__(self) -> str:
        """Example: `plain 11, bcq 2, ncq 1; rewrites: compress 7 (5 accepted)`."""
        prompts = ", ".join(f"{kind} {number}" for kind, number in self.num_prompts.items()) or "none"
        accepted = self.num_accepted
        rewrites = [f"{kind} {number} ({accepted[kind]} accepted)" for kind, number in self.num_rewrites.items()]
        return "; rewrites: ".join([prompts, *filter(None, [", ".join(rewrites)])])
