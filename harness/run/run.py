"""One run: config -> objects -> train -> model -> evaluate -> run.json. The only place that puts the parts together."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.deployment import build_method, check_devices, check_ranks, run_label
from harness.config.schema import ModelConfig, RunConfig
from harness.distributed.place import check_place, this_place
from harness.errors import UserError, disk_error, first_line
from harness.process.preemption import Preempted, Stopped, at, interruptible, listening, received
from harness.records.folder import RunFolder, run_dir
from harness.types import Question
from methods import registry
from methods.base import Method

if TYPE_CHECKING:
    from harness.data.sampler import QuestionSampler
    from harness.distributed.world import World
    from harness.models.chat import Chat
    from harness.rewards.workers import Grader
    from harness.rollout.base import RolloutEngine
    from harness.training.models import Models
    from harness.training.trainer import Trainer

logger = logging.getLogger(__name__)


def run(config: RunConfig, *, overrides: Sequence[str] = ()) -> Path:
    """Train (unless the method is `base`), save the model, evaluate. Returns the run folder.

    A run that is done is left alone; one that was interrupted goes on from its newest checkpoint. Raises UserError for
    what a user can fix; run.json then has status `failed` and the message. SIGTERM and SIGUSR1 raise `Stopped`, with
    all that the run needs to go on written; its status is `interrupted`.

    With several ranks this is rank 0's part; it does not return on another one.
    """
    method = build_method(config)
    check_ranks(config)
    place = this_place()
    check_place(config, place)
    check_devices(config)
    if place is None:
        return _lead(config, method, overrides, None)
    from harness.distributed.follower import follow
    from harness.distributed.world import opened

    with opened(config, place) as world:
        if place.rank:
            _prepare_process(config)
            follow(config, method, world, run_dir(config, run_label(config)))
        return _lead(config, method, overrides, world)


def _lead(config: RunConfig, method: Method | None, overrides: Sequence[str], world: World | None) -> Path:
    label = run_label(config)
    folder = RunFolder(run_dir(config, label), config)
    if world is not None:
        world.leader.give_up = lambda loss: _note_end(folder, loss)
    if folder.is_done(config.steps):
        logger.info("%s is done: nothing to do", folder.path)
        folder.close()
        return folder.path
    with closing(folder), _logged(folder), listening(config.preempt_grace, partial(_give_up, folder)):
        method_class, plugin = registry.provenance(method)
        folder.start(label=label, config=config, overrides=overrides, method_class=method_class, plugin=plugin)
        try:
            _execute(config, method, folder, label, world)
        except BaseException as error:
            ending = _ending(error, folder)
            if ending is error:
                raise
            raise ending from error
        folder.finish("done")
    return folder.path


def _ending(error: BaseException, folder: RunFolder) -> BaseException:
    """Note in run.json how a run has ended. Returns what is to be raised."""
    signal = received()
    if signal is not None and not isinstance(error, KeyboardInterrupt | SystemExit):
        if not isinstance(error, Preempted):  # what it needs may have been sent the same signal
            logger.error("at %s: %s", signal, first_line(error), exc_info=error)
        error = Stopped(f"{signal} has ended the run: launched again it goes on")
    elif (remedy := registry.private_import(error)) is not None:
        error = UserError(f"{first_line(error)}: {remedy}")
    elif isinstance(error, registry.MethodError):
        error = UserError(str(error))
    elif isinstance(error, Exception) and not isinstance(error, UserError):
        error = disk_error(error, folder.path) or error
    with suppress(OSError):  # on a full disk there may be room, since what was half written is gone
        if isinstance(error, KeyboardInterrupt | SystemExit):
            folder.finish("interrupted")
        elif isinstance(error, UserError):
            _note_end(folder, error)
        else:
            logger.error("the run failed", exc_info=error)
            folder.finish("failed", f"{type(error).__name__}: {error}")
    return error


def _note_end(folder: RunFolder, error: UserError) -> None:
    folder.finish("interrupted" if error.exit_code == os.EX_TEMPFAIL else "failed", str(error))


def _give_up(folder: RunFolder) -> None:
    folder.finish("interrupted", "preempt_grace was over before its state was written: the last checkpoint counts")


class _Run:
    """The objects of one run, made in the order of the data flow."""

    def __init__(
        self,
        config: RunConfig,
        method: Method | None,
        folder: RunFolder,
        label: str,
        stack: ExitStack,
        world: World | None = None,
    ) -> None:
        from harness.evaluation.suites import load_suite
        from harness.models.chat import Chat
        from harness.models.loading import load_tokenizer
        from harness.rewards.workers import Grader
        from methods.base import plain_prompt

        _prepare_process(config)
        self.world = world
        self.config, self.method, self.folder, self.label, self._stack = config, method, folder, label, stack
        self.chat = Chat(load_tokenizer(config.student), config.student)
        self._check_teacher()
        if config.eval.suite is not None:  # what the evaluation would refuse is refused before the training
            suite = load_suite(config.eval)
            for benchmark in suite.benchmarks if suite.strict else ():
                self.chat.pack(plain_prompt(benchmark.questions[0]))
        self.grader = stack.enter_context(Grader(config.reward))
        self.sampler = None if method is None else self._sampler()
        self.models = _models(config, self.chat, world, trained=method is not None, folder=folder.path, stack=stack)
        self.student, self.engine = self.models.student, self.models.engine

    def trainer(self) -> Trainer:
        """The trainer, with the teacher and the judge if the method has them."""
        from harness.records.tracking import Tracker
        from harness.rewards.judge.judged import JudgedGrader
        from harness.rollout.actors import LiveActors
        from harness.training.trainer import Trainer

        config = self.config
        assert self.method is not None and self.sampler is not None and self.student is not None
        num_steps = self._num_steps()
        self.folder.set_info(num_steps=num_steps)
        grader: Grader | JudgedGrader = self.grader
        if config.reward.judge.url is not None:  # of the training alone: evaluation has a judge of its own
            grader = JudgedGrader(self.grader, config.reward.judge)
            grader.check()  # before the first step is sampled
        teacher = self.models.open_teacher(self.method)
        actors = LiveActors(
            student=self.engine,
            teacher=teacher.engine,
            chat=self.chat,
            grader=grader,
            config=config.rollout,
            seed=config.seed,
        )
        self._stack.callback(actors.close)
        if self.world is not None:
            self.world.leader.step = lambda: actors.step
        tracker = Tracker(
            config,
            self.label,
            self.folder.path,
            run_id=self.folder.info.get("wandb_id"),
            started=lambda name: self.folder.set_info(wandb_id=name),
        )
        self._stack.callback(tracker.close)
        return Trainer(
            config=config,
            method=self.method,
            sampler=self.sampler,
            actors=actors,
            engine=self.engine,
            student=self.student,
            updater=self.models.updater(self.method, teacher, actors.clock),
            teacher=teacher,
            chat=self.chat,
            folder=self.folder,
            tracker=tracker,
            num_steps=num_steps,
            evaluate=self.evaluate,
        )

    def save(self) -> None:
        """Save the student as `model/`."""
        from harness.models.loading import save_model

        aside = self.folder.path / "model.tmp"
        shutil.rmtree(aside, ignore_errors=True)
        save_model(self.models.finished(), self.config.student, aside)
        at("model")
        self.folder.replace_model(aside)

    def evaluate(self, step: int | None = None) -> None:
        """Score the live student on the suite, if there is one: after a step, or as it is in the end."""
        from harness.evaluation.evaluate import evaluate
        from harness.evaluation.protocol import Setup

        if self.config.eval.suite is None:
            return
        out_dir = self.folder.evaluation(self.config.eval.suite, step)
        for row in evaluate(
            self.config.eval,
            self.engine,
            self.grader,
            out_dir=out_dir,
            model_name=f"{self.label}/{self.config.student.name}",
            identity=self.models.identity(),
            setup=Setup.of(self.config),
        ):
            logger.info("%-16s %6s", row["benchmark"], f"{row['score']:.1f}" if row["n"] else "-")

    def _num_steps(self) -> int:
        assert self.sampler is not None
        data, possible = self.config.data, self.sampler.num_steps
        num_steps = possible if self.config.steps is None else self.config.steps
        if num_steps > possible:
            raise UserError(
                f"steps={num_steps} of {data.batch_size} questions: the data give {possible} steps in "
                f"data.epochs={data.epochs}; raise data.epochs or lower steps"
            )
        return num_steps

    def _sampler(self) -> QuestionSampler:
        from harness.data.sampler import QuestionSampler
        from harness.data.sources import load_questions
        from methods.base import plain_prompt

        limit = self.config.rollout.max_prompt_tokens
        loaded = load_questions(
            self.config.data,
            gold_errors=self.grader.gold_errors,
            measure=lambda question: self.chat.num_tokens_of(plain_prompt(question)),
            max_prompt_tokens=limit,
        )
        for message in loaded.bad:
            logger.warning("skipped %s", message)
        logger.info(
            "%d questions (%d bad, %d with more than %d tokens)",
            len(loaded.questions), loaded.num_bad, loaded.num_too_long, limit,
        )  # fmt: skip
        if loaded.num_unused:
            logger.warning(
                "data.pool_size=%s leaves out %d of them: data.pool_size=null trains on all",
                self.config.data.pool_size, loaded.num_unused,
            )  # fmt: skip
        self._check_teacher_sees(loaded.questions)
        data = self.config.data
        return QuestionSampler(
            loaded.questions,
            batch_size=data.batch_size,
            epochs=data.epochs,
            shuffle=data.shuffle,
            seed=self.config.seed,
        )

    def _check_teacher(self) -> None:
        """One tokenizer renders every prompt for both actors, so the teacher has to share it."""
        from harness.models.loading import load_tokenizer, same_tokenizer

        config, teacher = self.config, self._teacher_config()
        if teacher is None:
            return
        difference = same_tokenizer(self.chat.tokenizer, load_tokenizer(teacher))
        if difference is not None:
            raise UserError(
                f"teacher {teacher.name} and student {config.student.name} have different tokenizers "
                f"({difference}): token ids mean other text to the teacher; choose a teacher of the student's family"
            )

    def _check_teacher_sees(self, questions: Sequence[Question]) -> None:
        """One processor packs every medium for both actors, so the teacher's vision tower has to take its patches."""
        from harness.models.vision import Vision

        teacher = self._teacher_config()
        if teacher is None or not any(question.images or question.video for question in questions):
            return
        ours, theirs = self.chat.vision.settings(), Vision(teacher).settings()
        for name, value in ours.items():
            if theirs[name] != value:
                raise UserError(
                    f"teacher {teacher.name} and student {self.config.student.name} see media differently ({name} is "
                    f"{theirs[name]} and {value}): choose a teacher of the student's family"
                )

    def _teacher_config(self) -> ModelConfig | None:
        """The teacher that this run loads, if any."""
        needed = self.method is not None and self.method.needs_teacher != "none"
        return self.config.teacher if needed else None


def _execute(
    config: RunConfig, method: Method | None, folder: RunFolder, label: str, world: World | None = None
) -> None:
    if method is None and config.eval.suite is None:  # nothing to do, so nothing to load
        return
    with ExitStack() as stack:
        with interruptible():
            run = _Run(config, method, folder, label, stack, world)
            trainer = None if method is None else run.trainer()
        if trainer is not None:
            trainer.train()
            run.save()
        with interruptible():
            run.evaluate()


def live_student(config: RunConfig, log: Path, stack: ExitStack) -> tuple[RolloutEngine, str]:
    """The student of a configuration as it is, in its engine, and the model's identity. Ends with `stack`."""
    from harness.models.chat import Chat
    from harness.models.loading import load_tokenizer

    _prepare_process(config)
    chat = Chat(load_tokenizer(config.student), config.student)
    models = _models(config, chat, None, trained=False, folder=log.parent, stack=stack)
    return models.engine, models.identity()


def _models(
    config: RunConfig, chat: Chat, world: World | None, *, trained: bool, folder: Path, stack: ExitStack
) -> Models:
    if world is None:
        from harness.training.models import LocalModels

        return LocalModels(config, chat, trained=trained, folder=folder, stack=stack)
    from harness.distributed.build import RankModels

    return RankModels(config, chat, world, trained=trained, folder=folder, stack=stack)


def _prepare_process(config: RunConfig) -> None:
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a bar a file in a log of thousands of steps
    if config.num_threads:
        torch.set_num_threads(config.num_threads)


@contextmanager
def _logged(folder: RunFolder) -> Iterator[None]:
    handler = folder.log_to_file()
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
