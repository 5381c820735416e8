"""Updates over ranks: samples are scattered by their tokens, and the gradient is that of one process.

The denominator is the complete mini-batch's. Every pass through the layers is a collective, so all ranks make equally
many: one with fewer micro-batches, or with none, sends a token through without a gradient. Before each pass all agree
whether to go on. Numbers of one rank that are not finite, a teacher that is lost, or a signal thus end an update on all
of them, before any optimizer moves.

Shape suffixes: N trained tokens, H hidden.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from harness.distributed.balance import balanced
from harness.distributed.messages import plain_error, slim
from harness.distributed.sharding import ShardedModel
from harness.distributed.weights import RankWeights, ShardedWeights
from harness.distributed.world import World
from harness.errors import UserError
from harness.process.preemption import Preempted
from harness.training.batching import MicroBatch, pad
from harness.training.nonfinite import NonFinite
from harness.training.optimizer import make_optimizer
from harness.training.teacher import TeacherScores
from harness.training.update import Updater
from harness.types import TokenBatch, TrainingSample


@dataclass(kw_only=True)
class Report:
    """What a rank did of a command, or why it was left."""

    sums: dict[str, float] = field(default_factory=dict)
    num_read: int = 0
    num_padded: int = 0
    grad_norm: float = 0.0
    logprobs: list[list[float]] = field(default_factory=list)
    """Log-probabilities of every own sample's trained tokens, where they were asked for."""
    is_left: bool = False
    """On all ranks alike: no weight has moved. With neither of the next two on any rank a signal is the reason."""
    nonfinite: tuple[int | None, str, str] | None = None
    """Number of the own sample if it is one, what of it, and the remedy."""
    error: UserError | None = None


class _Left(Exception):
    """All ranks leave this update."""


class RankUpdater(Updater):
    """This rank's part. `run_update` and `run_logprobs` are commands: all ranks run them together."""

    def __init__(self, *, world: World, sharded: ShardedModel, **options: Any) -> None:
        self._world, self._sharded = world, sharded
        self._noted: defaultdict[int, list[float]] = defaultdict(list)
        self._problem: NonFinite | UserError | None = None
        super().__init__(**options)
        self._share = False  # a prompt's pass of its own would be one more on this rank than on others
        self.rank_weights = RankWeights(sharded, self.optimizer, world.place)

    def commands(self) -> dict[str, Callable[..., Any]]:
        return {
            "update": self.run_update,
            "logprobs": self.run_logprobs,
            "write": self.rank_weights.write,
            "read": self.rank_weights.read,
        }

    def run_update(self, samples: list[TrainingSample], denominator: float, measure_gap: bool) -> Report:
        micros = self._cut(samples)
        report = Report(
            num_read=sum(micro.num_tokens for micro in micros), num_padded=sum(micro.num_padded for micro in micros)
        )
        self._noted.clear()
        self._problem = None
        try:
            with self._sharded.gathered(reduce=True):
                report.sums = self._backward(micros, denominator, measure_gap=measure_gap)
            self._sharded.take_gradients()
            report.grad_norm = self._clip()
            if not math.isfinite(report.grad_norm):
                raise self._find_nonfinite(samples, denominator)
            self.optimizer.step()
            report.logprobs = [self._noted[id(sample)] for sample in samples] if measure_gap else []
        except _Left:
            report.is_left = True
            if isinstance(self._problem, NonFinite):
                error = self._problem
                number = next((i for i, sample in enumerate(samples) if sample is error.sample), None)
                report.nonfinite = (number, error.what, error.remedy)
            else:
                report.error = None if self._problem is None else plain_error(self._problem)
        finally:
            self._sharded.drop_gradients()
        return report

    def run_logprobs(self, samples: list[TrainingSample], may_stop: bool) -> Report:
        """`may_stop`: a signal may end it, since no weight of the step has moved."""
        micros = self._cut(samples)
        found: dict[int, list[float]] = {}
        with self._sharded.gathered(), torch.no_grad():
            for micro in self._rounds(micros, may_stop=may_stop):
                if micro is None:
                    self._hidden(pad([_idle_sample()], self.student.device))
                    continue
                for sample, logprobs in zip(micro.samples, self._logprobs(micro, measure_gap=False), strict=True):
                    found[id(sample)] = [v for v, mask in zip(logprobs, sample.loss_mask, strict=True) if mask]
        is_left = len(found) < len(samples)
        values = [found.get(id(sample), []) for sample in samples]
        return Report(logprobs=values, num_read=sum(micro.num_tokens for micro in micros), is_left=is_left)

    def _rounds(self, micros: Sequence[MicroBatch], *, may_stop: bool = True) -> Iterator[MicroBatch | None]:
        """The own micro-batches, and None as often as another rank has one more; ends early where all stop."""
        for number in range(self._world.maximum(len(micros))):
            if may_stop and self._all_stop():
                return
            yield micros[number] if number < len(micros) else None

    def _all_stop(self) -> bool:
        """Whether all ranks stop; the answer is the same on every rank."""
        return self._world.is_stopping(self._problem is not None)

    def _backward(self, micros: Sequence[MicroBatch], denominator: float, *, measure_gap: bool) -> dict[str, float]:
        sums: defaultdict[str, float] = defaultdict(float)
        scored = self._scored(micros)
        for micro in self._rounds(micros):
            if micro is None:
                self._idle()
            else:
                self._pass(micro, denominator, scored, sums, measure_gap=measure_gap)
        if self._all_stop():
            raise _Left
        return sums

    def _pass(
        self,
        micro: MicroBatch,
        denominator: float,
        scored: Iterator[TeacherScores] | None,
        sums: dict[str, float],
        *,
        measure_gap: bool,
    ) -> None:
        """What goes wrong here is kept until all agree to stop: the others wait for this rank's backward pass."""
        try:
            batch = pad(micro, self.student.device)
        except UserError as error:  # media that cannot be read any more
            self._problem = error
            self._idle()
            return
        hidden_NH = self._hidden(batch)
        try:
            gradient_NH = self._head_gradient(micro, batch, hidden_NH.detach(), denominator, scored, sums, measure_gap)
        except (NonFinite, UserError) as error:
            self._problem = error
            gradient_NH = torch.zeros_like(hidden_NH)
        self._through_layers(hidden_NH, gradient_NH)

    def _idle(self) -> None:
        hidden_NH = self._hidden(pad([_idle_sample()], self.student.device))
        self._through_layers(hidden_NH, torch.zeros_like(hidden_NH))

    def _note_logprobs(self, samples: Sequence[TrainingSample], tokens: TokenBatch, logprobs_N: torch.Tensor) -> None:
        for row, value in zip(tokens.sequence_N.tolist(), logprobs_N.tolist(), strict=True):
            self._noted[id(samples[row])].append(value)

    def _find_nonfinite(self, samples: Sequence[TrainingSample], denominator: float) -> Exception:
        """Each sample of each rank alone; the others idle."""
        for rank, count in enumerate(self._world.gather(len(samples))):
            for number in range(count):
                self._sharded.drop_gradients()
                own = samples[number] if rank == self._world.rank else None
                micros = [] if own is None else [MicroBatch(samples=[own])]
                with self._sharded.gathered(reduce=True):
                    self._backward(micros, denominator, measure_gap=False)
                self._sharded.take_gradients()
                gradients = [p.grad for p in self._sharded.local.values() if p.grad is not None]
                if self._world.maximum(int(not all(bool(g.isfinite().all()) for g in gradients))):
                    self._problem = None if own is None else NonFinite(own, "its gradient")
                    return _Left()
        self._problem = NonFinite(None, "the norm of the gradient") if self._world.rank == 0 else None
        return _Left()

    def _make_optimizer(self) -> torch.optim.Optimizer:
        """Over this rank's rows alone; a parameter with fewer rows than there are ranks has none on some."""
        held = [p for p in self._sharded.local.values() if p.numel()]
        return make_optimizer(held, self._config, stream=self._world.rank)

    def _clip(self) -> float:
        gradients = [p.grad for p in self._sharded.local.values() if p.grad is not None]
        own = torch.nn.utils.get_total_norm(gradients)
        norm = float(self._world.total(own.double().square()).sqrt())
        scale = min(1.0, self._config.max_grad_norm / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_
        if math.isfinite(norm) and scale < 1.0:
            torch._foreach_mul_(gradients, scale)
        return norm


class DistributedUpdater(RankUpdater):
    """Rank 0's: the interface of `Updater`, with every rank at work for it."""

    @property
    def weights(self) -> ShardedWeights:
        return ShardedWeights(self._world, self._sharded, self.optimizer)

    def update(self, samples: Sequence[TrainingSample], *, measure_gap: bool = False) -> dict[str, float]:
        """Like `Updater.update`. Raises Preempted, before any optimizer has moved, where a signal ends the run."""
        active = [sample for sample in samples if not sample.inert] or list(samples[:1])
        measure_gap = measure_gap and self.gap.is_empty
        shares, reports = self._scatter(
            "update",
            active,
            denominator=sum(sample.denominator for sample in samples),
            measure_gap=measure_gap,
        )
        for share, report in zip(shares, reports, strict=True):
            if report.error is not None:
                raise report.error
            if report.nonfinite is not None:
                number, what, remedy = report.nonfinite
                raise NonFinite(None if number is None else share[number], what, remedy)
        if reports[0].is_left:
            raise Preempted
        sums: defaultdict[str, float] = defaultdict(float)
        for report in reports:
            for name, value in report.sums.items():
                sums[name] += value
        if measure_gap:
            for share, report in zip(shares, reports, strict=True):
                self._measure(share, report.logprobs)
        num_read, num_padded = sum(r.num_read for r in reports), sum(r.num_padded for r in reports)
        return self._metrics(sums, active, reports[0].grad_norm, num_read, num_padded)

    def logprobs(self, samples: Sequence[TrainingSample]) -> list[list[float]]:
        return self._forward(samples, may_stop=False)[0]

    def _forward(self, samples: Sequence[TrainingSample], *, may_stop: bool) -> tuple[list[list[float]], int]:
        """`logprobs`, and how many tokens were read. Raises Preempted where it may stop and a signal has come."""
        found: dict[int, list[float]] = {}
        shares, reports = self._scatter("logprobs", samples, may_stop=may_stop)
        if any(report.is_left for report in reports):
            raise Preempted
        for share, report in zip(shares, reports, strict=True):
            for sample, values in zip(share, report.logprobs, strict=True):
                trained = iter(values)
                found[id(sample)] = [next(trained) if mask else 0.0 for mask in sample.loss_mask]
        return [found[id(sample)] for sample in samples], sum(report.num_read for report in reports)

    def _read_old(self, samples: Sequence[TrainingSample], *, measure_gap: bool) -> int:
        if not samples:
            return 0
        found, num_read = self._forward(samples, may_stop=True)
        for sample, logprobs in zip(samples, found, strict=True):
            sample.old_logprobs = logprobs
        if measure_gap:
            trained = [[v for v, mask in zip(s.old_logprobs or (), s.loss_mask, strict=True) if mask] for s in samples]
            self._measure(samples, trained)
        return num_read

    def _scatter(
        self, command: str, samples: Sequence[TrainingSample], **common: Any
    ) -> tuple[list[list[TrainingSample]], list[Report]]:
        """Each rank's samples, and what it made of them."""
        indices = balanced([len(sample.token_ids) for sample in samples], self._world.size)
        shares = [[samples[i] for i in share] for share in indices]
        reports = self._world.call(command, [{"samples": slim(share)} for share in shares], **common)
        return shares, reports

    def _measure(self, samples: Sequence[TrainingSample], logprobs: Sequence[Sequence[float]]) -> None:
        """Add the trained tokens of samples to the step's gap."""
        trained = [(b, t) for b, s in enumerate(samples) for t, mask in enumerate(s.loss_mask) if mask]
        engine = [0.0 if (row := samples[b].rollout_logprobs) is None else row[t] for b, t in trained]
        empty_N = torch.empty(len(trained))
        tokens = TokenBatch(
            ids_N=empty_N,
            advantages_N=empty_N,
            old_logprobs_N=empty_N,
            rollout_logprobs_N=torch.tensor(engine, dtype=torch.float32),
            sequence_N=torch.tensor([b for b, _ in trained], dtype=torch.long),
        )
        self.gap.add(samples, tokens, torch.tensor([v for values in logprobs for v in values], dtype=torch.float32))


def _idle_sample() -> TrainingSample:
    return TrainingSample(uid="idle", token_ids=[0, 0], loss_mask=[0, 1])
