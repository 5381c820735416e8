"""A teacher whose replies a test gives, for paths of a method that the tiny teacher does not lead to with certainty."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.models.chat import Chat
from harness.rewards.boxed import last_boxed
from harness.rollout.base import Sampling, room
from harness.types import Prompt, Rollout, RolloutGroup, Sampler

if TYPE_CHECKING:
    import torch

Reply = str | Callable[[Prompt], str]
"""A text, or a function that makes it from the prompt."""


def right_trace(prompt: Prompt) -> str:
    """A short trace that boxes the gold answer."""
    return f"<think>Add.</think>{_box(prompt.question.answer)}"


def wrong_trace(prompt: Prompt) -> str:
    """A short trace that boxes another number: the gold answer with a 1 before it."""
    return f"<think>Guess.</think>{_box('1' + prompt.question.answer)}"


def summary(prompt: Prompt) -> str:
    """A summary that keeps the boxed answer of the response, if it has one."""
    answer = last_boxed(prompt.reference or "")
    return f"<summary>{'No box.' if answer is None else _box(answer)}</summary>"


BUILT_IN: dict[str, Sequence[Reply]] = {"compress": (summary,), "write_hint": ("<hint>Sum.</hint>",)}
"""What the built-in methods accept, by the kind of the prompt that asks for a rewrite."""


@dataclass(frozen=True, kw_only=True)
class ScriptedTeacher:
    """The teacher of a conformance test, reply by reply.

    Its texts go through the real tokenizer, limits of length and grader. The trainer's distribution stays that of the
    tiny teacher. Example: every third trace is right; a critique is refused at first and accepted when asked again::

        ScriptedTeacher(
            rollouts=[right_trace, wrong_trace, wrong_trace],
            rewrites={"critique": ["no tags", "<critique>Mind the carry.</critique>"]},
        )
    """

    rollouts: Sequence[Reply] = (right_trace, wrong_trace)
    """Rollout i of a prompt is reply i, from the first again after the last."""
    rewrites: Mapping[str, Sequence[Reply]] = field(default_factory=dict)
    """By the kind of the prompt: what the greedy request gets, then what a sampled one gets. A single reply serves
    both. `compress` and `write_hint` have replies that the built-in methods accept."""

    def __post_init__(self) -> None:
        """Raises ValueError for replies that are no list, or an empty one."""
        for name, replies in {"rollouts": self.rollouts, **self.rewrites}.items():
            if isinstance(replies, str) or not isinstance(replies, Sequence) or not replies:
                raise ValueError(f"ScriptedTeacher takes a list of one or more replies for {name}, got {replies!r}")

    def reply(self, prompt: Prompt, index: int, *, greedy: bool) -> str:
        """What rollout `index` of a prompt says."""
        rewrites = BUILT_IN | dict(self.rewrites)
        number = (0 if greedy else -1) if prompt.kind in rewrites else index
        replies = rewrites.get(prompt.kind, self.rollouts)
        chosen = replies[number % len(replies)]
        return chosen if isinstance(chosen, str) else chosen(prompt)


class ScriptedEngine:
    """A `RolloutEngine` that says what a script says; each token has probability 1."""

    sampler: Sampler = "teacher"
    has_own_weights = False
    takes_late_prompts = False

    def __init__(self, script: ScriptedTeacher, chat: Chat, context_window: int) -> None:
        self.context_window = context_window
        self._script = script
        self._chat = chat

    def generate(self, prompts: Iterable[Prompt], sampling: Sampling) -> Iterator[RolloutGroup]:
        for prompt in prompts:
            rollouts = [self._rollout(prompt, index, sampling) for index in range(sampling.num_rollouts)]
            yield RolloutGroup(uid=prompt.uid, prompt=prompt, rollouts=rollouts)

    def _rollout(self, prompt: Prompt, index: int, sampling: Sampling) -> Rollout:
        text = self._script.reply(prompt, index, greedy=sampling.temperature == 0.0)
        packed = self._chat.pack(prompt)
        limit = room(prompt, len(packed.ids), sampling, self.context_window)
        whole = [*prompt.prefix_ids, *self._chat.encode_text(text), self._chat.end_id]
        ids = whole[:limit]
        return Rollout(
            sampler=self.sampler,
            index=index,
            prompt_ids=packed.ids,
            media=packed.media,
            completion_ids=ids,
            rollout_logprobs=[0.0] * len(ids),
            text=self._chat.decode(ids),
            finish_reason="stop" if len(ids) == len(whole) else "length",
            num_prefix=len(prompt.prefix_ids),
        )

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """It has none."""

    def sleep(self) -> None:
        """Nothing to release."""

    def wake(self) -> None:
        """It never slept."""

    def close(self) -> None:
        """Nothing to end."""


def _box(answer: str) -> str:
    return f"\\boxed{{{answer}}}"
