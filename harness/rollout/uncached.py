"""Sampling without a cache, for models whose decoder keeps none: every token reads all before it again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from harness.models.forward import LanguageModel

if TYPE_CHECKING:
    from harness.models.forward import Media


class Uncached:
    """The unfinished sequences of a batch, and the logits [R, V] of the next token of each."""

    def __init__(self, model: LanguageModel, given: Sequence[Sequence[int]], media: Media) -> None:
        """`given` are the ids of each sequence so far, and `media` those of its prompt."""
        self._model = model
        longest = max(map(len, given))
        rows = [F.pad(torch.tensor(ids), (0, longest - len(ids))) for ids in given]
        self._ids_RT = torch.stack(rows).to(model.device)
        self._counts_R = torch.tensor([len(ids) for ids in given], device=model.device)
        self._media = list(media)
        self.logits_RV = self._read()

    def keep(self, rows_R: torch.Tensor) -> None:
        """Take the rows of these numbers. `logits_RV` is left to the next step."""
        self._ids_RT, self._counts_R = self._ids_RT[rows_R], self._counts_R[rows_R]
        self._media = [self._media[row] for row in rows_R.tolist()]

    def step(self, ids_R: torch.Tensor) -> None:
        """Append one token a row."""
        self._ids_RT = F.pad(self._ids_RT, (0, 1))
        self._ids_RT.scatter_(1, self._counts_R.unsqueeze(1), ids_R.unsqueeze(1))
        self._counts_R = self._counts_R + 1
        self.logits_RV = self._read()

    def _read(self) -> torch.Tensor:
        mask_RT = (torch.arange(self._ids_RT.shape[1], device=self._model.device) < self._counts_R.unsqueeze(1)).long()
        hidden_RTH = self._model.hidden(self._ids_RT, mask_RT, media=self._media)
        rows_R = torch.arange(len(hidden_RTH), device=self._model.device)
        return self._model.logits(hidden_RTH[rows_R, self._counts_R - 1])
