"""What becomes of a process's share of samples, and what the ranks of a run decide together.

`Alone` is a run of one process. `harness.distributed.ranks.Ranks` answers the same for several.

N: trained tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch

from harness.models.batching import MicroBatch
from harness.process.preemption import interruptible
from harness.training.nonfinite import NonFinite
from harness.training.weights import Weights, WholeWeights
from harness.types import TokenBatch, TrainingSample

T = TypeVar("T")


class Read(NamedTuple):
    """The student's log-probabilities [N] of trained tokens, at the sampling temperature."""

    micro: MicroBatch
    tokens: TokenBatch
    logprobs_N: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Made:
    """What was made of samples. `sums` are the loss, what a method adds up, and the tokens that were read.

    `grad_norm` is the norm of the complete gradient before it was clipped. `read` is what was to be measured.
    """

    sums: dict[str, float]
    grad_norm: float = 0.0
    read: Sequence[Read] = ()

    def by_sample(self, num_samples: int) -> list[list[float]]:
        """What was read of the trained tokens of each sample."""
        found: list[list[float]] = [[] for _ in range(num_samples)]
        for part in self.read:
            for row, value in zip(part.tokens.sequence_N.tolist(), part.logprobs_N.tolist(), strict=True):
                found[part.micro.numbers[row]].append(value)
        return found


class Alone:
    """One process: nobody waits for it, so that what goes wrong is raised at once.

    `may_share_prompts` says whether a micro-batch may take more than one pass through the layers. `stream` numbers
    what this rank's optimizer draws. But for `run`, which rank 0 alone calls, all ranks ask for the same in one order.
    """

    may_share_prompts = True
    stream = 0

    def run(
        self, share: Callable[..., Made], samples: Sequence[TrainingSample], *, merged: bool, **options: Any
    ) -> Made:
        """What all ranks' `share(samples, **options)` of these samples make together; every rank runs its own. With
        `merged` they give what they read as one, in the order of the samples."""
        return share(samples, **options)

    def parameters(self, module: torch.nn.Module) -> list[torch.nn.Parameter]:
        """Those of the student that this process updates; `gathered` leaves their gradients with them."""
        return list(module.parameters())

    def weights(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Weights:
        return WholeWeights(module, optimizer)

    def interruptible(self) -> AbstractContextManager[None]:
        """Where a signal that ends the run may interrupt this process."""
        return interruptible()

    def gathered(self, *, gradients: bool = False) -> AbstractContextManager[None]:
        """Where passes through the layers are possible. With `gradients` theirs are added up over ranks in the end."""
        return nullcontext()

    def rounds(self, micros: Sequence[MicroBatch], *, may_stop: bool = True) -> Iterator[MicroBatch | None]:
        """The own micro-batches, and None as often as another rank has one more. Raises on all ranks where one has a
        reason to stop, or a signal has come, if they `may_stop`."""
        return iter(micros)

    def tried(self, work: Callable[..., T], *arguments: Any) -> T | None:
        """What `work` gives. None where it raises UserError or NonFinite, but others wait for this rank: `rounds` then
        raises."""
        return work(*arguments)

    def norm(self, own: torch.Tensor) -> torch.Tensor:
        """The norm of all gradients, from that of the own ones."""
        return own

    def turns(self, samples: Sequence[TrainingSample]) -> Iterator[list[TrainingSample]]:
        """Every sample by itself: one of the own, or none while it is another rank's turn."""
        return ([sample] for sample in samples)

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank."""
        return here

    def leave(self, problem: NonFinite | None) -> NoReturn:
        """Raise on all ranks; `problem` is the reason, None where another rank has it."""
        assert problem is not None
        raise problem
