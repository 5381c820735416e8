"""Going on: the checkpoint that a launch starts from, and what it leaves for the next one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.identity import digest, plain
from harness.errors import UserError
from harness.training import checkpoint
from harness.training.ownership import identity, prompts, refuse_foreign
from harness.training.parts import RunParts
from harness.training.step_updates import Progress
from harness.training.stored_step import SampledStep, StoredSteps, Unusable, code_digest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Point:
    """What a checkpoint after a complete step says as well as weights and moments. The next step changes it at once."""

    step: int
    rng: dict[str, Any]
    state: dict[str, Any]


class Resume:
    """Made, it has put the newest intact checkpoint into the parts of a run, and changed nothing in the folder.

    `start` is where the run goes on, `progress` what has been made of the next step's updates. `lost_records` are steps
    before whose metrics or rollouts are gone, by file. Raises UserError where the run cannot go on from what is there.
    """

    def __init__(self, parts: RunParts) -> None:
        self._parts, folder = parts, parts.folder
        self._stored = StoredSteps(
            folder.pending,
            identity=" ".join([digest(plain(parts.config)), code_digest(parts.method), *prompts(parts.chat).values()]),
            questions=parts.sampler.questions,
            chat=parts.chat,
        )
        found = checkpoint.complete(folder.checkpoints) if folder.goes_on else []
        if found and parts.config.resume == "never":
            raise UserError(
                f"{folder.path} holds checkpoints and resume=never: set resume=auto or choose another study"
            )
        if not found and folder.has_trained:
            raise UserError(f"{folder.path} has no checkpoint to go on from: put it back, or add --force")
        checkpoint.seed_rng(parts.config.seed)
        self._damaged: list[tuple[Path, str]] = []
        path = self._newest_intact(found) if found else None
        step, updates, self.progress = (0, 0, None) if path is None else self._load(path)
        self._saved = (step, updates)  # by the newest checkpoint
        if step > parts.num_steps:
            raise UserError(f"{folder.path} already has {step} steps: set steps={step} or more, or another study")
        self.lost_records = folder.lost_records(step)
        for name, steps in self.lost_records.items():
            logger.warning("%s: %s of step %s is lost: missing or damaged", folder.path, name, _ranges(steps))
        self.start = self.point(step)

    def clear(self) -> None:
        """Clear away what was written after the checkpoint: the run writes it again."""
        checkpoint.recover(self._parts.folder.checkpoints)
        for bad, problem in self._damaged:
            logger.warning("%s is damaged (%s): it is now %s", bad, problem, checkpoint.set_aside(bad).name)
        step = self.start.step
        self._parts.folder.truncate_after(step)
        self._prune(step)
        ahead = self._stored.steps_after(step)
        self._stored.keep_only(ahead)
        if ahead:
            logger.info("the rollouts of step %d to %d are there already", step + 1, ahead[-1])

    def sampled(self, step: int) -> SampledStep | None:
        """The rollouts of a step that an earlier launch has stored; None without them, or where they are of no use.

        Cursor and random streams are put to where they were after these.
        """
        if step not in self._stored.steps():
            return None
        try:
            sampled = self._stored.read(step)
        except Unusable as error:
            logger.warning("step %d is sampled again: %s", step, error)
            self._stored.keep_only(())  # later steps may have been sampled from other weights
            return None
        self._parts.sampler.load_state_dict(sampled.sampler)
        checkpoint.set_rng_state(sampled.rng)
        return sampled

    def store(self, step: int, sampled: SampledStep) -> None:
        """Keep the rollouts of a step until a checkpoint covers it."""
        self._stored.write(step, sampled)

    def point(self, step: int) -> Point:
        """Now, after a complete step."""
        parts = self._parts
        state = {
            "sampler": parts.sampler.state_dict(),
            "buffer": parts.buffer.state_dict(),
            "tracker": parts.tracker.state_dict(),
        }
        return Point(step=step, rng=checkpoint.rng_state(), state=state)

    def save(self, point: Point, progress: Progress | None = None) -> None:
        """Write a checkpoint after the last complete step, or after the updates of the next that have been made since,
        unless it is there."""
        num_done = 0 if progress is None else progress.num_done
        if (point.step, num_done) in (self._saved, (0, 0)):
            return
        state = identity(self._parts.config, self._parts.chat) | point.state
        tensors, rng = None, point.rng
        if progress is not None and num_done:
            state["update"], tensors = progress.pack()
            rng = progress.rng
        checkpoint.save(
            self._parts.folder.checkpoints,
            step=point.step,
            updates=num_done,
            weights=self._parts.updater.weights,
            state=state,
            tensors=tensors,
            rng=rng,
        )
        self._saved = (point.step, num_done)
        self._prune(point.step)

    def _prune(self, step: int) -> None:
        """Remove what a checkpoint after `step` makes superfluous."""
        config = self._parts.config.checkpoint
        self._stored.keep_only([later for later in self._stored.steps() if later > step])
        checkpoint.prune(self._parts.folder.checkpoints, keep_last=config.keep_last, keep_every=config.keep_every)

    def _load(self, path: Path) -> tuple[int, int, Progress | None]:
        """Put a checkpoint into the parts. Returns its step, the updates of the next, and what these have made."""
        parts = self._parts
        refuse_foreign(path, parts.config, parts.chat)
        state = checkpoint.load(path, parts.updater.weights)
        parts.sampler.load_state_dict(state["sampler"])
        parts.buffer.load_state_dict(state["buffer"], parts.sampler.questions)
        parts.tracker.load_state_dict(state["tracker"])
        logger.info("resumed from %s", path)
        progress = None
        if state["updates"]:
            progress = Progress.unpack(state["update"], checkpoint.load_tensors(path), checkpoint.rng_state())
        return state["step"], state["updates"], progress

    def _newest_intact(self, found: Sequence[Path]) -> Path:
        """The newest checkpoint that is as it was written; later ones are noted as damaged."""
        for path in reversed(found):
            problem = checkpoint.damage(path) or self._lacks(path)
            if problem is None:
                return path
            self._damaged.append((path, problem))
        path, problem = self._damaged[0]
        raise UserError(
            f"no checkpoint in {self._parts.folder.checkpoints} is intact ({path.name}: {problem}): put a good copy in "
            "its place, or add --force to start anew"
        )

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
