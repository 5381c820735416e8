"""One optimizer update on one mini-batch: the only place where a gradient is formed.

The loss of every trained token is weighted, summed over the mini-batch and divided once by the sum of the samples'
norms, so the gradient does not depend on how the mini-batch is cut into micro-batches. Trained tokens are projected to
the vocabulary in chunks; a method's `loss` sees one chunk.

Shape suffixes: B sequences, T tokens, N trained tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from accelerate import Accelerator

from harness.config import UpdateConfig
from harness.errors import UserError
from harness.models.forward import LanguageModel, gather_logprobs
from harness.training.batching import PaddedBatch, micro_batches, pad, tokens_between
from harness.training.mismatch import GapMeter
from harness.training.teacher import TeacherScorer, TeacherScores, check_same
from harness.types import TrainingSample
from methods.base import Method


class Updater:
    """Student, optimizer and loss. `teacher` scores for methods that read its distribution, and only for them."""

    def __init__(
        self,
        *,
        student: LanguageModel,
        teacher: TeacherScorer | None,
        method: Method,
        config: UpdateConfig,
        temperature: float,
    ) -> None:
        self.student = student
        self.gap = GapMeter()
        self._teacher = teacher
        self._method = method
        self._config = config
        self._temperature = temperature
        self._accelerator = Accelerator(cpu=student.device.type == "cpu")
        if config.gradient_checkpointing:
            student.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        optimizer = torch.optim.AdamW(
            student.module.parameters(),
            lr=config.learning_rate,
            betas=(config.betas[0], config.betas[1]),
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
        self.optimizer: torch.optim.Optimizer = self._accelerator.prepare(optimizer)

    def fill_old_logprobs(self, samples: Sequence[TrainingSample]) -> int:
        """Give samples with advantages their `old_logprobs`: the engine's, or the trainer's own by a forward pass.

        The trainer's are also taken for a sample that the engine gave none, or not all. One without `rollout_logprobs`
        gets its old ones as such, so that its importance weights are 1. A step's `gap` starts here; where all are
        recomputed it is measured here too, over all of them. Returns the number of tokens that the forward pass read.
        """
        for sample in samples:
            if sample.rollout_logprobs is not None and None in sample.rollout_logprobs:
                sample.rollout_logprobs = [math.nan if value is None else value for value in sample.rollout_logprobs]
        self.gap.start(samples)
        policy = [s for s in samples if s.advantages is not None and s.old_logprobs is None]
        recompute = self._config.old_logprobs == "recompute"
        for sample in policy:
            sample.old_logprobs = sample.rollout_logprobs if _is_complete(sample.rollout_logprobs) else None
        missing = [s for s in policy if not s.inert and (recompute or s.old_logprobs is None)]
        for micro in micro_batches(missing, self._config.micro_batch_size):
            for sample, logprobs in zip(micro, self._sequence_logprobs(micro, measure_gap=recompute), strict=True):
                sample.old_logprobs = logprobs
        for sample in samples:
            if sample.rollout_logprobs is None:
                sample.rollout_logprobs = sample.old_logprobs
        return sum(len(sample.token_ids) for sample in missing)

    def logprobs(self, samples: Sequence[TrainingSample]) -> list[list[float]]:
        """The student's present log-probability of every trained token, 0 elsewhere; in the order of the samples."""
        return self._sequence_logprobs(list(samples), measure_gap=False)

    def update(self, samples: Sequence[TrainingSample], *, measure_gap: bool = False) -> dict[str, float]:
        """One optimizer step. Returns `loss`, `grad_norm` and the method's sums per trained token.

        `measure_gap` adds the tokens to the step's `gap`, for the step's first update; not where `fill_old_logprobs`
        has measured it.
        Raises UserError when the gradient is not finite: the weights are left as they were.
        """
        # A mini-batch of inert samples still is an update with a zero gradient: the optimizer's momentum acts.
        active = [sample for sample in samples if not sample.inert] or list(samples[:1])
        denominator = sum(sample.denominator for sample in samples)
        sums: defaultdict[str, float] = defaultdict(float)
        measure_gap = measure_gap and self.gap.is_empty
        micros = list(micro_batches(active, self._config.micro_batch_size))
        scored = None if self._teacher is None else self._teacher.score(micros)
        for micro in micros:
            batch = pad(micro, self.student.device)
            self.student.module.train(self._config.gradient_checkpointing)  # layers recompute in train mode only
            hidden_NH = self._hidden(self.student, batch)
            self.student.module.eval()
            leaf_NH = hidden_NH.detach().requires_grad_()
            scores = self._teacher_scores(scored, batch)
            measured: list[torch.Tensor] = []
            for start, stop in self._chunks(len(leaf_NH)):
                tokens = tokens_between(batch.tokens, start, stop)
                logits_NV = self._logits(self.student, leaf_NH[start:stop])
                teacher = None if scores is None else scores.between(start, stop).to(self.student.device)
                output = self._method.loss(logits_NV, tokens, teacher)
                loss = (output.loss_N * batch.weights_N[start:stop]).sum() / denominator
                self._accelerator.backward(loss)
                sums["loss"] += loss.item()
                for name, value in output.sums.items():
                    sums[name] += float(value)
                if measure_gap:
                    measured.append(gather_logprobs(logits_NV.detach(), tokens.ids_N))
            if measured:
                self.gap.add(micro, batch.tokens, torch.cat(measured))
            self._accelerator.backward(hidden_NH, gradient=leaf_NH.grad)
        grad_norm = float(
            self._accelerator.clip_grad_norm_(self.student.module.parameters(), self._config.max_grad_norm)
        )
        if not torch.isfinite(torch.tensor(grad_norm)):
            self.optimizer.zero_grad()
            raise UserError(f"the gradient is not finite ({grad_norm}): lower update.learning_rate or use float32")
        self.optimizer.step()
        self.optimizer.zero_grad()
        num_tokens = max(1, sum(sample.num_trained for sample in active))
        metrics = {name: value if name == "loss" else value / num_tokens for name, value in sums.items()}
        return metrics | {"grad_norm": grad_norm}

    def _chunks(self, num_tokens: int) -> Iterator[tuple[int, int]]:
        size = self._config.chunk_tokens
        return ((start, min(start + size, num_tokens)) for start in range(0, num_tokens, size))

    def _hidden(self, model: LanguageModel, batch: PaddedBatch) -> torch.Tensor:
        return model.hidden(batch.ids_BT, batch.mask_BT, media=batch.media)[batch.rows_N, batch.columns_N]

    def _logits(self, model: LanguageModel, hidden_NH: torch.Tensor) -> torch.Tensor:
        return model.logits(hidden_NH) / self._temperature

    @staticmethod
    def _teacher_scores(scored: Iterator[TeacherScores] | None, student: PaddedBatch) -> TeacherScores | None:
        """The teacher's next micro-batch, which has to be the student's; raises RuntimeError where it is not."""
        if scored is None:
            return None
        scores = next(scored)
        check_same(scores, student)
        return scores

    @torch.no_grad()
    def _sequence_logprobs(self, micro: list[TrainingSample], *, measure_gap: bool) -> list[list[float]]:
        batch = pad(micro, self.student.device)
        hidden_NH = self._hidden(self.student, batch)
        chunks = [
            gather_logprobs(self._logits(self.student, hidden_NH[a:b]), batch.tokens.ids_N[a:b])
            for a, b in self._chunks(len(hidden_NH))
        ]
        values_N = torch.cat(chunks)
        if measure_gap:
            self.gap.add(micro, batch.tokens, values_N)
        logprobs = [[0.0] * len(sample.token_ids) for sample in micro]
        for row, column, value in zip(batch.rows_N.tolist(), batch.columns_N.tolist(), values_N.tolist(), strict=True):
            logprobs[row][column + 1] = value
        return logprobs


def _is_complete(logprobs: Sequence[float] | None) -> bool:
    return logprobs is not None and math.isfinite(sum(logprobs))
