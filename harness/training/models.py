"""The models of a run and what it makes of them: student, engine, teacher, updater, the final weights."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedModel

from harness.config.schema import RunConfig
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.identity import model_identity
from harness.process.step_clock import StepClock
from harness.rollout.base import RolloutEngine
from harness.rollout.build import Teacher, load_student, open_teacher, student_engine
from harness.training.update import Updater
from methods.base import Method

STUDENT_LOG, TEACHER_LOG = "student.server.log", "teacher.server.log"


class Models(Protocol):
    """As the run has them: in this process, or over ranks (`harness.distributed.build`)."""

    student: LanguageModel | None
    """None where endpoints answer for it."""
    engine: RolloutEngine

    def open_teacher(self, method: Method) -> Teacher: ...

    def updater(self, method: Method, teacher: Teacher, clock: StepClock) -> Updater: ...

    def finished(self) -> PreTrainedModel:
        """The trained student in its own dtype, whole: what is saved is what is evaluated."""
        ...

    def identity(self) -> str:
        """Which model answers. What an endpoint has behind a name is not known here: only the name counts."""
        ...


class LocalModels:
    """Those of one process. What they start ends with `stack`, and writes its logs into `folder`."""

    def __init__(self, config: RunConfig, chat: Chat, *, trained: bool, folder: Path, stack: ExitStack) -> None:
        self._config, self._chat, self._folder, self._stack = config, chat, folder, stack
        self.student = None if config.student.is_served else load_student(config, chat, trained=trained)
        self.engine = student_engine(config, chat, self.student, log=folder / STUDENT_LOG, stack=stack)

    def open_teacher(self, method: Method) -> Teacher:
        return open_teacher(method, self._config, self._chat, log=self._folder / TEACHER_LOG, stack=self._stack)

    def updater(self, method: Method, teacher: Teacher, clock: StepClock) -> Updater:
        assert self.student is not None
        return Updater(
            student=self.student,
            teacher=teacher.scorer,
            method=method,
            config=self._config.update,
            temperature=self._config.rollout.temperature,
            clock=clock,
        )

    def finished(self) -> PreTrainedModel:
        assert self.student is not None
        # The fp32 weights are in the last checkpoint.
        self.student.module.to(dtype=getattr(torch, self._config.student.dtype))  # type: ignore[call-arg]
        return self.student.module

    def identity(self) -> str:
        if self.student is None:
            return f"served:{self._config.student.served_name or self._config.student.path}"
        return model_identity(self.student.module, self._chat)
