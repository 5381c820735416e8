"""A scripted pair of models: what each prompt is answered with is written down by the test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from harness.rewards.rules import is_correct
from harness.types import Prompt, Question, ReplayedQuestion, Rewrite, Rollout, RolloutGroup, Sampler, Verdict

BOX = 99
"""The token whose text is a complete box."""
Reply = tuple[str, str | None, float]  # text, boxed answer, reward


def scripted_rollout(
    sampler: Sampler, index: int, reply: Reply, given: Sequence[int] = (), sampled: Sequence[int] | None = None
) -> Rollout:
    """Prompt [5, 6]; completion [10 + index, 2] with log-probabilities [-0.5, -0.25], behind the given tokens."""
    text, answer, reward = reply
    sampled = sampled or [10 + index, 2]
    return Rollout(
        sampler=sampler,
        index=index,
        prompt_ids=[5, 6],
        completion_ids=[*given, *sampled],
        rollout_logprobs=[0.0] * len(given) + [-0.5] * (len(sampled) - 1) + [-0.25],
        text=text,
        finish_reason="stop",
        num_prefix=len(given),
        answer=answer,
        reward=reward,
        verdict="correct" if reward else "wrong",
    )


@dataclass
class ScriptedStream:
    groups: list[RolloutGroup]
    on_wait: Callable[[], None] = lambda: None

    def __iter__(self) -> Iterator[RolloutGroup]:
        return iter(self.groups)

    def list(self) -> list[RolloutGroup]:
        waited, self.on_wait = self.on_wait, lambda: None
        waited()
        return self.groups


@dataclass
class ScriptedActors:
    """Replies by prompt uid. `log` has one line a call; rewrites go through `rewriter(prompt, sample)`."""

    replies: Mapping[str, Sequence[Reply]]
    rewriter: Callable[[Prompt, bool], Rewrite] | None = None
    log: list[str] = field(default_factory=list)
    prompts: dict[str, Prompt] = field(default_factory=dict)
    rewritten: list[Prompt] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    too_long: tuple[str, ...] = ()
    """Prompts that leave the student no room."""
    completions: Mapping[str, list[int]] = field(default_factory=dict)
    """What each rollout samples, by prompt uid, where it is not [10 + index, 2]."""
    verdicts: Mapping[str, Mapping[int, Verdict]] = field(default_factory=dict)
    """By prompt uid and index, where it is not what the reward says."""

    def student(self, prompts: Iterable[Prompt], num_rollouts: int) -> ScriptedStream:
        return self._sample("student", prompts, num_rollouts)

    def teacher(self, prompts: Iterable[Prompt], num_rollouts: int) -> ScriptedStream:
        return self._sample("teacher", prompts, num_rollouts)

    def rewrite(
        self, prompts: Sequence[Prompt], *, tag: str, max_tokens: int, sample: bool = False, budget: int | None = None
    ) -> list[Rewrite]:
        names = " ".join(p.uid for p in prompts)
        budget = f"{max_tokens} in {budget}" if budget else str(max_tokens)
        self.log.append(f"rewrite <{tag}> {budget} {'sampled' if sample else 'greedy'}: {names}")
        self.rewritten += prompts
        rewriter = self.rewriter or short
        return [rewriter(prompt, sample) for prompt in prompts]

    def demonstrate(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[RolloutGroup]:
        self.log.append(f"demonstrate: {' | '.join(texts)}")
        replies = [(text, None, 1.0) for text in texts]
        return [
            RolloutGroup(uid=p.uid, prompt=p, rollouts=[scripted_rollout("teacher", 0, reply)])
            for p, reply in zip(prompts, replies, strict=True)
        ]

    def fits(self, prompts: Sequence[Prompt]) -> list[bool]:
        return [prompt.uid not in self.too_long for prompt in prompts]

    def boxed(self, completion_ids: Sequence[int]) -> str | None:
        return "a box" if BOX in completion_ids else None

    def are_right(self, answers: Sequence[tuple[Question, str]]) -> list[bool]:
        return [is_correct(answer, question, "math_verify") for question, answer in answers]

    def count(self, name: str, value: float = 1.0) -> None:
        self.counts[name] += value

    def _sample(self, sampler: Sampler, prompts: Iterable[Prompt], num_rollouts: int) -> ScriptedStream:
        prompts = list(prompts)
        if not prompts:
            return ScriptedStream([])
        self.log.append(f"{sampler} x{num_rollouts}: {' '.join(p.uid for p in prompts)}")
        self.prompts |= {p.uid: p for p in prompts}
        groups = []
        for prompt in prompts:
            replies = self.replies.get(prompt.uid, [("?", None, 0.0)] * num_rollouts)
            given, sampled = prompt.prefix_ids, self.completions.get(prompt.uid)
            rollouts = [scripted_rollout(sampler, i, reply, given, sampled) for i, reply in enumerate(replies)]
            for index, verdict in self.verdicts.get(prompt.uid, {}).items():
                rollouts[index].verdict = verdict
            groups.append(RolloutGroup(uid=prompt.uid, prompt=prompt, rollouts=rollouts))
        return ScriptedStream(groups, on_wait=lambda: self.log.append(f"{sampler} waited for"))


def short(prompt: Prompt, sample: bool) -> Rewrite:
    """An acceptable rewrite: the reference in brackets."""
    return Rewrite(uid=prompt.uid, text=f"[{prompt.reference}]", answer=None, same_answer=True, truncated=False)


@dataclass
class ScriptedBatch:
    new: list[Question]
    replayed: list[ReplayedQuestion] = field(default_factory=list)
    step: int = 1
    num_steps: int = 1

    def more(self, num_questions: int) -> list[Question]:
        return []


@pytest.fixture(scope="session")
def actors() -> type[ScriptedActors]:
    return ScriptedActors


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., ScriptedBatch]:
    """`batch_of("a b", replayed="c")`: questions named so, with text `Q <id>?` and the gold answer `gold <id>`."""

    def make(new: str, replayed: str = "") -> ScriptedBatch:
        def question(name: str) -> Question:
            return Question(id=name, text=f"Q {name}?", answer=f"gold {name}")

        entries = [ReplayedQuestion(question=question(n), visits=0, entry_accuracy=0.0) for n in replayed.split()]
        return ScriptedBatch(new=[question(n) for n in new.split()], replayed=entries)

    return make


@pytest.fixture(scope="session")
def rollout() -> Callable[[Sampler, int, Reply], Rollout]:
    return scripted_rollout
