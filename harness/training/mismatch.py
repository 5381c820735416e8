"""How far the trainer's log-probabilities are from those of the engine that sampled.

Two implementations of one model differ by rounding; a wrong temperature, template, mask or dtype makes them differ by
more. The surrogate then corrects for a policy that did not sample, so the gap is measured in every step.

Shape suffixes: B sequences of a micro-batch, N trained tokens.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness.types import TokenBatch, TrainingSample

logger = logging.getLogger(__name__)

BUCKETS = (256, 1024, 4096)
"""Longest completion, in tokens, of each bucket; what is longer is in the bucket `long`."""
ALARM_MAX = 1.0
"""nats: a token that is e times likelier on one side is no rounding."""
ALARM_K3_KL = 0.1
"""nats a token."""
MAX_LOG_RATIO = 20.0
"""exp stays finite where one side calls a sampled token impossible."""


@dataclass
class _Sums:
    num_tokens: int = 0
    absolute: float = 0.0
    k3: float = 0.0

    def metrics(self, suffix: str = "") -> dict[str, float]:
        return {
            f"mismatch/mean{suffix}": self.absolute / self.num_tokens,
            f"mismatch/k3_kl{suffix}": self.k3 / self.num_tokens,
        }


class GapMeter:
    """Trainer minus engine log-probability of the sampled tokens, in nats, one step after another.

    It has to be fed while the trainer's weights are those that sampled, before the step's first update changes them.
    What no engine of the student sampled (`rollout_logprobs` is None) does not count; where the engine gave no finite
    log-probability the token is left out and counted.

    `mismatch/k3_kl` is the mean of r - 1 - log r with r = exp(trainer - engine). The tokens are drawn from the engine's
    distribution q. With the trainer's p the mean is E_q[p / q] - 1 + E_q[log q - log p] = KL(q || p): it estimates
    KL(engine || trainer), and no term is negative (k3 of Schulman, http://joschu.net/blog/kl-approx.html).
    """

    def __init__(self) -> None:
        self._warned = False
        self.start(())

    def start(self, samples: Sequence[TrainingSample]) -> None:
        """Begin a step with its samples as `credit` made them; later it is not seen any more who sampled them."""
        self._bucket_of = {
            id(sample): bisect_left(BUCKETS, len(sample.token_ids) - sample.num_prompt)
            for sample in samples
            if sample.rollout_logprobs is not None and sample.num_trained
        }
        self._buckets = [_Sums() for _ in range(len(BUCKETS) + 1)]
        self._max = 0.0
        self._num_missing = 0

    def state_dict(self) -> dict[str, Any]:
        """What the step has added up so far, JSON values only."""
        return {
            "buckets": [[sums.num_tokens, sums.absolute, sums.k3] for sums in self._buckets],
            "max": self._max,
            "num_missing": self._num_missing,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on in the middle of a step that has been begun with `start`."""
        self._buckets = [_Sums(*values) for values in state["buckets"]]
        self._max, self._num_missing = state["max"], state["num_missing"]

    @property
    def is_empty(self) -> bool:
        return not self._num_missing and not any(sums.num_tokens for sums in self._buckets)

    def add(self, samples: Sequence[TrainingSample], tokens: TokenBatch, logprobs_N: torch.Tensor) -> None:
        """The trained tokens of a micro-batch, the engine's log-probabilities among them, and the trainer's.

        `tokens.sequence_N` are indices into `samples`. Samples that the step did not start with are left out.
        """
        bucket_B = torch.tensor([self._bucket_of.get(id(sample), -1) for sample in samples])
        bucket_N = bucket_B[tokens.sequence_N.cpu()]
        gap_N = logprobs_N.detach().cpu().double() - tokens.rollout_logprobs_N.cpu().double()
        known_N = gap_N.isfinite()
        self._num_missing += int((~known_N & (bucket_N >= 0)).sum())
        for bucket, sums in enumerate(self._buckets):
            gap_M = gap_N[known_N & (bucket_N == bucket)]
            if len(gap_M):
                sums.num_tokens += len(gap_M)
                sums.absolute += float(gap_M.abs().sum())
                sums.k3 += float((torch.expm1(gap_M.clamp(max=MAX_LOG_RATIO)) - gap_M).clamp(min=0).sum())
                self._max = max(self._max, float(gap_M.abs().max()))

    def finish(self) -> dict[str, float]:
        """End the step: its `mismatch/*`, none where the student sampled nothing.

        The first step of a run whose gap is more than rounding is logged as a warning.
        """
        metrics = {} if self.is_empty else self._metrics()
        self.start(())
        if not self._warned and (message := alarm(metrics)):
            logger.warning(message)
            self._warned = True
        return metrics

    def _metrics(self) -> dict[str, float]:
        total = _Sums(
            num_tokens=sum(s.num_tokens for s in self._buckets),
            absolute=sum(s.absolute for s in self._buckets),
            k3=sum(s.k3 for s in self._buckets),
        )
        metrics = {
            "mismatch/num_tokens": float(total.num_tokens),
            "mismatch/num_missing": float(self._num_missing),
        }
        if not total.num_tokens:
            return metrics
        metrics |= {"mismatch/max": self._max} | total.metrics()
        for name, sums in zip((*BUCKETS, "long"), self._buckets, strict=True):
            if sums.num_tokens:
                metrics |= sums.metrics(f"@{name}")
        return metrics


def alarm(metrics: Mapping[str, float]) -> str | None:
    """What a step's gap means and what helps, in one line; None while it can be rounding."""
    largest, kl = metrics.get("mismatch/max", 0.0), metrics.get("mismatch/k3_kl", 0.0)
    if largest <= ALARM_MAX and kl <= ALARM_K3_KL:
        return None
    return (
        f"the engine's log-probabilities are not the trainer's (mismatch/max {largest:.3g}, mismatch/k3_kl {kl:.3g} "
        "nats): another policy than the trained one samples; set update.old_logprobs=recompute with "
        "method.importance_cap=2, or a wider student.dtype"
    )
