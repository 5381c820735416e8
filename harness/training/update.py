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
from collections.abc import Iterator, Mapping, Sequence

import torch
from accelerate import Accelerator

from harness.config.schema import UpdateConfig
from harness.models.cpu import keep_freed_memory
from harness.models.forward import LanguageModel
from harness.process.preemption import at, interruptible
from harness.process.step_clock import StepClock
from harness.training.batching import MicroBatch, PaddedBatch, micro_batches, pad, tokens_between
from harness.training.memory import tile_tokens
from harness.training.mismatch import GapMeter
from harness.training.nonfinite import NonFinite, check_gradient, check_tile
from harness.training.optimizer import make_optimizer
from harness.training.teacher import TeacherScorer, TeacherScores, check_same, hidden_of
from harness.training.weights import Weights, WholeWeights
from harness.types import TeacherDistribution, TokenBatch, TrainingSample
from methods.base import Method, token_logprobs


class Updater:
    """Student, optimizer and loss. `teacher` scores for methods that read its distribution, and only for them.

    Raises UserError where `update.logit_memory_mb` does not hold the logits of one token, or the optimizer is not
    installed.
    """

    def __init__(
        self,
        *,
        student: LanguageModel,
        teacher: TeacherScorer | None,
        method: Method,
        config: UpdateConfig,
        temperature: float,
        clock: StepClock | None = None,
    ) -> None:
        self.student = student
        self.gap = GapMeter()
        self._teacher = teacher
        self._method = method
        self._config = config
        self._temperature = temperature
        self._loss_temperature = method.logit_temperature(temperature)
        self._clock = clock or StepClock()
        self._tile = tile_tokens(student.num_tokens, config.logit_memory_mb)
        self._share = config.share_prompts and not config.gradient_checkpointing and student.can_share_prompts
        if student.device.type == "cpu":
            keep_freed_memory()
        if config.gradient_checkpointing:
            student.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.optimizer = self._make_optimizer()

    @property
    def weights(self) -> Weights:
        """What a checkpoint has of student and optimizer."""
        return WholeWeights(self.student.module, self.optimizer)

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
            sample.old_logprobs = sample.rollout_logprobs if _is_complete(sample.rollout_logprobs) else None
        missing = [s for s in policy if not s.inert and (recompute or s.old_logprobs is None)]
        num_read = self._read_old(missing, measure_gap=recompute)
        for sample in samples:
            if sample.rollout_logprobs is None:
                sample.rollout_logprobs = sample.old_logprobs
        return num_read

    def _read_old(self, samples: Sequence[TrainingSample], *, measure_gap: bool) -> int:
        """Set the samples' `old_logprobs` by forward passes; returns how many tokens they read."""
        micros = self._cut(samples)
        for micro in micros:
            for sample, logprobs in zip(micro.samples, self._logprobs(micro, measure_gap=measure_gap), strict=True):
                sample.old_logprobs = logprobs
        return sum(micro.num_tokens for micro in micros)

    def logprobs(self, samples: Sequence[TrainingSample]) -> list[list[float]]:
        """The student's present log-probability of every trained token, 0 elsewhere; in the order of the samples."""
        return self._logprobs(MicroBatch(samples=list(samples)), measure_gap=False)

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
        micros = self._cut(active)
        measure_gap = measure_gap and self.gap.is_empty
        try:
            with interruptible():  # until here no weight has moved
                sums = self._backward(micros, denominator, measure_gap=measure_gap)
                grad_norm = self._clip()
                if not math.isfinite(grad_norm):
                    raise self._find_nonfinite(active, denominator)
        except BaseException:
            self.optimizer.zero_grad()
            raise
        self.optimizer.step()
        self.optimizer.zero_grad()
        num_read, num_padded = sum(micro.num_tokens for micro in micros), sum(micro.num_padded for micro in micros)
        return self._metrics(sums, active, grad_norm, num_read, num_padded)

    @staticmethod
    def _metrics(
        sums: Mapping[str, float], active: Sequence[TrainingSample], grad_norm: float, num_read: int, num_padded: int
    ) -> dict[str, float]:
        num_tokens = max(1, sum(sample.num_trained for sample in active))
        metrics = {name: value if name == "loss" else value / num_tokens for name, value in sums.items()}
        return metrics | {"grad_norm": grad_norm, "num_read": float(num_read), "num_padded": float(num_padded)}

    def _backward(self, micros: Sequence[MicroBatch], denominator: float, *, measure_gap: bool) -> dict[str, float]:
        """Add the gradient of the mini-batch to the parameters'; returns the loss and token sums."""
        sums: defaultdict[str, float] = defaultdict(float)
        scored = self._scored(micros)
        for micro in micros:
            self._pass(micro, denominator, scored, sums, measure_gap=measure_gap)
        return sums

    def _scored(self, micros: Sequence[MicroBatch]) -> Iterator[TeacherScores] | None:
        return None if self._teacher is None else self._teacher.score([micro.samples for micro in micros])

    def _pass(
        self,
        micro: MicroBatch,
        denominator: float,
        scored: Iterator[TeacherScores] | None,
        sums: dict[str, float],
        *,
        measure_gap: bool,
    ) -> None:
        """Forward and backward of one micro-batch."""
        batch = pad(micro, self.student.device)
        hidden_NH = self._hidden(batch)
        gradient_NH = self._head_gradient(micro, batch, hidden_NH.detach(), denominator, scored, sums, measure_gap)
        self._through_layers(hidden_NH, gradient_NH)

    @staticmethod
    def _through_layers(hidden_NH: torch.Tensor, gradient_NH: torch.Tensor) -> None:
        hidden_NH.backward(gradient_NH)

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
        measure_gap: bool,
    ) -> torch.Tensor:
        """The gradient in the hidden states [N, H], tile by tile; the head's is added to it on the way."""
        with self._clock.running("teacher"):
            scores = self._teacher_scores(scored, batch)
        if scores is not None:
            at("scored")
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
            if measure_gap:
                measured.append(token_logprobs(self._as_sampled(logits_NV), tokens.ids_N))
            self._backward_loss(logits_NV.requires_grad_(), tokens, weights_N, teacher, micro.samples, sums)
            gradient_NH[start:stop] = self._backward_logits(states_NH, logits_NV)
            del logits_NV, teacher  # before the next ones are made
        if measured:
            self._note_logprobs(micro.samples, batch.tokens, torch.cat(measured))
        check_gradient(gradient_NH, batch.tokens, micro.samples)
        return gradient_NH

    def _note_logprobs(self, samples: Sequence[TrainingSample], tokens: TokenBatch, logprobs_N: torch.Tensor) -> None:
        self.gap.add(samples, tokens, logprobs_N)

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

    def _make_optimizer(self) -> torch.optim.Optimizer:
        self._accelerator = Accelerator(cpu=self.student.device.type == "cpu")
        optimizer = make_optimizer(list(self.student.module.parameters()), self._config)
        return self._accelerator.prepare(optimizer)

    def _clip(self) -> float:
        """Scale the gradient down to `update.max_grad_norm`; returns the norm it had."""
        parameters = self.student.module.parameters()
        return float(self._accelerator.clip_grad_norm_(parameters, self._config.max_grad_norm))

    def _find_nonfinite(self, samples: Sequence[TrainingSample], denominator: float) -> Exception:
        """Which sample's gradient is not finite: each is tried alone, which is slow and happens once."""
        for sample in samples:
            self.optimizer.zero_grad()
            self._backward([MicroBatch(samples=[sample])], denominator, measure_gap=False)
            gradients = [p.grad for p in self.student.module.parameters() if p.grad is not None]
            if not all(bool(gradient.isfinite().all()) for gradient in gradients):
                return NonFinite(sample, "its gradient")
        return NonFinite(None, "the norm of the gradient")

    def _cut(self, samples: Sequence[TrainingSample]) -> list[MicroBatch]:
        return micro_batches(samples, self._config.micro_batch_tokens, share=self._share)

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

    @staticmethod
    def _teacher_scores(scored: Iterator[TeacherScores] | None, student: PaddedBatch) -> TeacherScores | None:
        """The teacher's next micro-batch, which has to be the student's; raises RuntimeError where it is not."""
        if scored is None:
            return None
        scores = next(scored)
        check_same(scores, student)
        return scores

    @torch.no_grad()
    def _logprobs(self, micro: MicroBatch, *, measure_gap: bool) -> list[list[float]]:
        batch = pad(micro, self.student.device)
        hidden_NH = hidden_of(self.student, batch)
        tiles = [
            token_logprobs(self._logits(hidden_NH[a:b], self._temperature), batch.tokens.ids_N[a:b])
            for a, b in self._tiles(len(hidden_NH))
        ]
        values_N = torch.cat(tiles)
        if measure_gap:
            self._note_logprobs(micro.samples, batch.tokens, values_N)
        logprobs = [[0.0] * len(sample.token_ids) for sample in micro.samples]
        for row, position, value in zip(batch.rows_N.tolist(), batch.positions_N, values_N.tolist(), strict=True):
            logprobs[row][position] = value
        return logprobs


def _is_complete(logprobs: Sequence[float] | None) -> bool:
    return logprobs is not None and math.isfinite(sum(logprobs))
