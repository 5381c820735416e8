"""Numbers that are not finite: found before the optimizer moves, with the sample that they come from.

N trained tokens, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch

from harness.types import TokenBatch, TrainingSample

OF_UPDATE = "lower update.learning_rate, or use a wider student.dtype"
OF_CREDIT = "correct what rewards the rollouts or forms their advantages (the method's `credit`, the judge)"
OF_ENGINE = "it calls a token impossible that it has sampled: use another engine, such as rollout=transformers"


class NonFinite(Exception):
    """`what` of `sample` is not finite; None where no single sample shows it. `remedy` is half a line."""

    def __init__(self, sample: TrainingSample | None, what: str, remedy: str = OF_UPDATE) -> None:
        whose = "the mini-batch" if sample is None else f"sample {sample.uid}"
        super().__init__(f"{what} is not finite ({whose})")
        self.sample = sample
        self.what = what
        self.remedy = remedy


def check_samples(samples: Sequence[TrainingSample]) -> None:
    """The step's samples, with their `old_logprobs`, before its first update: all or none of its updates are made.

    Raises NonFinite for the first sample with a reward that is not finite. Only where all are, it is for the first with
    such a norm, advantage, weight or log-probability. Advantages are formed over all groups, so that one reward spoils
    those of every sample. A `rollout_logprobs` of NaN is one that the engine did not give, which is no error: those
    old ones are the trainer's.
    """
    for read, remedy in (
        (_rewards, OF_CREDIT),
        (_of_credit, OF_CREDIT),
        (_of_trainer, OF_UPDATE),
        (_of_engine, OF_ENGINE),
    ):
        _check_numbers(samples, read, remedy)


def check_tile(loss_N: torch.Tensor, tokens: TokenBatch, samples: Sequence[TrainingSample]) -> None:
    """Raises NonFinite for the first token whose loss is not finite, which that of a logit is not either."""
    _check(loss_N.detach().isfinite(), "the loss", tokens, samples)


def check_gradient(gradient_NH: torch.Tensor, tokens: TokenBatch, samples: Sequence[TrainingSample]) -> None:
    """Raises NonFinite for the first token whose hidden state has a gradient that is not finite."""
    _check(gradient_NH.isfinite().all(-1), "the gradient of the logits", tokens, samples)


_Numbers = Iterator[tuple[str, Sequence[float]]]


def _check_numbers(samples: Sequence[TrainingSample], read: Callable[[TrainingSample], _Numbers], remedy: str) -> None:
    for sample in samples:
        for what, values in read(sample):
            # A sum of finite numbers is finite unless it overflows; then they are looked at one by one.
            if not math.isfinite(sum(values)) and not all(map(math.isfinite, values)):
                raise NonFinite(sample, what, remedy)


def _rewards(sample: TrainingSample) -> _Numbers:
    if (rollout := sample.rollout) is not None:
        yield "the reward", (rollout.reward,)
        yield "the training reward", (rollout.training_reward or 0.0,)


def _of_credit(sample: TrainingSample) -> _Numbers:
    yield "the norm", (sample.denominator,)
    yield "an advantage", sample.advantages or ()
    yield "a weight", sample.weights or ()


def _of_trainer(sample: TrainingSample) -> _Numbers:
    yield "an old log-probability", sample.old_logprobs or ()


def _of_engine(sample: TrainingSample) -> _Numbers:
    yield "a log-probability of the engine", [v for v in sample.rollout_logprobs or () if not math.isnan(v)]


def _check(finite_N: torch.Tensor, what: str, tokens: TokenBatch, samples: Sequence[TrainingSample]) -> None:
    if not bool(finite_N.all()):
        first = int((~finite_N).nonzero()[0, 0])
        sample = samples[int(tokens.sequence_N[first])]
        raise NonFinite(sample, f"{what} of token id {int(tokens.ids_N[first])}")
