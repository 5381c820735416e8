"""The models of a run over ranks: made in the same order on each, since parts of it are collective.

The student is cut over ranks (`sharding`); its engine has complete weights of its own. A teacher that only samples is
at the first rank of each node, which serves it on the node's teacher GPUs by loopback. A teacher whose distribution is
read is at every rank, by its node's endpoint where it is served.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from transformers import PreTrainedModel

from harness.config.deployment import Deployment, TeacherPlace
from harness.config.schema import RunConfig
from harness.distributed.engine import ShardedEngine, engine_commands
from harness.distributed.messages import share_vision
from harness.distributed.ranks import Ranks
from harness.distributed.sharding import ShardedModel
from harness.distributed.world import World
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.identity import model_identity
from harness.models.loading import load_model
from harness.process.step_clock import StepClock
from harness.rollout.base import RolloutEngine
from harness.rollout.transformers_engine import TransformersEngine
from harness.training.models import (
    Teacher,
    load_student,
    open_teacher,
    server_log,
    student_engine,
)
from harness.training.update import Updater
from methods.base import Method


class RankModels:
    """This rank's part of `harness.training.models.RunModels`. On rank 0 engines and updater stand for those of all."""

    def __init__(
        self,
        config: RunConfig,
        deployment: Deployment,
        chat: Chat,
        world: World,
        *,
        logs: Path,
        stack: ExitStack,
    ) -> None:
        self._config, self._chat, self._world, self._logs, self._stack = config, chat, world, logs, stack
        self._deployment = deployment
        self.student: LanguageModel | None
        self.sharded: ShardedModel | None = None
        self.engines: dict[str, RolloutEngine] = {}
        """This rank's own."""
        self._gathering: PreTrainedModel | None = None
        share_vision(lambda: chat.vision)
        chat.shown = world.meet(chat.shown)[0]  # rank 0 reads the data first and alone; all probe with the same
        student = self.student = load_student(config, deployment, chat)
        assert student is not None, "a served student has no ranks"
        world.meet()  # models load at different speed, and cutting is a collective
        if deployment.student.is_trained:
            self.sharded = ShardedModel(student, world.mesh)
        sampled = None if self.sharded is not None else student
        own = student_engine(config, deployment, chat, sampled, log=server_log(logs, "student"), stack=stack)
        if self.sharded is not None:
            world.commands = engine_commands(own, self.sharded.whole_tensors) | {"gather": self._gather}
        world.meet()
        self.engines["student"] = own
        self.engine = own if world.rank else ShardedEngine(own, world, "student", range(world.size))

    @property
    def complete(self) -> LanguageModel | None:
        if self.sharded is None:
            return self.student
        own = self.engines["student"]
        return own.model if isinstance(own, TransformersEngine) else None

    def open_teacher(self, method: Method) -> Teacher:
        whole, rank = self._deployment.teacher, self._world.place
        if whole is None:
            return Teacher()
        opened = Teacher()
        if rank.leads_node:
            opened = self._open_part(method, whole)
        if whole.is_everywhere:
            urls = self._world.meet(list(opened.urls))[rank.rank - rank.local_rank]  # the node's first rank's
            if not rank.leads_node:
                opened = self._open_part(method, whole.at(rank.local_rank), urls)
        self._world.meet()
        if opened.engine is not None:
            self.engines["teacher"] = opened.engine
        ranks = range(rank.world_size) if whole.samples_everywhere else self._world.node_leaders()
        if rank.rank or opened.engine is None or len(ranks) == 1:
            return opened
        engine = ShardedEngine(opened.engine, self._world, "teacher", ranks)
        return dataclasses.replace(opened, engine=engine)

    def _open_part(self, method: Method, part: TeacherPlace, urls: Sequence[str] = ()) -> Teacher:
        rank = self._world.place
        log = server_log(self._logs, "teacher", rank.node)
        return open_teacher(
            method, self._config, part, self._chat, log=log, stack=self._stack, local_rank=rank.local_rank, urls=urls
        )

    def updater(self, method: Method, teacher: Teacher, clock: StepClock | None = None) -> Updater:
        student = self.student
        assert self.sharded is not None and student is not None
        ranks = Ranks(self._world, self.sharded)
        updater = Updater(
            student=student,
            teacher=teacher.scorer,
            method=method,
            config=self._config.update,
            temperature=self._config.rollout.temperature,
            ranks=ranks,
            clock=clock,
        )
        self._world.commands = {**self._world.commands, **ranks.commands(updater)}
        return updater

    def finished(self) -> PreTrainedModel:
        """In this host's memory; the tensors come one at a time."""
        self._gathering = load_model(self._config.student, "cpu")
        try:
            self._world.call("gather")
            return self._gathering
        finally:
            self._gathering = None

    def identity(self) -> str:
        assert self.student is not None
        return model_identity(self.student.module if self.sharded is None else self.finished(), self._chat)

    def _gather(self) -> None:
        assert self.sharded is not None
        own = {} if self._gathering is None else dict(self._gathering.named_parameters())
        with torch.no_grad():
            for name, tensor in self.sharded.whole_tensors():
                if name in own:
                    own[name].copy_(tensor)
