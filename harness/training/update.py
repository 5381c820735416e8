"""One optimizer update on one mini-batch: the only place where a gradient is formed.

The loss of every trained token is weighted, summed over the mini-batch and divided once by the sum of the samples'
norms. So the gradient does not depend on how the mini-batch is cut into micro-batches. Trained tokens are projected to
the vocabulary tile by tile; a method's `loss` sees one tile. Because the denominator is known beforehand, the backward
pass of a tile follows its forward pass at once: no logits are kept and none are projected again.

Shape suffixes: B sequences, T tokens, N trained tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch

from harness.config.schema import UpdateConfig
from harness.models.batching import MicroBatch, PaddedBatch, micro_batches, one_pass, pad, tokens_between
from harness.models.cpu import keep_freed_memory
from harness.models.forward import LanguageModel
from harness.process.preemption import fault_point
from harness.process.step_clock import StepClock
from harness.teacher.base import TeacherScorer, TeacherScores, check_same, hidden_of
from harness.training.memory import tile_tokens
from harness.training.mismatch import GapMeter
from harness.training.nonfinite import NonFinite, check_gradient, check_tile
from harness.training.optimizer import make_optimizer
from harness.training.ranks import Alone, Made, Read
from harness.types import TeacherDistribution, TokenBatch, TrainingSample
from methods.base import Method, token_logprobs


class Updater:
    """Student, optimizer and loss of this process, one of `ranks`. `teacher` scores for methods that read its
    distribution, and only for them. `weights` are what a checkpoint has of student and optimizer.

    Rank 0 calls `fill_old_logprobs`, `logprobs` and `update` with all samples, and these have every rank make its share
    by `read_share` or `update_share`. Raises UserError where `update.logit_memory_mb` does not hold the logits of one
    token, or the optimizer is not installed.
    """

    def __init__(
        self,
        *,
        student: LanguageModel,
        teacher: TeacherScorer | None,
        method: Method,
        config: UpdateConfig,
        temperature: float,
        ranks: Alone | None = None,
        clock: StepClock | None = None,
    ) -> None:
        self.student = student
        self.gap = GapMeter()
        self._ranks = ranks or Alone()
        self._teacher = teacher
        self._method = method
        self._config = config
        self._temperature = temperature
        self._loss_temperature = method.logit_temperature(temperature)
        self._clock = clock or StepClock()
        self._tile = tile_tokens(student.num_tokens, config.logit_memory_mb)
        may_share = self._ranks.may_share_prompts and not config.gradient_checkpointing
        self._share = config.share_prompts and may_share and student.can_share_prompts
        if student.device.type == "cpu":
            keep_freed_memory()
        if config.gradient_checkpointing:
            student.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._parameters = self._ranks.parameters(student.module)
        held = [parameter for parameter in self._parameters if parameter.numel()]  # a rank may have no row of a tensor
        self.optimizer = make_optimizer(held, config, stream=self._ranks.stream)
        self.weights = self._ranks.weights(student.module, self.optimizer)

    def fill_old_logprobs(
        self, samples: Sequence[TrainingSample], known: Sequence[list[float] | None] | None = None
    ) -> int:
        """Give samples with advantages their `old_logprobs`: the engine's, or the trainer's own by a forward pass.

        The trainer's are also taken for a sample that the engine gave none, or not all. One without `rollout_logprobs`
        gets its old ones as such, so that its importance weights are 1. A step's `gap` starts here; where all are
        recomputed it is measured here too, over all of them. Returns the number of tokens that the forward pass read.
        `known` is what this call gave before the step was interrupted: the weights have moved since.
        """
        for sample in samples:
            if sample.rollout_logprobs is not None and None in sample.rollout_logprobs:
                sample.rollout_logprobs = [math.nan if value is None else value for value in sample.rollout_logprobs]
        self.gap.start(samples)
        if known is not None:
            for sample, logprobs in zip(samples, known, strict=True):
                sample.old_logprobs = logprobs
        policy = [s for s in samples if known is None and s.advantages is not None and s.old_logprobs is None]
        recompute = self._config.old_logprobs == "recompute"
        for sample in policy:
            is_complete = sample.rollout_logprobs is not None and math.isfinite(sum(sample.rollout_logprobs))
            sample.old_logprobs = sample.rollout_logprobs if is_complete else None
        missing = [s for s in policy if not s.inert and (recompute or s.old_logprobs is None)]
        num_read = 0.0
        if missing:
            made = self._ranks.run(self.read_share, missing, merged=True, is_old=True)
            num_read = made.sums["num_read"]
            self._measure(made.read if recompute else ())
            for sample, trained in zip(missing, made.by_sample(len(missing)), strict=True):
                sample.old_logprobs = _spread(sample, trained)
        for sample in samples:
            if sample.rollout_logprobs is None:
                sample.rollout_logprobs = sample.old_logprobs
        return int(num_read)

    def logprobs(self, samples: Sequence[TrainingSample]) -> list[list[float]]:
        """The student's present log-probability of every trained token, 0 elsewhere; in the order of the samples."""
        made = self._ranks.run(self.read_share, samples, merged=True, is_old=False)
        return list(map(_spread, samples, made.by_sample(len(samples))))

    def update(self, samples: Sequence[TrainingSample], *, measure_gap: bool = False) -> dict[str, float]:
        """One optimizer step. Returns `loss`, `grad_norm` and the method's sums per trained token; `num_read` tokens,
        and `num_padded` with padding.

        `measure_gap` adds the tokens to the step's `gap`, for the step's first update; not where `fill_old_logprobs`
        has measured it.
        Raises NonFinite, with the sample, before the optimizer moves; a signal that ends the run raises before it, too.
        """
        # A mini-batch of inert samples still is an update with a zero gradient: the optimizer's momentum acts.
        active = [sample for sample in samples if not sample.inert] or list(samples[:1])
        denominator = sum(sample.denominator for sample in samples)
        measure = measure_gap and self.gap.is_empty
        made = self._ranks.run(self.update_share, active, merged=False, denominator=denominator, measure=measure)
        self._measure(made.read)
        num_tokens, totals = max(1, sum(sample.num_trained for sample in active)), ("loss", "num_read", "num_padded")
        metrics = {name: value if name in totals else value / num_tokens for name, value in made.sums.items()}
        return metrics | {"grad_norm": made.grad_norm}

    def _measure(self, read: Sequence[Read]) -> None:
        for part in read:
            self.gap.add(part.micro.samples, part.tokens, part.logprobs_N)

    def update_share(self, samples: Sequence[TrainingSample], denominator: float, measure: bool) -> Made:
        """One optimizer step on all ranks' samples together, of which these are the own ones; `denominator` is that of
        all. Raises before it moves (`harness.training.ranks`)."""
        micros = self._cut(samples, share=True)
        read: list[Read] = []
        try:
            with self._ranks.interruptible():  # until here no weight has moved
                sums = self._backward(micros, denominator, read if measure else None)
                grad_norm = self._clip()
                if not math.isfinite(grad_norm):
                    self._ranks.leave(self._find_nonfinite(samples, denominator))
            self.optimizer.step()
        finally:
            self._drop_gradients()
        return Made(sums={**sums, **_counts(micros)}, grad_norm=grad_norm, read=read)

    @torch.no_grad()
    def read_share(self, samples: Sequence[TrainingSample], is_old: bool) -> Made:
        """A forward pass of each micro-batch. Where it `is_old`, before the weights of the step have moved, a signal
        may end it."""
        micros = self._cut(samples, share=is_old)
        read = []
        with self._ranks.gathered():
            for micro in self._ranks.rounds(micros, may_stop=is_old):
                batch = self._padded(micro)
                hidden_NH = hidden_of(self.student, batch)
                if micro is not None:
                    logprobs_N = torch.zeros_like(batch.weights_N)
                    for a, b in self._tiles(len(hidden_NH)):
                        logits_NV = self._logits(hidden_NH[a:b], self._temperature)
                        logprobs_N[a:b] = token_logprobs(logits_NV, batch.tokens.ids_N[a:b])
                    read.append(Read(micro, batch.tokens, logprobs_N))
        return Made(sums=_counts(micros), read=read)

    def _cut(self, samples: Sequence[TrainingSample], *, share: bool) -> list[MicroBatch]:
        return micro_batches(samples, self._config.micro_batch_tokens, share=self._share and share)

    def _padded(self, micro: MicroBatch | None) -> PaddedBatch:
        """A micro-batch, or the token that stands for none."""
        return pad(micro or [TrainingSample(uid="idle", token_ids=[0, 0], loss_mask=[0, 1])], self.student.device)

    def _backward(
        self, micros: Sequence[MicroBatch], denominator: float, read: list[Read] | None = None
    ) -> dict[str, float]:
        """Add the gradient of the mini-batch to the parameters'; returns the loss and token sums."""
        sums: defaultdict[str, float] = defaultdict(float)
        with self._ranks.gathered(gradients=True):
            scored = None if self._teacher is None else self._teacher.score([micro.samples for micro in micros])
            for micro in self._ranks.rounds(micros):
                self._pass(micro, denominator, scored, sums, read)
        return sums

    def _pass(
        self,
        micro: MicroBatch | None,
        denominator: float,
        scored: Iterator[TeacherScores] | None,
        sums: dict[str, float],
        read: list[Read] | None,
    ) -> None:
        """Forward and backward of one micro-batch. Without one, or where it fails while other ranks wait, a pass
        without a gradient."""
        batch = None if micro is None else self._ranks.tried(self._padded, micro)
        hidden_NH = self._hidden(batch or self._padded(None))
        gradient_NH = None
        if batch is not None:
            arguments = (micro, batch, hidden_NH.detach(), denominator, scored, sums, read)
            gradient_NH = self._ranks.tried(self._head_gradient, *arguments)
        hidden_NH.backward(torch.zeros_like(hidden_NH) if gradient_NH is None else gradient_NH)

    def _hidden(self, batch: PaddedBatch) -> torch.Tensor:
        """Hidden states, with what the layers need for their backward pass."""
        self.student.module.train(self._config.gradient_checkpointing)  # layers recompute in train mode only
        hidden_NH = hidden_of(self.student, batch)
        self.student.module.eval()
        return hidden_NH

    def _head_gradient(
        self,
        micro: MicroBatch,
        batch: PaddedBatch,
        hidden_NH: torch.Tensor,
        denominator: float,
        scored: Iterator[TeacherScores] | None,
        sums: dict[str, float],
        read: list[Read] | None,
    ) -> torch.Tensor:
        """The gradient in the hidden states [N, H], tile by tile; the head's is added to it on the way."""
        scores = None
        if scored is not None:
            with self._clock.running("teacher"):
                scores = next(scored)
                check_same(scores, batch)
            fault_point("scored")
        gradient_NH = torch.empty_like(hidden_NH)
        measured: list[torch.Tensor] = []
        for start, stop in self._tiles(len(hidden_NH)):
            tokens = tokens_between(batch.tokens, start, stop)
            weights_N = batch.weights_N[start:stop] / denominator
            states_NH = hidden_NH[start:stop].float()
            teacher = None
            if scores is not None:
                with self._clock.running("teacher"):
                    teacher = scores.between(start, stop).to(self.student.device)
            logits_NV = self._logits(states_NH, self._loss_temperature)
            if read is not None:
                measured.append(token_logprobs(self._as_sampled(logits_NV), tokens.ids_N))
            self._backward_loss(logits_NV.requires_grad_(), tokens, weights_N, teacher, micro.samples, sums)
            gradient_NH[start:stop] = self._backward_logits(states_NH, logits_NV)
            del logits_NV, teacher  # before the next ones are made
        if read is not None and measured:
            read.append(Read(micro, batch.tokens, torch.cat(measured)))
        check_gradient(gradient_NH, batch.tokens, micro.samples)
        return gradient_NH

    def _backward_loss(
        self,
        logits_NV: torch.Tensor,
        tokens: TokenBatch,
        weights_N: torch.Tensor,
        teacher: TeacherDistribution | None,
        samples: Sequence[TrainingSample],
        sums: dict[str, float],
    ) -> None:
        """Give `logits_NV` the gradient of a tile's loss, and add the tile to the sums."""
        output = self._method.loss(logits_NV, tokens, teacher)
        check_tile(output.loss_N, tokens, samples)
        loss = (output.loss_N * weights_N).sum()
        loss.backward()
        sums["loss"] += loss.item()
        for name, value in output.sums.items():
            sums[name] += float(value)

    def _clip(self) -> float:
        """Scale the gradient down to `update.max_grad_norm`; returns the norm it had."""
        norm = self._ranks.norm(torch.nn.utils.get_total_norm(self._gradients()))
        torch.nn.utils.clip_grads_with_norm_(self._parameters, self._config.max_grad_norm, norm)
        return float(norm)

    def _find_nonfinite(self, samples: Sequence[TrainingSample], denominator: float) -> NonFinite | None:
        """Which sample's gradient is not finite: each is tried alone, which is slow and happens once. None where it is
        another rank's."""
        for own in self._ranks.turns(samples):
            self._drop_gradients()
            self._backward([one_pass([sample]) for sample in own], denominator)
            if self._ranks.any(not all(bool(gradient.isfinite().all()) for gradient in self._gradients())):
                return NonFinite(own[0], "its gradient") if own else None
        return NonFinite(None, "the norm of the gradient")

    def _gradients(self) -> list[torch.Tensor]:
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]

    def _drop_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _tiles(self, num_tokens: int) -> Iterator[tuple[int, int]]:
        return ((start, min(start + self._tile, num_tokens)) for start in range(0, num_tokens, self._tile))

    @torch.no_grad()
    def _logits(self, hidden_NH: torch.Tensor, temperature: float) -> torch.Tensor:
        logits_NV = self.student.logits(hidden_NH)
        return logits_NV if temperature == 1.0 else logits_NV.div_(temperature)

    def _as_sampled(self, logits_NV: torch.Tensor) -> torch.Tensor:
        """The loss's logits at the sampling temperature."""
        ratio = self._temperature / self._loss_temperature
        return logits_NV if ratio == 1.0 else logits_NV / ratio

    @torch.no_grad()
    def _backward_logits(self, hidden_NH: torch.Tensor, logits_NV: torch.Tensor) -> torch.Tensor:
        """The gradient [N, H] from that in `_logits`'s result; zero where the loss does not depend on it."""
        gradient_NV, logits_NV = logits_NV.grad, logits_NV.detach()
        if gradient_NV is None:
            return torch.zeros_like(hidden_NH)
        if self._loss_temperature != 1.0:
            gradient_NV.div_(self._loss_temperature)
            logits_NV.mul_(self._loss_temperature)
        return self.student.backward_logits(hidden_NH, logits_NV, gradient_NV)


def _counts(micros: Sequence[MicroBatch]) -> dict[str, float]:
    num_read, num_padded = sum(micro.num_tokens for micro in micros), sum(micro.num_padded for micro in micros)
    return {"num_read": float(num_read), "num_padded": float(num_padded)}


def _spread(sample: TrainingSample, trained: Sequence[float]) -> list[float]:
    """The values of a sample's trained tokens as one for every token: 0 where it is not trained."""
    values = iter(trained)
    return [next(values) if mask else 0.0 for mask in sample.loss_mask]
