"""The student's weights on their way to the engine: a deadline, and a probe that they have arrived."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from harness.errors import UserError
from harness.models.devices import DeviceThread
from harness.models.forward import LanguageModel
from harness.rollout.base import RolloutEngine, Sampling
from harness.types import Question, RolloutGroup, TrainingSample
from methods.base import plain_prompt, rollout_sample

logger = logging.getLogger(__name__)

PROBE = "Sort the words lantern, Ödipus, 42, brook and the sum of 17 and 25, then explain the order step by step."
PROBE_TOKENS, PROBE_ROLLOUTS = 16, 2
BOUNDS = {"float32": 1e-3, "float16": 0.03, "bfloat16": 0.1}
"""Largest mean |trainer - engine| log-probability of the probe's tokens: rounding, by the dtype that is computed in."""


class Transfer:
    """Hands the student's weights to its engine.

    An engine that samples with the trainer's own tensors has nothing to receive; what it samples is probed at the
    start all the same, where it costs one short generation.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        student: LanguageModel,
        *,
        logprobs: Callable[[Sequence[TrainingSample]], list[list[float]]],
        dtype: str,
        temperature: float,
        timeout: float,
        num_engines: int = 1,
    ) -> None:
        """`logprobs` gives the trainer's log-probability of every trained token, at `temperature`. With several ranks
        `engine` stands for `num_engines` in front of it, in which prompts are dealt out in equal blocks."""
        self._engine = engine
        self._student = student
        self._logprobs = logprobs
        self._bound = BOUNDS[dtype]
        self._temperature = temperature
        self._timeout = timeout
        self._num_engines = num_engines

    def __call__(self, step: int) -> dict[str, float]:
        """Wake the engine, fill it and probe it after the updates of `step`; 0 before the first.

        Returns `transfer/probe_gap` (the mean of the engine that is farthest off) and `transfer/probe_gap_max` where
        the engine has weights of its own. Raises UserError where the deadline passes or an engine is out of its bound.
        """
        self._within_deadline(step)
        return self._probe(step) if self._engine.has_own_weights or step == 0 else {}

    def _within_deadline(self, step: int) -> None:
        """Collectives and copies that hang cannot be stopped from here, but the run can: the thread is a daemon."""
        raised: list[BaseException] = []

        def fill() -> None:
            try:
                self._engine.wake()
                self._engine.load_weights(self._student.module.named_parameters())
            except BaseException as error:
                raised.append(error)

        thread = DeviceThread(fill, "transfer")
        thread.start()
        thread.join(self._timeout)
        if thread.is_alive():
            raise UserError(
                f"the engine has not taken the weights of step {step} in rollout.transfer_timeout={self._timeout:g} s: "
                "launch again to go on from the last checkpoint, or raise the limit"
            )
        if raised:
            raise raised[0]

    def _probe(self, step: int) -> dict[str, float]:
        names = [f"probe{number or ''}" for number in range(self._num_engines)]
        prompts = [plain_prompt(Question(id=name, text=PROBE, answer="")) for name in names]
        sampling = Sampling(
            num_rollouts=PROBE_ROLLOUTS, temperature=self._temperature, max_new_tokens=PROBE_TOKENS, seed=0, step=step
        )
        groups = {group.uid: group for group in self._engine.generate(prompts, sampling)}
        gaps = self._gaps([groups[prompt.uid] for prompt in prompts])
        means = [sum(own) / len(own) for own in gaps]
        for rank, mean in enumerate(means):
            if not mean <= self._bound:
                of_rank = f" of rank {rank}" if self._num_engines > 1 else ""
                raise UserError(
                    f"the log-probabilities of the engine{of_rank} are not those of the student after step {step}: "
                    f"they differ by {mean:.3g} on average on the probe, and {self._bound:g} is rounding. It samples "
                    "from other weights, at another temperature, or its kernels are wrong for this model: use "
                    "rollout=transformers"
                )
        return {"transfer/probe_gap": max(means), "transfer/probe_gap_max": max(map(max, gaps))}

    def _gaps(self, groups: Sequence[RolloutGroup]) -> list[list[float]]:
        """|trainer - engine| of every sampled token, by group."""
        samples = [rollout_sample(group.uid, r, advantage=1.0) for group in groups for r in group.rollouts]
        gaps: dict[str, list[float]] = {group.uid: [] for group in groups}
        for sample, trainers in zip(samples, self._logprobs(samples), strict=True):
            assert sample.rollout_logprobs is not None
            rows = zip(trainers, sample.rollout_logprobs, sample.loss_mask, strict=True)
            gaps[sample.uid] += [abs(ours - theirs) for ours, theirs, trained in rows if trained]
        return list(gaps.values())
