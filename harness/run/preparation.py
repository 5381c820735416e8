"""What a run is made of, in the order of the data flow, and all that can refuse it.

`CHECKS` is the list: each entry makes or looks at one part, and raises UserError for what a user can fix. Those that
need no weights come first (`harness.preflight.checks`). A run begins when all have passed. Until then the folder holds
its lock and nothing new.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.deployment import Deployment
from harness.config.schema import RunConfig
from harness.preflight import checks
from harness.preflight.parts import Finding, Preflight, Warn
from harness.records.folder import RunFolder, log_prefix
from methods.base import Method

if TYPE_CHECKING:
    from harness.distributed.world import World
    from harness.models.chat import Chat
    from harness.training.models import RunModels
    from harness.training.parts import RunParts
    from harness.training.trainer import Trainer

logger = logging.getLogger(__name__)


class Preparation(Preflight):
    """The parts of one run. `CHECKS` makes them, each from those before it; `stack` ends what they start."""

    models: RunModels | None = None
    """None where nothing is trained and no response generated."""
    parts: RunParts | None = None
    """What is trained with; None without training."""
    trainer: Trainer | None = None

    def __init__(
        self,
        config: RunConfig,
        method: Method | None,
        deployment: Deployment,
        folder: RunFolder,
        label: str,
        stack: ExitStack,
        world: World | None = None,
    ) -> None:
        super().__init__(config, method, deployment, stack)
        self.folder, self.label, self.world = folder, label, world

    def run_checks(self) -> None:
        """Make all parts. Raises UserError where one of them refuses the run."""
        if self.is_idle:
            return
        for check in CHECKS:
            for found in check(self) or ():
                if isinstance(found, Exception):
                    raise found
                if isinstance(found, Warn):
                    logger.warning("%s", f"{found.text}: {found.remedy}" if found.remedy else found.text)
                else:
                    logger.info("%s: %s", check.__name__.replace("_", " "), found)

    def evaluate(self, step: int | None = None) -> None:
        """Score the live student on the suite, if there is one: after a step, or as it is in the end."""
        from harness.evaluation.asking import Live
        from harness.evaluation.evaluate import evaluate, refuse_no_score
        from harness.evaluation.protocol import Setup

        if self.config.eval.suite is None:
            return
        out_dir = self.folder.evaluation(self.config.eval.suite, step)
        for row in evaluate(
            self.config.eval,
            None if self.models is None else self.models.engine,
            self.grader,
            out_dir=out_dir,
            model_name=f"{self.label}/{self.config.student.name}",
            identity=None if self.models is None else self.models.identity(),
            setup=Setup.of(self.config),
            live=None if self.models is None else Live(chat=self.chat, model=self.models.complete),
        ):
            logger.info("%-16s %6s", row["benchmark"], f"{row['score']:.1f}" if row["n"] else "-")
        if self.method is None and self.config.eval.stage != "generate":  # its scores are all that such a run is
            refuse_no_score(out_dir)


def prepare_process(config: RunConfig) -> None:
    """Threads of this process, and no bar for each file in a log of thousands of steps."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if config.num_threads:
        torch.set_num_threads(config.num_threads)


def make_models(
    config: RunConfig, deployment: Deployment, chat: Chat, world: World | None, *, logs: Path, stack: ExitStack
) -> RunModels:
    """In this process, or over the ranks of `world`. `logs` is what the names of their logs begin with."""
    if world is None:
        from harness.training.models import LocalModels

        return LocalModels(config, deployment, chat, logs=logs, stack=stack)
    from harness.distributed.build import RankModels

    return RankModels(config, deployment, chat, world, logs=logs, stack=stack)


# --- the checks, in their order ---


def process(run: Preparation) -> None:
    prepare_process(run.config)


def models(run: Preparation) -> None:
    if not run.only_judges:
        logs = log_prefix(run.config, run.label)
        run.models = make_models(run.config, run.deployment, run.chat, run.world, logs=logs, stack=run.stack)


def trainer(run: Preparation) -> None:
    """What is trained with: actors, updater and tracker."""
    from harness.data.replay import PromptReplayBuffer
    from harness.records.tracking import Tracker
    from harness.rollout.actors import LiveActors
    from harness.training.parts import RunParts

    config, folder = run.config, run.folder
    if run.method is None:
        return
    assert run.models is not None and run.num_steps is not None
    teacher = run.models.open_teacher(run.method)
    actors = LiveActors(
        student=run.models.engine,
        teacher=teacher.engine,
        chat=run.chat,
        grader=run.judged,
        config=config.rollout,
        seed=config.seed,
    )
    run.stack.callback(actors.close)
    if run.world is not None:
        run.world.leader.step = lambda: actors.step
    tracker = Tracker(
        config,
        run.label,
        folder.path,
        run_id=folder.info.get("wandb_id"),
        started=lambda name: folder.set_info(wandb_id=name),
    )
    run.stack.callback(tracker.close)
    run.parts = RunParts(
        config=config,
        method=run.method,
        sampler=run.sampler,
        buffer=PromptReplayBuffer(capacity=run.method.config.buffer_capacity, tau=run.method.config.tau),
        actors=actors,
        engine=run.models.engine,
        updater=run.models.updater(run.method, teacher, actors.clock),
        teacher=teacher,
        chat=run.chat,
        folder=folder,
        tracker=tracker,
        num_steps=run.num_steps,
        evaluate=run.evaluate,
    )


def checkpoint(run: Preparation) -> None:
    """What there is of an earlier launch is read, and the engine has the weights that it is to sample with."""
    from harness.training.resume import Resume
    from harness.training.trainer import Trainer

    if run.parts is not None:
        run.trainer = Trainer(run.parts, Resume(run.parts))
        run.trainer.prepare()


CHECKS: tuple[Callable[[Preparation], Iterable[Finding] | None], ...] = (
    process, *checks.CHECKS, models, trainer, checkpoint,
)  # fmt: skip
"""All that can refuse a run once its configuration has been accepted (`harness.config.deployment`)."""
