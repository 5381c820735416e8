"""The contract of a rollout engine: token ids in, token ids and log-probabilities out."""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from harness.errors import UserError
from harness.types import Prompt, RolloutGroup, Sampler

if TYPE_CHECKING:
    import torch

    from harness.config.engines import RolloutConfig
    from harness.config.schema import ModelConfig
    from harness.models.chat import Chat
    from harness.models.forward import LanguageModel
    from harness.serving.endpoints import Endpoints


BAN = -100.0
"""vLLM's largest bias of a logit. The probability that is left to a banned id is below e^-100 of the rest's."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How completions are drawn. A rollout's draws depend only on (seed, step, sampler, uid, index).

    Log-probabilities at temperature T are those of `logits / T`, before top-k, top-p and min-p cut the distribution.
    Temperature 0 is greedy; its log-probabilities are those of temperature 1. Penalties act before the temperature.
    Presence subtracts once from the logit of each token that was sampled. Repetition divides positive and multiplies
    negative logits of each token of the prompt and of the completion.
    """

    num_rollouts: int = 1
    seed: int = 0
    step: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 12_288
    stop: tuple[str, ...] = ()
    """Texts that end a completion, special tokens among them; they stay at its end. A reader cuts them off."""
    unrestricted: bool = False
    """No id is banned: the model's own distribution, as evaluation libraries sample it. Never for training."""

    def changed(self) -> dict[str, Any]:
        """The values by name, without the last two where they change nothing."""
        values = asdict(self)
        return {name: value for name, value in values.items() if name not in ("stop", "unrestricted") or value}


@dataclass(frozen=True, kw_only=True)
class EngineParts:
    """What an engine is opened with (`rollout.engine=package.module:function`)."""

    model: ModelConfig
    rollout: RolloutConfig
    chat: Chat
    sampler: Sampler
    """Whose turn it takes: the student's weights change, and reach an engine by `load_weights`; the teacher's never."""
    weights: LanguageModel | None = None
    """A copy of the run's own on `device`, which the engine may sample with, or take over. Without one it loads `model`
    by itself; a trained student's follow before anything is sampled."""
    device: str = "cpu"
    gpus: Sequence[str] = ()
    """GPUs that the engine has for itself, as CUDA_VISIBLE_DEVICES names them."""
    endpoints: Endpoints | None = None
    """What answers for the model, where somebody serves it."""


class RolloutEngine(Protocol):
    """One model that samples. `generate` takes prompts in order and yields their groups, ungraded, as they finish.

    It, or its iterator where a prompt comes, raises UserError for one that leaves no room for a reply.
    """

    sampler: Sampler
    has_own_weights: bool
    """Whether `load_weights` changes anything: not where the engine samples with the trainer's own tensors."""
    takes_late_prompts: bool
    """Whether `generate` starts on the prompts that are there while others are still to come. Any other engine is given
    all of them at once, as a list."""

    @property
    def context_window(self) -> int:
        """Tokens of prompt and completion together."""
        ...

    def generate(self, prompts: Iterable[Prompt], sampling: Sampling) -> Iterator[RolloutGroup]: ...

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take the student's new weights, all of them; called after the updates of every rollout step.

        What the engine derived from the old ones (cached prefixes) is gone when it returns.
        """
        ...

    def sleep(self) -> None:
        """Nothing is sampled until `wake`: give back what memory can be given back. Weights may be lost."""
        ...

    def wake(self) -> None:
        """Be ready for `load_weights`."""
        ...

    def close(self) -> None: ...


def room(prompt: Prompt, num_prompt: int, sampling: Sampling, window: int) -> int:
    """How many tokens a completion of the prompt may have, its prefix included; `num_prompt` without the prefix.

    Raises UserError where not a single token could be sampled.
    """
    given = num_prompt + len(prompt.prefix_ids)
    if given >= window:
        raise UserError(
            f"prompt {prompt.uid} has {given} tokens and the context window {window}: no room is left for a reply; "
            "lower rollout.max_prompt_tokens or shorten the question"
        )
    if len(prompt.prefix_ids) >= sampling.max_new_tokens:
        raise UserError(
            f"the prefix of prompt {prompt.uid} has {len(prompt.prefix_ids)} tokens and a reply may have "
            f"{sampling.max_new_tokens}: raise rollout.max_response_tokens or shorten the prefix"
        )
    return min(sampling.max_new_tokens, window - num_prompt)


def rollout_seed(sampling: Sampling, sampler: Sampler, uid: str) -> int:
    """The seed of a group at engines that draw by themselves; rollout i of the group has this plus i. 48 bits."""
    key = json.dumps([sampling.seed, sampling.step, sampler, uid])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big")


class Incoming:
    """Prompts of which some may be still to come: those that are there can be taken without waiting for the others."""

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        self.ended = False
        """Whether all have been taken."""
        self._arrived: queue.SimpleQueue[Prompt | Exception | None] = queue.SimpleQueue()
        if isinstance(prompts, Sequence):
            self._read(prompts)
        else:
            threading.Thread(target=self._read, args=(prompts,), name="prompts", daemon=True).start()

    def take(self, *, wait: bool) -> list[Prompt]:
        """What has arrived since the last call; with `wait`, at least one prompt unless there are no more.

        Raises what the iterable raised.
        """
        taken: list[Prompt] = []
        while not self.ended:
            try:
                item = self._arrived.get(block=wait and not taken)
            except queue.Empty:
                break
            if isinstance(item, Exception):
                self.ended = True
                raise item
            if item is None:
                self.ended = True
            else:
                taken.append(item)
        return taken

    def _read(self, prompts: Iterable[Prompt]) -> None:
        try:
            for prompt in prompts:
                self._arrived.put(prompt)
            self._arrived.put(None)
        except Exception as error:
            self._arrived.put(error)
