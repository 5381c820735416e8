"""What a run is made of, in the order of the data flow, and all that can refuse it.

`CHECKS` is the list: each entry makes or looks at one part, and raises UserError for what a user can fix. A run begins
when all have passed. Until then the folder holds its lock and nothing new.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.deployment import Deployment
from harness.config.schema import ModelConfig, RunConfig
from harness.errors import UserError
from harness.records.folder import RunFolder, log_prefix
from harness.types import Question
from methods.base import Method

if TYPE_CHECKING:
    from harness.data.sampler import QuestionSampler
    from harness.distributed.world import World
    from harness.models.chat import Chat
    from harness.rewards.judge.judged import JudgedGrader
    from harness.rewards.workers import Grader
    from harness.training.models import Models
    from harness.training.parts import RunParts
    from harness.training.trainer import Trainer

logger = logging.getLogger(__name__)


class Preparation:
    """The parts of one run. `CHECKS` makes them, each from those before it; `stack` ends what they start."""

    chat: Chat
    grader: Grader
    """Of rules: the evaluation's."""
    judged: Grader | JudgedGrader
    """The training's."""
    sampler: QuestionSampler
    num_prompt_tokens: int = 0
    """Of the longest plain prompt."""
    num_steps: int | None = None
    """How many steps the run trains; None without training."""
    most_steps: int | None = None
    """How many the data give."""
    models: Models | None = None
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
        self.config, self.method, self.folder, self.label = config, method, folder, label
        self.deployment, self.stack, self.world = deployment, stack, world

    @property
    def is_idle(self) -> bool:
        """Nothing is trained and nothing evaluated, so nothing is loaded."""
        return self.method is None and self.config.eval.suite is None

    @property
    def only_judges(self) -> bool:
        """The responses are there, so no model is loaded."""
        return self.method is None and self.config.eval.stage == "judge"

    @property
    def teacher(self) -> ModelConfig | None:
        """The teacher that the method needs, if any."""
        return None if self.deployment.teacher is None else self.config.teacher

    def run_checks(self) -> None:
        """Make all parts. Raises UserError where one of them refuses the run."""
        if self.is_idle:
            return
        for check in CHECKS:
            check(self)

    def evaluate(self, step: int | None = None) -> None:
        """Score the live student on the suite, if there is one: after a step, or as it is in the end."""
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
) -> Models:
    """In this process, or over the ranks of `world`. `logs` is what the names of their logs begin with."""
    if world is None:
        from harness.training.models import LocalModels

        return LocalModels(config, deployment, chat, logs=logs, stack=stack)
    from harness.distributed.build import RankModels

    return RankModels(config, deployment, chat, world, logs=logs, stack=stack)


# --- the checks, in their order ---


def process(run: Preparation) -> None:
    prepare_process(run.config)


def tokenizer(run: Preparation) -> None:
    from harness.models.chat import THINKING_REMEDY, Chat, thinking_conflict
    from harness.models.loading import load_tokenizer

    run.chat = Chat(load_tokenizer(run.config.student), run.config.student)
    if conflict := thinking_conflict(run.chat.tokenizer, run.config.student):
        logger.warning("%s: %s", conflict, THINKING_REMEDY)


def teacher_tokenizer(run: Preparation) -> None:
    """One tokenizer renders every prompt for both actors, so the teacher has to share it."""
    from harness.models.loading import load_tokenizer, same_tokenizer

    teacher, student = run.teacher, run.config.student
    if teacher is None:
        return
    difference = same_tokenizer(run.chat.tokenizer, load_tokenizer(teacher))
    if difference is not None:
        raise UserError(
            f"teacher {teacher.name} and student {student.name} have different tokenizers ({difference}): "
            "token ids mean other text to the teacher; choose a teacher of the student's family"
        )


def suite(run: Preparation) -> None:
    """What the evaluation would refuse is refused before the training."""
    from harness.evaluation.suites import load_suite
    from methods.base import plain_prompt

    if run.config.eval.suite is None:
        return
    if run.method is not None and run.config.eval.stage == "judge":
        raise UserError("eval.stage=judge generates nothing, and a run that trains has no responses yet: set all")
    found = load_suite(run.config.eval)
    for benchmark in found.benchmarks if found.strict else ():
        run.chat.pack(plain_prompt(benchmark.questions[0]))


def grader(run: Preparation) -> None:
    from harness.rewards.workers import Grader

    run.grader = run.judged = run.stack.enter_context(Grader(run.config.reward))


def questions(run: Preparation) -> None:
    from harness.data.sampler import QuestionSampler
    from harness.data.sources import load_questions
    from methods.base import plain_prompt

    if run.method is None:
        return
    data, limit = run.config.data, run.config.rollout.max_prompt_tokens

    def measure(question: Question) -> int:
        num_tokens = run.chat.num_tokens_of(plain_prompt(question))
        if num_tokens <= limit:
            run.num_prompt_tokens = max(run.num_prompt_tokens, num_tokens)
        return num_tokens

    loaded = load_questions(data, gold_errors=run.grader.gold_errors, measure=measure, max_prompt_tokens=limit)
    for message in loaded.bad:
        logger.warning("skipped %s", message)
    logger.info(
        "%d questions (%d bad, %d with more than %d tokens)",
        len(loaded.questions), loaded.num_bad, loaded.num_too_long, limit,
    )  # fmt: skip
    if loaded.num_unused:
        logger.warning(
            "data.pool_size=%s leaves out %d of them: data.pool_size=null trains on all",
            data.pool_size, loaded.num_unused,
        )  # fmt: skip
    _check_teacher_sees(run, loaded.questions)
    run.sampler = QuestionSampler(
        loaded.questions, batch_size=data.batch_size, epochs=data.epochs, shuffle=data.shuffle, seed=run.config.seed
    )


def _check_teacher_sees(run: Preparation, questions: Sequence[Question]) -> None:
    """One processor packs every medium for both actors, so the teacher's vision tower has to take its patches."""
    from harness.models.vision import Vision

    teacher = run.teacher
    if teacher is None or not any(question.images or question.video for question in questions):
        return
    ours, theirs = run.chat.vision.settings(), Vision(teacher).settings()
    for name, value in ours.items():
        if theirs[name] != value:
            raise UserError(
                f"teacher {teacher.name} and student {run.config.student.name} see media differently ({name} is "
                f"{theirs[name]} and {value}): choose a teacher of the student's family"
            )


def steps(run: Preparation) -> None:
    if run.method is None:
        return
    data = run.config.data
    run.most_steps = possible = run.sampler.num_steps
    run.num_steps = possible if run.config.steps is None else run.config.steps
    if run.num_steps > possible:
        raise UserError(
            f"steps={run.num_steps} of {data.batch_size} questions: the data give {possible} steps in "
            f"data.epochs={data.epochs}; raise data.epochs or lower steps"
        )


def judge(run: Preparation) -> None:
    """Of the training alone: evaluation has a judge of its own."""
    from harness.rewards.judge.judged import JudgedGrader

    if run.method is not None and run.config.reward.judge.url is not None:
        run.judged = JudgedGrader(run.grader, run.config.reward.judge)
        run.judged.check()


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
    for role, engine in (("student", run.models.engine), ("teacher", teacher.engine)):
        if engine is not None and run.num_prompt_tokens >= engine.context_window:
            raise UserError(
                f"a question's prompt has {run.num_prompt_tokens} tokens and the context window of the {role} "
                f"{engine.context_window}: set rollout.max_prompt_tokens to less, which leaves such questions out"
            )
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


CHECKS: tuple[Callable[[Preparation], None], ...] = (
    process, tokenizer, teacher_tokenizer, suite, grader, questions, steps, judge, models, trainer, checkpoint,
)  # fmt: skip
"""All that can refuse a run once its configuration has been accepted (`harness.config.deployment`)."""
