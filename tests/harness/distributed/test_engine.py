"""Engines of several ranks in front of each other: threads stand for ranks, over the connections that ranks have."""

from __future__ import annotations

import threading
from multiprocessing import Pipe
from types import SimpleNamespace

import pytest
import torch

from harness.config.schema import UpdateConfig
from harness.distributed.engine import ShardedEngine, serve
from harness.errors import UserError
from harness.rollout.transformers_engine import TransformersEngine
from harness.testing.lab import lab
from harness.training.transfer import PROBE_ROLLOUTS, Transfer
from harness.training.update import Updater
from methods.grpo import GRPO

NUM_RANKS = 8


class Lanes:
    """The leader's end of the student's connections, with a served engine at each other end."""

    def __init__(self, engines: list[TransformersEngine]) -> None:
        self._ends = {}
        for rank, engine in enumerate(engines[1:], 1):
            self._ends[rank], theirs = Pipe()
            threading.Thread(target=self._serve, args=(theirs, engine), daemon=True).start()

    @staticmethod
    def _serve(link, engine) -> None:
        try:
            serve(link, engine)
        except EOFError:  # the test is over
            return

    def send(self, lane, rank, message) -> None:
        self._ends[rank].send(message)

    def receive(self, lane, rank):
        return self._ends[rank].recv()


class Counted(TransformersEngine):
    def __init__(self, model) -> None:
        super().__init__(model, lab().chat, "student", 64)
        self.has_own_weights = True
        self.num_sampled = 0

    def generate(self, prompts, sampling):
        for group in super().generate(prompts, sampling):
            self.num_sampled += len(group.rollouts)
            yield group


@pytest.mark.parametrize("other", [None, 5])
def test_the_probe_reaches_every_engine_and_names_the_one_with_other_weights(other):
    student, moved = lab().fresh_student(), lab().fresh_student()
    with torch.no_grad():
        for parameter in moved.module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.05)
    engines = [Counted(moved if rank == other else student) for rank in range(NUM_RANKS)]
    world = SimpleNamespace(leader=Lanes(engines), call=lambda name: None)
    updater = Updater(student=student, teacher=None, method=GRPO(GRPO.Config()), config=UpdateConfig(), temperature=1.0)
    transfer = Transfer(
        ShardedEngine(engines[0], world, "student", range(NUM_RANKS)), student, logprobs=updater.logprobs,
        dtype="float32", temperature=1.0, timeout=60.0, num_engines=NUM_RANKS,
    )  # fmt: skip
    if other is None:
        assert transfer(3)["transfer/probe_gap"] < 1e-5
    else:
        with pytest.raises(UserError, match=r"of the engine of rank 5 are not those of the student after step 3"):
            transfer(3)
    assert [engine.num_sampled for engine in engines] == [PROBE_ROLLOUTS] * NUM_RANKS
