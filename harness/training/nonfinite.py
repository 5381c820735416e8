"""Numbers that are not finite: found before the optimizer moves, with the sample that they come from.

N trained tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness.types import TokenBatch, TrainingSample


class NonFinite(Exception):
    """`what` of `sample` is not finite; None where no single sample shows it."""

    def __init__(self, sample: TrainingSample | None, what: str) -> None:
        whose = "the mini-batch" if sample is None else f"sample {sample.uid}"
        super().__init__(f"{what} is not finite ({whose})")
        self.sample = sample


def check_tile(loss_N: torch.Tensor, tokens: TokenBatch, samples: Sequence[TrainingSample]) -> None:
    """Raises NonFinite for the first token whose loss is not finite, which that of a logit is not either."""
    _check(loss_N.detach().isfinite(), "the loss", tokens, samples)


def check_gradient(gradient_NH: torch.Tensor, tokens: TokenBatch, samples: Sequence[TrainingSample]) -> None:
    """Raises NonFinite for the first token whose hidden state has a gradient that is not finite."""
    _check(gradient_NH.isfinite().all(-1), "the gradient of the logits", tokens, samples)


def _check(finite_N: torch.Tensor, what: str, tokens: TokenBatch, samples: Sequence[TrainingSample]) -> None:
    if not bool(finite_N.all()):
        first = int((~finite_N).nonzero()[0, 0])
        sample = samples[int(tokens.sequence_N[first])]
        raise NonFinite(sample, f"{what} of token id {int(tokens.ids_N[first])}")
