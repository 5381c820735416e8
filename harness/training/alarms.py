"""Entropy collapse and ratio explosion: a warning and its samples, while the run goes on."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence

from harness.config.schema import AlarmConfig
from harness.records.folder import RunFolder
from harness.types import TrainingSample

logger = logging.getLogger(__name__)

NUM_SAMPLES = 8
"""Samples of an alarm that are saved."""
MAX_ALARMS = 10
"""Files of each kind."""
MAX_LOG_RATIO = 20.0
"""exp stays finite where one side calls a sampled token impossible."""
Logprobs = Callable[[Sequence[TrainingSample]], list[list[float]]]
Figures = list[tuple[TrainingSample, float]]


class Alarms:
    """Compares the mean `entropy` and `ratio` of each of a step's updates, which policy-gradient losses report, with
    the limits of `config`.

    An update's figures are sums over its tokens, so which samples they come from is looked up when an alarm is raised:

    - entropy: those with the least mean -log-probability of their tokens when they were sampled, in nats. That is an
      estimate of the mean entropy from one draw a token, and costs nothing;
    - ratio: those with the largest exp(present - old log-probability) of a token. The present ones are of the weights
      after the step's last update, and cost a forward pass over the step's samples (`logprobs`).

    A file has the `NUM_SAMPLES` worst. `MAX_ALARMS` files of each kind are written and logged; later ones are only
    counted in the metrics. What was kept is read off the folder, so a resumed run goes on counting.
    """

    def __init__(self, config: AlarmConfig, folder: RunFolder, *, logprobs: Logprobs) -> None:
        self._config = config
        self._folder = folder
        self._logprobs = logprobs

    def check(
        self, step: int, updates: Sequence[Mapping[str, float]], samples: Sequence[TrainingSample]
    ) -> dict[str, float]:
        """`alarm/entropy` and `alarm/ratio` of a step: 1 where an update is beyond the limit, else 0; neither where it
        has no such figure or no limit."""
        entropies = [row["entropy"] for row in updates if "entropy" in row]
        ratios = [row["ratio"] for row in updates if "ratio" in row]
        metrics: dict[str, float] = {}
        least, most = self._config.min_entropy, self._config.max_ratio
        if entropies and least is not None:
            metrics["alarm/entropy"] = float(min(entropies) < least)
            if metrics["alarm/entropy"]:
                text = f"entropy collapses: an update's mean is {min(entropies):.3g} nats a token"
                self._raise(step, "entropy", text, least, lambda: least_entropy(samples))
        if ratios and most is not None:
            metrics["alarm/ratio"] = float(max(ratios) > most)
            if metrics["alarm/ratio"]:
                text = f"the policy leaves the one that sampled: an update's mean ratio is {max(ratios):.3g}"
                self._raise(step, "ratio", text, most, lambda: self._largest_ratios(samples))
        return metrics

    def _raise(self, step: int, name: str, text: str, limit: float, find: Callable[[], Figures]) -> None:
        if self._folder.num_alarms(name) >= MAX_ALARMS:
            return
        saved = self._folder.write_alarm(step, name, {"reason": text, "limit": limit}, find()[:NUM_SAMPLES])
        logger.warning("step %d: %s (alarms.*: limit %g); samples are in %s", step, text, limit, saved)

    def _largest_ratios(self, samples: Sequence[TrainingSample]) -> Figures:
        active = [s for s in samples if s.old_logprobs is not None and not s.inert]
        found: Figures = []
        for sample, present in zip(active, self._logprobs(active), strict=True):
            assert sample.old_logprobs is not None
            tokens = zip(present, sample.old_logprobs, sample.loss_mask, strict=True)
            largest = max((new - old for new, old, trained in tokens if trained), default=-math.inf)
            found.append((sample, math.exp(min(largest, MAX_LOG_RATIO))))
        return sorted(found, key=lambda pair: pair[1], reverse=True)


def least_entropy(samples: Sequence[TrainingSample]) -> Figures:
    """Samples with a gradient and the mean -log-probability of their trained tokens, in nats, least first."""
    found = [
        (s, -sum(v for v, trained in zip(s.old_logprobs, s.loss_mask, strict=True) if trained) / s.num_trained)
        for s in samples
        if s.old_logprobs is not None and not s.inert and s.num_trained
    ]
    return sorted(found, key=lambda pair: pair[1])
