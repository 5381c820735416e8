"""A teacher that this process holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from harness.models.batching import pad_for_teacher
from harness.models.forward import LanguageModel
from harness.teacher.base import HiddenScores, Samples, digests_of, hidden_of


class LocalScorer:
    """A teacher in this process. A micro-batch is scored when it is asked for."""

    def __init__(self, model: LanguageModel, temperature: float) -> None:
        self._model = model
        self._temperature = temperature

    def score(self, micro_batches: Sequence[Samples]) -> Iterator[HiddenScores]:
        return map(self._score, micro_batches)

    def close(self) -> None:
        """Nothing to free."""

    def _score(self, samples: Samples) -> HiddenScores:
        batch = pad_for_teacher(samples, self._model.device, share=self._model.can_share_prompts)
        return HiddenScores(
            head=self._model,
            compute=torch.no_grad()(lambda: hidden_of(self._model, batch)),
            temperature=self._temperature,
            ids_N=batch.tokens.ids_N.tolist(),
            digests=digests_of(batch),
        )
