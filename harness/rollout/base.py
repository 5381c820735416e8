"""The contract of a rollout engine: token ids in, token ids and log-probabilities out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from harness.types import Prompt, RolloutGroup, Sampler

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How completions are drawn. A rollout's draws depend only on (seed, step, sampler, uid, index).

    Log-probabilities at temperature T are those of `logits / T`, before top-k, top-p and min-p cut the distribution.
    Temperature 0 is greedy; its log-probabilities are those of temperature 1. Penalties act before the temperature:
    presence subtracts once from the logit of each token that was sampled, repetition divides positive and multiplies
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


class RolloutEngine(Protocol):
    """One model that samples. `generate` takes prompts in order and yields their groups, ungraded, as they finish."""

    sampler: Sampler

    @property
    def context_window(self) -> int:
        """Tokens of prompt and completion together."""
        ...

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[RolloutGroup]: ...

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take the student's new weights; called after the updates of every rollout step."""
        ...

    def close(self) -> None: ...
