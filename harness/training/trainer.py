"""The only train loop: questions, rollouts and rewards, credit, update, buffer, records, checkpoint, evaluation."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from harness.data.sampler import Batch
from harness.errors import RunInterrupted
from harness.process.preemption import Preempted, fault_point, interruptible, raise_if_preempted
from harness.training import checkpoint, metrics
from harness.training.alarms import Alarms
from harness.training.credited import check_groups, check_samples
from harness.training.dealing import Dealt, deal
from harness.training.memory import memory_text
from harness.training.parts import RunParts
from harness.training.resume import Resume
from harness.training.step_updates import StepUpdates
from harness.training.stored_step import SampledStep
from harness.training.transfer import Transfer
from harness.types import RolloutGroup

logger = logging.getLogger(__name__)
REPLAY, COLLECT, SPLIT = 1, 2, 3
"""Streams of a step's generators: each is seeded by (seed, step, stream), so no draw depends on another's."""


class Trainer:
    """Runs a method to the last of a run's rollout steps, from where `resume` is."""

    def __init__(self, parts: RunParts, resume: Resume) -> None:
        self._parts, self._resume = parts, resume
        self._config, self._method, self._folder = parts.config, parts.method, parts.folder
        self.lost_records = resume.lost_records
        self._updates = StepUpdates(
            parts.updater,
            Alarms(parts.config.alarms, parts.folder, logprobs=parts.updater.logprobs),
            parts.folder,
            parts.config.update,
            teacher_scores=parts.method.needs_teacher == "distribution",
            progress=resume.progress,
        )
        self._transfer = Transfer(
            parts.engine,
            parts.updater.student,
            logprobs=parts.updater.logprobs,
            dtype=parts.config.student.dtype,
            temperature=parts.config.rollout.temperature,
            timeout=parts.config.rollout.transfer_timeout,
            num_engines=parts.config.cluster.world_size,
        )

    def prepare(self) -> None:
        """Give the engine the weights. Raises UserError where it has not got them."""
        logger.info(
            "%s", memory_text(self._parts.updater.student, self._config.update, self._config.cluster.world_size)
        )
        self._transfer(0)

    def train(self) -> None:
        """Train to the last step, once prepared. Raises Preempted where a signal ends the run, and RunInterrupted where
        an endpoint has gone, with all saved that it needs."""
        point = self._resume.start
        self._resume.clear()
        try:
            self._evaluate_after(point.step)
            while not self._is_last(point.step):
                raise_if_preempted()
                self._step(point.step + 1)
                point = self._resume.point(point.step + 1)
                if point.step % self._config.checkpoint.every == 0 or self._is_last(point.step):
                    self._resume.save(point)
                self._evaluate_after(point.step)
        except (Preempted, RunInterrupted):  # while sampling, scoring or evaluating: no weight is about to move
            self._resume.save(point, self._updates.progress)
            raise

    def _is_last(self, step: int) -> bool:
        """A method may have taken more questions than its batch: then the data end before `num_steps`."""
        return step == self._parts.num_steps or self._parts.sampler.num_steps_left == 0

    def _evaluate_after(self, step: int) -> None:
        """The evaluation that is due after a step, unless it is there: a run may have ended in it. The last step's
        student is evaluated as the final one."""
        config = self._config.eval
        if not (step and config.every and config.suite) or step % config.every or self._is_last(step):
            return
        is_whole = self._updates.progress is None  # in the middle of the next step it has been evaluated
        if is_whole and not (self._folder.evaluation(config.suite, step) / "scores.csv").exists():
            with interruptible():
                self._parts.evaluate(step)

    def _step(self, step: int) -> None:
        parts, clock = self._parts, self._parts.actors.clock
        parts.actors.begin(step)
        sampled = self._sampled(step)
        groups = sampled.groups
        parts.engine.sleep()

        check_groups(self._method, groups)
        dealt = self._deal(step, groups)
        samples = self._method.credit(groups)
        row = metrics.group_metrics(groups) | metrics.sample_metrics(samples)
        row |= check_samples(self._method, groups, samples)
        row |= self._method.metrics(groups)
        with clock.running("update"):
            row |= self._updates.run(step, samples, dealt)
        with clock.running("transfer"):
            row |= self._transfer(step)

        plain = metrics.plain_student_groups(groups)
        events = parts.buffer.update(plain) if self._method.config.replay else []
        row |= metrics.buffer_metrics(parts.buffer, events, sampled.num_replayed)
        row |= sampled.counts
        row |= metrics.flops(
            row,
            student=sum(p.numel() for p in parts.updater.student.module.parameters()),
            teacher=parts.teacher.num_parameters,
            gradient_checkpointing=self._config.update.gradient_checkpointing,
        )
        row |= metrics.process()
        written = [*groups, *sampled.rewritten]
        texts = {g.uid: parts.chat.decode_prompt(g.rollouts[0].prompt_ids) for g in written if g.rollouts}
        fault_point("transfer")
        self._folder.write_rollouts(step, written, samples, texts)
        fault_point("rollout-records")
        self._folder.write_buffer_events(step, events)
        row |= clock.finish()
        fault_point("buffer-records")
        self._folder.write_metrics(step, row)
        fault_point("records")
        self._folder.add_cost(row)
        if self._config.rollouts.keep is not None:
            self._folder.keep_rollouts(self._config.rollouts.keep)
        parts.tracker.log(step, row)
        logger.info("%s", _line(step, parts.num_steps, row))

    def _deal(self, step: int, groups: Sequence[RolloutGroup]) -> Dealt:
        """Deal the groups that are trained to the step's mini-batches, and tell each its number."""
        uids = [group.uid for group in groups if self._method.is_trained(group)]
        dealt = deal(uids, num_batches=self._method.config.updates_per_step, rng=self._rng(step, SPLIT))
        numbers = {uid: number for number, part in enumerate(dealt) for uid in part}
        for group in groups:
            group.mini_batch = numbers.get(group.uid)
        return dealt

    def _sampled(self, step: int) -> SampledStep:
        """The rollouts of a step: those that an earlier launch has stored, else new ones, which are stored."""
        if (stored := self._resume.sampled(step)) is not None:
            return stored
        actors, sampler = self._parts.actors, self._parts.sampler
        with interruptible():
            batch = self._batch(step)
            groups = self._method.collect(batch, actors, self._rng(step, COLLECT))
        replayed = {entry.question.id for entry in batch.replayed}
        for group in groups:
            group.replayed = group.prompt.question.id in replayed
        fault_point("rollouts")
        sampled = SampledStep(
            groups=groups,
            rewritten=actors.rewritten,
            counts=actors.counts,
            num_replayed=len(batch.replayed),
            sampler=sampler.state_dict(),
            rng=checkpoint.rng_state(),
        )
        self._resume.store(step, sampled)
        fault_point("stored")
        return sampled

    def _batch(self, step: int) -> Batch:
        config, sampler = self._method.config, self._parts.sampler
        new, replayed = sampler.next_batch(), []
        if config.replay:
            rng = self._rng(step, REPLAY)
            replayed = self._parts.buffer.draw(num_new=len(new), ratio=config.replay_ratio, exclude=new, rng=rng)
        return Batch(new=new, replayed=replayed, step=step, num_steps=self._parts.num_steps, sampler=sampler)

    def _rng(self, step: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self._config.seed, step, stream])


def _line(step: int, num_steps: int, row: dict[str, float]) -> str:
    parts = [f"step {step}/{num_steps}"]
    for label, name in (
        ("accuracy", "rollout/accuracy"),
        ("bcq", "bcq/accuracy"),
        ("ncq", "ncq/accuracy"),
        ("loss", "train/loss"),
        ("buffer", "buffer/size"),
    ):
        if name in row:
            parts.append(f"{label} {row[name]:.3f}" if name != "buffer/size" else f"{label} {row[name]:.0f}")
    return "  ".join([*parts, f"{row['time/step']:.1f} s"])
