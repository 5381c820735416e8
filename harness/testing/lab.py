"""Where the conformance kit runs a method: two tiny models, and a record of what they sampled."""

from __future__ import annotations

import atexit
import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
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
from harness.models.loading import load_model, load_tokenizer
from harness.rewards.workers import Grader
from harness.rollout.actors import LiveActors
from harness.rollout.transformers_engine import TransformersEngine
from harness.run.run import run
from harness.training.teacher import LocalScorer
from harness.training.update import Updater
from harness.types import Prompt, Question, ReplayedQuestion, RolloutGroup, TrainingSample
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
    """A method class with its options, and what one step of it gives."""

    def __init__(self, method_class: type[Method], options: dict[str, Any]) -> None:
        known = {field.name for field in fields(method_class.Config)}
        self.method_class = method_class
        self.options = {key: value for key, value in SMALL.items() if key in known} | options

    def build(self) -> Method:
        config: MethodConfig = self.method_class.Config(**self.options)
        return self.method_class(config)

    def step(self) -> Step:
        """One fresh step from the same seed."""
        return lab().step(self.build())

    @cached_property
    def _first(self) -> Step:
        return self.step()

    def first(self) -> Step:
        """The groups and samples of a step; a copy, to be changed at will."""
        return copy.deepcopy(self._first)

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
class Step:
    """What a step gave, and what really was sampled for it."""

    groups: list[RolloutGroup]
    samples: list[TrainingSample]
    witness: Witness


@dataclass
class Witness:
    """Every sequence that a model sampled or that was given, as it was before the method got hold of it."""

    num_given: dict[str, dict[tuple[int, ...], int]] = field(default_factory=lambda: {"student": {}, "teacher": {}})
    """By sampler: token ids, and how many of them were not sampled (prompt and prefix)."""
    student_groups: list[RolloutGroup] = field(default_factory=list)

    def record(self, sampler: str, group: RolloutGroup) -> None:
        for rollout in group.rollouts:
            ids = (*rollout.prompt_ids, *rollout.completion_ids)
            given = len(rollout.prompt_ids) + rollout.num_prefix
            # A prefix and what follows may be sampled without the prefix, too.
            self.num_given[sampler][ids] = min(given, self.num_given[sampler].get(ids, given))
        if sampler == "student":
            self.student_groups.append(copy.deepcopy(group))


class WitnessedActors(LiveActors):
    """The actors of a run, with a `Witness`."""

    witness: Witness

    def _grade(self, group: RolloutGroup) -> None:
        super()._grade(group)
        self.witness.record(group.rollouts[0].sampler, group)

    def demonstrate(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[RolloutGroup]:
        groups = super().demonstrate(prompts, texts)
        for group in groups:
            self.witness.record("teacher", group)
        return groups


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
        models = {
            name: LanguageModel.for_chat(load_model(config, "cpu"), self.chat) for name, config in configs.items()
        }
        self.student, self.teacher = models["student"], models["teacher"]
        self._engines = {
            "student": TransformersEngine(self.student, self.chat, sampler="student", max_sequences=256),
            "teacher": TransformersEngine(self.teacher, self.chat, sampler="teacher", max_sequences=256),
        }
        self._grader = Grader(RewardConfig())
        atexit.register(self._grader.close)

    def fresh_student(self) -> LanguageModel:
        return LanguageModel.for_chat(copy.deepcopy(self.student.module), self.chat)

    def step(self, method: Method) -> Step:
        """Six new questions and two replayed ones, mostly hard for the student; seed 0, step 1."""
        questions = make_questions([1, 2, 3], 8, seed=0, split="train")
        replayed = [ReplayedQuestion(question=q, visits=0, entry_accuracy=0.0) for q in questions[6:]]
        actors = WitnessedActors(
            student=self._engines["student"],
            teacher=self._engines["teacher"] if method.needs_teacher != "none" else None,
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
            return Step(groups, method.credit(groups), actors.witness)
        finally:
            actors.close()


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
