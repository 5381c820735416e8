"""The only train loop: questions, rollouts and rewards, credit, update, buffer, records, checkpoint, evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.config.identity import digest, plain
from harness.config.schema import RunConfig
from harness.data.replay import PromptReplayBuffer
from harness.data.sampler import Batch, QuestionSampler
from harness.errors import RunInterrupted, UserError
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.process.preemption import Preempted, at, check, interruptible
from harness.records.folder import RunFolder
from harness.records.tracking import Tracker
from harness.rollout.actors import LiveActors
from harness.rollout.base import RolloutEngine
from harness.training import checkpoint, metrics
from harness.training.alarms import Alarms
from harness.training.batching import Dealt, deal
from harness.training.credited import check_groups, check_samples
from harness.training.memory import memory_text
from harness.training.models import Teacher
from harness.training.ownership import identity, prompts, refuse_foreign
from harness.training.step_updates import Progress, StepUpdates
from harness.training.stored_step import SampledStep, StoredSteps, Unusable, code_digest
from harness.training.transfer import Transfer
from harness.training.update import Updater
from harness.types import RolloutGroup
from methods.base import Method

logger = logging.getLogger(__name__)
REPLAY, COLLECT, SPLIT = 1, 2, 3
"""Streams of a step's generators: each is seeded by (seed, step, stream), so no draw depends on another's."""


class Trainer:
    """Runs a method for `num_steps` rollout steps in its run folder, going on from the newest checkpoint."""

    def __init__(
        self,
        *,
        config: RunConfig,
        method: Method,
        sampler: QuestionSampler,
        actors: LiveActors,
        engine: RolloutEngine,
        student: LanguageModel,
        updater: Updater,
        teacher: Teacher,
        chat: Chat,
        folder: RunFolder,
        tracker: Tracker,
        num_steps: int,
        evaluate: Callable[[int], None],
    ) -> None:
        self._config = config
        self._method = method
        self._sampler = sampler
        self._actors = actors
        self._engine = engine
        self._student = student
        self._teacher = teacher
        self._chat = chat
        self._folder = folder
        self._tracker = tracker
        self._evaluate = evaluate
        self._num_steps = num_steps
        self._buffer = PromptReplayBuffer(capacity=method.config.buffer_capacity, tau=method.config.tau)
        self._updater = updater
        self._stored = StoredSteps(
            folder.pending,
            identity=" ".join([digest(plain(config)), code_digest(method), *prompts(chat).values()]),
            questions=sampler.questions,
            chat=chat,
        )
        self._stored_ahead: Sequence[int] = ()
        self.lost_records: dict[str, list[int]] = {}
        """Steps before the checkpoint whose metrics or rollouts are gone, by file."""
        self._damaged: list[tuple[Path, str]] = []
        self._saved = (0, 0)
        """Step, and updates of the next, of the newest checkpoint."""
        alarms = Alarms(
            config.alarms,
            folder,
            logprobs=self._updater.logprobs,
            micro_batch_tokens=config.update.micro_batch_tokens,
        )
        self._updates = StepUpdates(
            self._updater,
            alarms,
            folder,
            config.update,
            teacher_scores=method.needs_teacher == "distribution",
        )
        self._transfer = Transfer(
            engine,
            student,
            logprobs=self._updater.logprobs,
            dtype=config.student.dtype,
            temperature=config.rollout.temperature,
            timeout=config.rollout.transfer_timeout,
        )

    def prepare(self) -> None:
        """Read the checkpoint to go on from, and give the engine the weights. Changes nothing in the folder.

        Raises UserError where the run cannot go on from what is there, and where the engine has not got the weights.
        """
        step, self._damaged = self._resume()
        self.lost_records = self._folder.lost_records(step)
        for name, steps in self.lost_records.items():
            logger.warning("%s: %s of step %s is lost: missing or damaged", self._folder.path, name, _ranges(steps))
        logger.info("%s", memory_text(self._student, self._config.update, self._config.cluster.world_size))
        self._note_behind(step)
        self._transfer(0)

    def train(self) -> None:
        """Train to the last step, once prepared. Raises Preempted where a signal ends the run, and RunInterrupted where
        an endpoint has gone, with all saved that it needs."""
        step = self._step_behind
        self._cut_off_after(step)
        try:
            self._evaluate_after(step)
            while not self._is_last(step):
                check()
                step += 1
                self._step(step)
                self._note_behind(step)
                if step % self._config.checkpoint.every == 0 or self._is_last(step):
                    self._save()
                self._evaluate_after(step)
        except (Preempted, RunInterrupted):  # while sampling, scoring or evaluating: no weight is about to move
            self._save()
            raise

    def _is_last(self, step: int) -> bool:
        """A method may have taken more questions than its batch: then the data end before `num_steps`."""
        return step == self._num_steps or self._sampler.num_steps_left == 0

    def _evaluate_after(self, step: int) -> None:
        """The evaluation that is due after a step, unless it is there: a run may have ended in it. The last step's
        student is evaluated as the final one."""
        config = self._config.eval
        if not (step and config.every and config.suite) or step % config.every or self._is_last(step):
            return
        is_whole = self._updates.progress is None  # in the middle of the next step it has been evaluated
        if is_whole and not (self._folder.evaluation(config.suite, step) / "scores.csv").exists():
            with interruptible():
                self._evaluate(step)

    def _step(self, step: int) -> None:
        clock = self._actors.clock
        self._actors.begin(step)
        sampled = self._sampled(step)
        groups = sampled.groups
        self._engine.sleep()

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
        events = self._buffer.update(plain) if self._method.config.replay else []
        row |= metrics.buffer_metrics(self._buffer, events, sampled.num_replayed)
        row |= sampled.counts
        row |= metrics.flops(
            row,
            student=_num_parameters(self._student),
            teacher=self._teacher.num_parameters,
            gradient_checkpointing=self._config.update.gradient_checkpointing,
        )
        row |= metrics.process()
        written = [*groups, *sampled.rewritten]
        at("transfer")
        self._folder.write_rollouts(step, written, samples, self._prompt_texts(written))
        at("rollout-records")
        self._folder.write_buffer_events(step, events)
        row |= clock.finish()
        at("buffer-records")
        self._folder.write_metrics(step, row)
        at("records")
        self._folder.add_cost(row)
        if self._config.rollouts.keep is not None:
            self._folder.keep_rollouts(self._config.rollouts.keep)
        self._tracker.log(step, row)
        logger.info("%s", _line(step, self._num_steps, row))

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
        if step in self._stored_ahead:
            try:
                return self._take(self._stored.read(step))
            except Unusable as error:
                logger.warning("step %d is sampled again: %s", step, error)
                self._stored_ahead = ()  # later steps may have been sampled from other weights
                self._stored.keep_only(())
        with interruptible():
            batch = self._batch(step)
            groups = self._method.collect(batch, self._actors, self._rng(step, COLLECT))
        replayed = {entry.question.id for entry in batch.replayed}
        for group in groups:
            group.replayed = group.prompt.question.id in replayed
        at("rollouts")
        sampled = SampledStep(
            groups=groups,
            rewritten=self._actors.rewritten,
            counts=self._actors.counts,
            num_replayed=len(batch.replayed),
            sampler=self._sampler.state_dict(),
            rng=checkpoint.rng_state(),
        )
        self._stored.write(step, sampled)
        at("stored")
        return sampled

    def _take(self, sampled: SampledStep) -> SampledStep:
        self._sampler.load_state_dict(sampled.sampler)
        checkpoint.set_rng_state(sampled.rng)
        return sampled

    def _batch(self, step: int) -> Batch:
        new = self._sampler.next_batch()
        replayed = []
        if self._method.config.replay:
            ratio = self._method.config.replay_ratio
            rng = self._rng(step, REPLAY)
            replayed = self._buffer.draw(num_new=len(new), ratio=ratio, exclude=new, rng=rng)
        return Batch(new=new, replayed=replayed, step=step, num_steps=self._num_steps, sampler=self._sampler)

    def _rng(self, step: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self._config.seed, step, stream])

    def _prompt_texts(self, groups: Sequence[RolloutGroup]) -> dict[str, str]:
        return {g.uid: self._chat.decode_prompt(g.rollouts[0].prompt_ids) for g in groups if g.rollouts}

    def _save(self) -> None:
        """A checkpoint after the last complete step, or after the updates of the next that have been made since."""
        step, progress = self._step_behind, self._updates.progress
        num_done = 0 if progress is None else progress.num_done
        if (step, num_done) in (self._saved, (0, 0)):
            return
        state: dict[str, Any] = {}
        tensors, rng = None, self._rng_behind
        if progress is not None and num_done:
            state["update"], tensors = progress.pack()
            rng = progress.rng
        checkpoint.save(
            self._folder.checkpoints,
            step=step,
            updates=num_done,
            weights=self._updater.weights,
            state={**identity(self._config, self._chat), **self._behind, **state},
            tensors=tensors,
            rng=rng,
        )
        self._saved = (step, num_done)
        self._prune(step)

    def _prune(self, step: int) -> None:
        """Remove what a checkpoint after `step` makes superfluous."""
        config = self._config.checkpoint
        self._stored.keep_only([later for later in self._stored.steps() if later > step])
        checkpoint.prune(self._folder.checkpoints, keep_last=config.keep_last, keep_every=config.keep_every)

    def _note_behind(self, step: int) -> None:
        """What a checkpoint after a complete step says except weights and moments: the next one changes it at once."""
        self._step_behind = step
        self._rng_behind = checkpoint.rng_state()
        self._behind = {
            "sampler": self._sampler.state_dict(),
            "buffer": self._buffer.state_dict(),
            "tracker": self._tracker.state_dict(),
        }

    def _resume(self) -> tuple[int, list[tuple[Path, str]]]:
        """Load the newest intact checkpoint. Returns its step, 0 for a fresh start, and the damaged ones after it."""
        found = checkpoint.complete(self._folder.checkpoints) if self._folder.goes_on else []
        if found and self._config.resume == "never":
            raise UserError(
                f"{self._folder.path} holds checkpoints and resume=never: set resume=auto or choose another study"
            )
        if not found and self._folder.has_trained:
            raise UserError(f"{self._folder.path} has no checkpoint to go on from: put it back, or add --force")
        checkpoint.seed_rng(self._config.seed)
        step, damaged = self._load(found) if found else (0, [])
        if step > self._num_steps:
            raise UserError(f"{self._folder.path} already has {step} steps: set steps={step} or more, or another study")
        return step, damaged

    def _cut_off_after(self, step: int) -> None:
        """Clear away what was written after the checkpoint: the run writes it again."""
        checkpoint.recover(self._folder.checkpoints)
        for bad, problem in self._damaged:
            logger.warning("%s is damaged (%s): it is now %s", bad, problem, checkpoint.set_aside(bad).name)
        self._folder.truncate_after(step)
        self._prune(step)
        self._stored_ahead = self._stored.steps_after(step)
        self._stored.keep_only(self._stored_ahead)
        if self._stored_ahead:
            logger.info("the rollouts of step %d to %d are there already", step + 1, self._stored_ahead[-1])

    def _load(self, found: Sequence[Path]) -> tuple[int, list[tuple[Path, str]]]:
        """Load the newest of the checkpoints that is intact."""
        damaged: list[tuple[Path, str]] = []
        for path in reversed(found):
            problem = checkpoint.damage(path) or self._lacks(path)
            if problem is None:
                break
            damaged.append((path, problem))
        else:
            path, problem = damaged[0]
            raise UserError(
                f"no checkpoint in {self._folder.checkpoints} is intact ({path.name}: {problem}): put a good copy in "
                "its place, or add --force to start anew"
            )
        refuse_foreign(path, self._config, self._chat)
        state = checkpoint.load(path, self._updater.weights)
        self._sampler.load_state_dict(state["sampler"])
        self._buffer.load_state_dict(state["buffer"], self._sampler.questions)
        self._tracker.load_state_dict(state["tracker"])
        self._saved = (state["step"], state["updates"])
        if state["updates"]:
            tensors = checkpoint.load_tensors(path)
            self._updates.progress = Progress.unpack(state["update"], tensors, checkpoint.rng_state())
        logger.info("resumed from %s", path)
        return state["step"], damaged

    def _lacks(self, path: Path) -> str | None:
        """Why a checkpoint in the middle of a step has not got the step's rollouts; None where all is there."""
        state = checkpoint.read_state(path)
        try:
            if state["updates"]:
                self._stored.read(state["step"] + 1)
        except Unusable as error:
            return str(error)
        return None


def _ranges(steps: Sequence[int]) -> str:
    """`2, 5-7`"""
    parts: list[list[int]] = []
    for step in steps:
        if parts and step == parts[-1][-1] + 1:
            parts[-1][1:] = [step]
        else:
            parts.append([step])
    return ", ".join("-".join(map(str, part)) for part in parts)


def _num_parameters(model: LanguageModel) -> int:
    return sum(p.numel() for p in model.module.parameters())


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
