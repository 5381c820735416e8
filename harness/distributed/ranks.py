"""Updates over ranks: samples are scattered by their tokens, and the gradient is that of one process.

The denominator is the complete mini-batch's. Every pass through the layers is a collective, so all ranks make equally
many: one with fewer micro-batches, or with none, sends a token through without a gradient. Before each pass all agree
whether to go on. Numbers of one rank that are not finite, a teacher that is lost, or a signal thus end an update on all
of them, before any optimizer moves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch

from harness.distributed.balance import balanced
from harness.distributed.messages import plain_error, slim
from harness.distributed.sharding import ShardedModel
from harness.distributed.weights import ShardedWeights
from harness.distributed.world import Command, World
from harness.errors import UserError
from harness.models.batching import MicroBatch, trained_tokens
from harness.process.preemption import Preempted
from harness.training.nonfinite import NonFinite
from harness.training.ranks import Alone, Made, Read, T
from harness.training.update import Updater
from harness.training.weights import Weights
from harness.types import TrainingSample


@dataclass(kw_only=True)
class Report:
    """What a rank made of its share, with the log-probabilities of every own sample's trained tokens where they were
    asked for; or why it was left.

    `is_left` is the same on all ranks: no weight has moved. `nonfinite` is the number of the own sample, if it is one,
    what of it, and the remedy. With neither that nor an `error` on any rank a signal is the reason.
    """

    sums: dict[str, float] = field(default_factory=dict)
    grad_norm: float = 0.0
    logprobs: list[list[float]] = field(default_factory=list)
    is_left: bool = False
    nonfinite: tuple[int | None, str, str] | None = None
    error: UserError | None = None


class Left(Exception):
    """All ranks leave their shares. `problem` is this rank's reason, if it has one."""

    def __init__(self, problem: NonFinite | UserError | None) -> None:
        self.problem = problem


class Ranks(Alone):
    """The ranks of `world`, over which the student of `sharded` is cut. What `Alone` raises at once all raise as Left,
    which `run` turns into the error of the rank that had a reason, or into Preempted."""

    may_share_prompts = False  # a prompt's pass of its own would be one more on this rank than on others

    def __init__(self, world: World, sharded: ShardedModel) -> None:
        self._world, self._sharded = world, sharded
        self._problem: NonFinite | UserError | None = None
        self.stream = world.rank

    def commands(self, updater: Updater) -> dict[str, Command]:
        """What rank 0 has every rank's updater do."""
        return {share.__name__: _reporting(share) for share in (updater.update_share, updater.read_share)}

    def run(
        self, share: Callable[..., Made], samples: Sequence[TrainingSample], *, merged: bool, **options: Any
    ) -> Made:
        shares = balanced([len(sample.token_ids) for sample in samples], self._world.size)
        given = [{"samples": slim([samples[i] for i in numbers])} for numbers in shares]
        reports: list[Report] = self._world.call(share.__name__, given, **options)
        for numbers, report in zip(shares, reports, strict=True):
            if report.error is not None:
                raise report.error
            if report.nonfinite is not None:
                number, what, remedy = report.nonfinite
                raise NonFinite(None if number is None else samples[numbers[number]], what, remedy)
        if reports[0].is_left:
            raise Preempted
        sums: Counter[str] = Counter()
        rows: dict[int, list[float]] = {}
        for numbers, report in zip(shares, reports, strict=True):
            sums.update(report.sums)
            rows |= dict(zip(numbers, report.logprobs, strict=False))
        groups = [list(range(len(samples)))] if merged else shares
        read = [_read(samples, group, rows) for group in groups if rows]
        return Made(sums=dict(sums), grad_norm=reports[0].grad_norm, read=read)

    def parameters(self, module: torch.nn.Module) -> list[torch.nn.Parameter]:
        """This rank's rows of them."""
        return list(self._sharded.local.values())

    def weights(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Weights:
        weights = ShardedWeights(self._world, self._sharded, optimizer)
        self._world.commands = {**self._world.commands, **weights.commands()}
        return weights

    def interruptible(self) -> AbstractContextManager[None]:
        """A signal waits until all ranks agree."""
        return nullcontext()

    def gathered(self, *, gradients: bool = False) -> AbstractContextManager[None]:
        return self._sharded.gathered(gradients=gradients)

    def rounds(self, micros: Sequence[MicroBatch], *, may_stop: bool = True) -> Iterator[MicroBatch | None]:
        count = self._world.maximum(len(micros))
        for number in range(count + 1):
            if may_stop and self._world.is_stopping(self._problem is not None):
                problem, self._problem = self._problem, None
                raise Left(problem)
            if number < count:
                yield micros[number] if number < len(micros) else None

    def tried(self, work: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return work(*arguments)
        except (NonFinite, UserError) as error:
            self._problem = error
            return None

    def norm(self, own: torch.Tensor) -> torch.Tensor:
        return self._world.total(own.double().square()).sqrt()

    def turns(self, samples: Sequence[TrainingSample]) -> Iterator[list[TrainingSample]]:
        for rank, count in enumerate(self._world.gather(len(samples))):
            for number in range(count):
                yield [samples[number]] if rank == self._world.rank else []

    def any(self, here: bool) -> bool:
        return bool(self._world.maximum(int(here)))

    def leave(self, problem: NonFinite | None) -> NoReturn:
        raise Left(problem)


def _reporting(share: Callable[..., Made]) -> Command:
    """This rank's share of something, as a command whose answer can travel."""

    def report(samples: list[TrainingSample], **options: Any) -> Report:
        try:
            made = share(samples, **options)
        except Left as left:
            if isinstance(problem := left.problem, NonFinite):
                number = next((i for i, sample in enumerate(samples) if sample is problem.sample), None)
                return Report(is_left=True, nonfinite=(number, problem.what, problem.remedy))
            return Report(is_left=True, error=None if problem is None else plain_error(problem))
        logprobs = made.by_sample(len(samples)) if made.read else []
        return Report(sums=made.sums, grad_norm=made.grad_norm, logprobs=logprobs)

    return report


def _read(samples: Sequence[TrainingSample], numbers: list[int], rows: dict[int, list[float]]) -> Read:
    """What was read of the samples of these numbers, as of one micro-batch. A share without trained tokens has none."""
    micro = MicroBatch(samples=[samples[i] for i in numbers], numbers=numbers)
    logprobs_N = torch.tensor([value for i in numbers for value in rows.get(i, ())], dtype=torch.float32)
    return Read(micro, trained_tokens(micro.samples, torch.device("cpu")), logprobs_N)
