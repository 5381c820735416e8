"""Where the conformance kit runs a method: two tiny models, and a scripted teacher where it is needed."""

from __future__ import annotations

import atexit
import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.config.compose import compose
from harness.config.schema import ModelConfig, RewardConfig, RolloutConfig, UpdateConfig, from_hydra
from harness.data.arithmetic import make_questions
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.loading import load_tokenizer
from harness.models.probe import open_model
from harness.rewards.workers import Grader
from harness.rollout.base import RolloutEngine
from harness.rollout.transformers_engine import TransformersEngine
from harness.run.run import run
from harness.teacher.local import LocalScorer
from harness.testing.scripted import ScriptedEngine, ScriptedTeacher
from harness.testing.witness import Step, Witness, WitnessedActors
from harness.training.update import Updater
from harness.types import Question, ReplayedQuestion
from methods import registry
from methods.base import Method, MethodConfig

SMALL = {
    "group_size": 4, "teacher_group_size": 2, "augment_ratio": 0.5, "compress_max_tokens": 64, "hint_max_tokens": 64,
}  # fmt: skip
"""Options that keep a check short, given to classes that have them."""
RUN = [
    "student=tiny_xs", "eval=none", "data.batch_size=6", "data.pool_size=24", "data.num_questions=60", "data.epochs=2",
    "data.levels=[1,2]", "rollout.max_response_tokens=32", "num_threads=1", "method=grpo",
]  # fmt: skip


class Case:
    """A method class with its options and its teacher, and what one step of it gives.

    Where no teacher is given and the tiny one leaves kinds of prompts unseen, the scripted one with its built-in
    replies takes its place, if it leaves fewer.
    """

    def __init__(
        self, method_class: type[Method], options: dict[str, Any], teacher: ScriptedTeacher | None = None
    ) -> None:
        known = {field.name for field in fields(method_class.Config)}
        self.method_class = method_class
        self.options = {key: value for key, value in SMALL.items() if key in known} | options
        self.teacher = teacher

    def build(self) -> Method:
        config: MethodConfig = self.method_class.Config(**self.options)
        return self.method_class(config)

    def step(self) -> Step:
        """One fresh step from the same seed."""
        teacher, _ = self._chosen
        return lab().step(self.build(), teacher)

    @cached_property
    def _chosen(self) -> tuple[ScriptedTeacher | None, Step]:
        """The teacher, None for the tiny one, and its step."""
        method = self.build()
        step = lab().step(method, self.teacher)
        unseen = step.unseen(method.prompt_kinds)
        if unseen and self.teacher is None and method.needs_teacher != "none":
            scripted = ScriptedTeacher()
            other = lab().step(self.build(), scripted)
            if len(other.unseen(method.prompt_kinds)) < len(unseen):
                return scripted, other
        return self.teacher, step

    def first(self) -> Step:
        """The groups and samples of a step; a copy, to be changed at will."""
        return copy.deepcopy(self._chosen[1])

    def updater(self, student: LanguageModel, **changes: Any) -> Updater:
        """An update without weight decay and clipping, on a copy of the student."""
        method = self.build()
        config = UpdateConfig(**({"weight_decay": 0.0, "max_grad_norm": 1e9} | changes))
        teacher = LocalScorer(lab().teacher, 1.0) if method.needs_teacher == "distribution" else None
        return Updater(student=student, teacher=teacher, method=method, config=config, temperature=1.0)

    def run(self, outputs: Path, *, steps: int) -> Path:
        """A run of so many steps, or its continuation; returns its folder."""
        key = "conformance"
        with _registered(key, self.method_class):
            config = from_hydra(compose([*RUN, f"steps={steps}", f"outputs={outputs}"]))
            config.method = {"name": key, "class": key, **self.options}
            return run(config)


@dataclass
class _Batch:
    new: Sequence[Question]
    replayed: Sequence[ReplayedQuestion]
    step: int = 1
    num_steps: int = 4

    def more(self, num_questions: int) -> list[Question]:
        return make_questions([2], num_questions, seed=9, split="train")


class Lab:
    """The two tiny models, ready to sample and to be trained; made once a process."""

    def __init__(self) -> None:
        names = {"student": "tiny:xs", "teacher": "tiny:teacher"}
        configs = {name: ModelConfig(name=name, path=path, dtype="float32") for name, path in names.items()}
        self.chat = Chat(load_tokenizer(configs["student"]), configs["student"])
        models = {name: open_model(config, "cpu", self.chat) for name, config in configs.items()}
        self.student, self.teacher = models["student"], models["teacher"]
        self._engines = {
            "student": TransformersEngine(self.student, self.chat, sampler="student", max_sequences=256),
            "teacher": TransformersEngine(self.teacher, self.chat, sampler="teacher", max_sequences=256),
        }
        self._grader = Grader(RewardConfig())
        atexit.register(self._grader.close)

    def fresh_student(self) -> LanguageModel:
        return LanguageModel.for_chat(copy.deepcopy(self.student.module), self.chat)

    def step(self, method: Method, teacher: ScriptedTeacher | None = None) -> Step:
        """Six new questions and two replayed ones, mostly hard for the student; seed 0, step 1.

        The tiny teacher answers, or a scripted one.
        """
        questions = make_questions([1, 2, 3], 8, seed=0, split="train")
        replayed = [ReplayedQuestion(question=q, visits=0, entry_accuracy=0.0) for q in questions[6:]]
        actors = WitnessedActors(
            student=self._engines["student"],
            teacher=self._teacher(teacher) if method.needs_teacher != "none" else None,
            chat=self.chat,
            grader=self._grader,
            config=RolloutConfig(max_response_tokens=32),
            seed=0,
        )
        actors.witness = Witness()
        actors.begin(1)
        try:
            batch = _Batch(new=questions[:6], replayed=replayed)
            groups = method.collect(batch, actors, np.random.default_rng([0, 1]))
            return Step(groups, method.credit(groups), actors.witness, actors.counts)
        finally:
            actors.close()

    def _teacher(self, script: ScriptedTeacher | None) -> RolloutEngine:
        if script is None:
            return self._engines["teacher"]
        return ScriptedEngine(script, self.chat, self.teacher.context_window)


@cache
def lab() -> Lab:
    torch.set_num_threads(1)
    return Lab()


@contextmanager
def _registered(key: str, method_class: type[Method]) -> Iterator[None]:
    registry.built_in()
    registry.METHODS[key] = method_class
    try:
        yield
    finally:
        del registry.METHODS[key]
