"""The optimizer updates of one rollout step, which a run may be stopped between and go on between."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from harness.config.schema import UpdateConfig
from harness.errors import UserError
from harness.process.preemption import fault_point, interruptible, raise_if_preempted
from harness.records.folder import RunFolder
from harness.training import metrics
from harness.training.alarms import Alarms
from harness.training.checkpoint import rng_state, set_rng_state
from harness.training.dealing import Dealt, mini_batches
from harness.training.nonfinite import NonFinite, check_samples
from harness.training.update import Updater
from harness.types import TrainingSample

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Progress:
    """How far a step's updates are. With its stored rollouts and the weights this is all that the others need."""

    old_logprobs: list[list[float] | None]
    """Log-probabilities of the step's samples, in the order of `credit`: moved weights do not give them again."""
    num_rescored: int
    num_done: int = 0
    """Mini-batches, those that were left out included."""
    num_skipped: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    gap: dict[str, Any] = field(default_factory=dict)
    rng: dict[str, Any] = field(default_factory=dict)

    def note(self, number: int, gap: dict[str, Any]) -> None:
        self.num_done, self.gap, self.rng = number, gap, rng_state()

    def pack(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """JSON values and tensors, without the random streams."""
        lengths = [None if values is None else len(values) for values in self.old_logprobs]
        flat = [value for values in self.old_logprobs for value in values or ()]
        names = ("num_rescored", "num_done", "num_skipped", "rows", "gap")
        state = {name: getattr(self, name) for name in names} | {"lengths": lengths}
        return state, {"old_logprobs": torch.tensor(flat, dtype=torch.float64)}

    @classmethod
    def unpack(cls, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], rng: dict[str, Any]) -> Progress:
        flat = iter(tensors["old_logprobs"].tolist())
        lengths = state["lengths"]
        old_logprobs = [None if length is None else [next(flat) for _ in range(length)] for length in lengths]
        values = {key: value for key, value in state.items() if key != "lengths"}
        return cls(old_logprobs=old_logprobs, rng=rng, **values)


class StepUpdates:
    """Runs the updates of step after step.

    `progress` is that of the step under way, None between steps; one that is given is that of the first step to run.
    """

    def __init__(
        self,
        updater: Updater,
        alarms: Alarms,
        folder: RunFolder,
        config: UpdateConfig,
        *,
        teacher_scores: bool,
        progress: Progress | None = None,
    ) -> None:
        self._updater = updater
        self._alarms = alarms
        self._folder = folder
        self._config = config
        self._teacher_scores = teacher_scores
        self.progress = progress

    def run(self, step: int, samples: Sequence[TrainingSample], dealt: Dealt) -> dict[str, float]:
        """The updates of a step, one a mini-batch; their metrics averaged over those that were made."""
        progress = self.progress = self._begin(samples)
        parts = mini_batches(samples, dealt)
        made = list(filter(None, parts))
        try:
            check_samples(samples)
        except NonFinite as error:
            self._note_nonfinite(step, 0, error)
            made, progress.num_skipped = [], len(made)
        for number, part in enumerate(made, 1):
            if number > progress.num_done:
                self._update(step, number, part)
        rows, self.progress = progress.rows, None
        num_read, num_padded = (int(sum(r.pop(name) for r in rows)) for name in ("num_read", "num_padded"))
        row = metrics.token_metrics(
            samples,
            num_updated=num_read,
            num_rescored=progress.num_rescored,
            teacher_scores=self._teacher_scores,
        )
        row |= {
            "train/num_updates": float(len(rows)),
            "train/inert_updates": float(sum(all(sample.inert for sample in part) for part in made)),
            "train/empty_mini_batches": float(sum(not part for part in parts)),
            "train/nonfinite_skipped": float(progress.num_skipped),
            "train/padding_frac": 1.0 - num_read / num_padded if num_padded else 0.0,
        }
        for name in sorted({name for r in rows for name in r}):
            values = [r[name] for r in rows if name in r]
            row[f"train/{name}"] = sum(values) / len(values)
        row |= self._alarms.check(step, rows, samples)
        return row | self._updater.gap.finish()

    def _begin(self, samples: Sequence[TrainingSample]) -> Progress:
        progress = self.progress
        if progress is None:
            with interruptible():
                num_rescored = self._updater.fill_old_logprobs(samples)
            return Progress(old_logprobs=[sample.old_logprobs for sample in samples], num_rescored=num_rescored)
        self._updater.fill_old_logprobs(samples, progress.old_logprobs)
        self._updater.gap.load_state_dict(progress.gap)
        set_rng_state(progress.rng)
        return progress

    def _update(self, step: int, number: int, part: Sequence[TrainingSample]) -> None:
        progress = self.progress
        assert progress is not None
        try:
            progress.rows.append(self._updater.update(part, measure_gap=not progress.rows))
        except NonFinite as error:
            self._note_nonfinite(step, number, error)
            progress.num_skipped += 1
        progress.note(number, self._updater.gap.state_dict())
        fault_point(f"update-{number}")
        raise_if_preempted()

    def _note_nonfinite(self, step: int, number: int, error: NonFinite) -> None:
        """Save the sample of the step's update of this number from 1, 0 for all of them. Raises UserError unless such
        updates are left out."""
        saved = self._folder.write_nonfinite(step, number, str(error), error.sample)
        if self._config.on_nonfinite == "stop":
            raise UserError(
                f"step {step}: {error}; saved in {saved}. Weights are as before this update: {error.remedy}, or leave "
                "such updates out with update.on_nonfinite=skip"
            ) from error
        what = "this update is" if number else "the step's updates are"
        logger.warning("step %d: %s; %s left out, the sample is in %s", step, error, what, saved)
