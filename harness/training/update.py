"""One optimizer update on one mini-batch: the only place where a gradient is formed.

The loss of every trained token is weighted, summed over the mini-batch and divided once by the sum of the samples'
norms, so the gradient does not depend on how the mini-batch is cut into micro-batches. Trained tokens are projected to
the vocabulary in chunks; a method's `loss` sees one chunk.

Shape suffixes: B sequences, T tokens, N trained tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from accelerate import Accelerator

from harness.config import UpdateConfig
from harness.errors import UserError
from harness.models.forward import LanguageModel, gather_logprobs
from harness.training.batching import PaddedBatch, micro_batches, pad, pad_for_teacher, tokens_between
from harness.types import TeacherDistribution, TrainingSample
from methods.base import Method


class Updater:
    """Student, optimizer and loss. `teacher` is given only to methods that read its distribution."""

    def __init__(
        self,
        *,
        student: LanguageModel,
        teacher: LanguageModel | None,
        method: Method,
        config: UpdateConfig,
        temperature: float,
    ) -> None:
        self.student = student
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

        Returns the number of tokens that this forward pass read.
        """
        policy = [s for s in samples if s.advantages is not None and s.old_logprobs is None]
        recompute = self._config.old_logprobs == "recompute"
        missing = [s for s in policy if not s.inert and (recompute or s.rollout_logprobs is None)]
        for sample in policy:
            sample.old_logprobs = sample.rollout_logprobs
        for micro in micro_batches(missing, self._config.micro_batch_size):
            for sample, logprobs in zip(micro, self._sequence_logprobs(micro), strict=True):
                sample.old_logprobs = logprobs
        return sum(len(sample.token_ids) for sample in missing)

    def update(self, samples: Sequence[TrainingSample], *, measure_gap: bool = False) -> dict[str, float]:
        """One optimizer step. Returns `loss`, `grad_norm` and the method's sums per trained token.

        `measure_gap` adds `logprob_gap_max`, the largest |trainer - engine| log-probability of a sampled token.
        Raises UserError when the gradient is not finite: the weights are left as they were.
        """
        # A mini-batch of inert samples still is an update with a zero gradient: the optimizer's momentum acts.
        active = [sample for sample in samples if not sample.inert] or list(samples[:1])
        denominator = sum(sample.denominator for sample in samples)
        sums: defaultdict[str, float] = defaultdict(float)
        gap = 0.0
        for micro in micro_batches(active, self._config.micro_batch_size):
            batch = pad(micro, self.student.device)
            self.student.module.train(self._config.gradient_checkpointing)  # layers recompute in train mode only
            hidden_NH = self._hidden(self.student, batch)
            self.student.module.eval()
            leaf_NH = hidden_NH.detach().requires_grad_()
            teacher_NH = self._teacher_hidden(micro, batch)
            for start, stop in self._chunks(len(leaf_NH)):
                tokens = tokens_between(batch.tokens, start, stop)
                logits_NV = self._logits(self.student, leaf_NH[start:stop])
                teacher = None if teacher_NH is None else self._teacher_distribution(teacher_NH[start:stop])
                output = self._method.loss(logits_NV, tokens, teacher)
                loss = (output.loss_N * batch.weights_N[start:stop]).sum() / denominator
                self._accelerator.backward(loss)
                sums["loss"] += loss.item()
                for name, value in output.sums.items():
                    sums[name] += float(value)
                if measure_gap:
                    gap = max(gap, _gap(logits_NV, tokens.ids_N, tokens.rollout_logprobs_N))
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
        return metrics | {"grad_norm": grad_norm} | ({"logprob_gap_max": gap} if measure_gap else {})

    def _chunks(self, num_tokens: int) -> Iterator[tuple[int, int]]:
        size = self._config.chunk_tokens
        return ((start, min(start + size, num_tokens)) for start in range(0, num_tokens, size))

    def _hidden(self, model: LanguageModel, batch: PaddedBatch) -> torch.Tensor:
        return model.hidden(batch.ids_BT, batch.mask_BT, media=batch.media)[batch.rows_N, batch.columns_N]

    def _logits(self, model: LanguageModel, hidden_NH: torch.Tensor) -> torch.Tensor:
        return model.logits(hidden_NH) / self._temperature

    @torch.no_grad()
    def _teacher_hidden(self, micro: Sequence[TrainingSample], student: PaddedBatch) -> torch.Tensor | None:
        """The teacher's hidden states at the student's trained tokens.

        Raises RuntimeError where the two would score other completion ids or see other media.
        """
        if self._teacher is None:
            return None
        batch = pad_for_teacher(micro, self._teacher.device)
        same_ids = batch.tokens.ids_N.tolist() == student.tokens.ids_N.tolist()
        if not same_ids or _digests(batch) != _digests(student):
            raise RuntimeError("teacher and student were given different completions or different media")
        return self._hidden(self._teacher, batch)

    @torch.no_grad()
    def _teacher_distribution(self, hidden_NH: torch.Tensor) -> TeacherDistribution:
        assert self._teacher is not None
        return TeacherDistribution(logits_NV=self._logits(self._teacher, hidden_NH).to(self.student.device))

    @torch.no_grad()
    def _sequence_logprobs(self, micro: list[TrainingSample]) -> list[list[float]]:
        batch = pad(micro, self.student.device)
        hidden_NH = self._hidden(self.student, batch)
        values = [
            gather_logprobs(self._logits(self.student, hidden_NH[a:b]), batch.tokens.ids_N[a:b])
            for a, b in self._chunks(len(hidden_NH))
        ]
        logprobs = [[0.0] * len(sample.token_ids) for sample in micro]
        for row, column, value in zip(
            batch.rows_N.tolist(), batch.columns_N.tolist(), torch.cat(values).tolist(), strict=True
        ):
            logprobs[row][column + 1] = value
        return logprobs


def _digests(batch: PaddedBatch) -> list[str | None]:
    return [None if media is None else media.digest for media in batch.media]


@torch.no_grad()
def _gap(logits_NV: torch.Tensor, ids_N: torch.Tensor, rollout_logprobs_N: torch.Tensor) -> float:
    return float((gather_logprobs(logits_NV, ids_N) - rollout_logprobs_N).abs().max())
