"""Sampling over ranks: each rank's engine has a block of the prompts, and rank 0 gets the groups in order."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from harness.distributed.balance import blocks
from harness.distributed.messages import plain_error
from harness.distributed.world import World
from harness.errors import UserError
from harness.rollout.base import RolloutEngine, Sampling
from harness.types import Prompt, RolloutGroup


class ShardedEngine:
    """The `RolloutEngine` of rank 0 in front of the engines of `ranks`, itself the first of them.

    Prompts go to ranks in consecutive blocks of equal size. A rollout's draws do not depend on where it is sampled, so
    groups are the same for any number of ranks, up to the rounding of other batches.
    """

    def __init__(self, engine: RolloutEngine, world: World, lane: str, ranks: Sequence[int]) -> None:
        self.sampler = engine.sampler
        self.has_own_weights = engine.has_own_weights
        self.takes_late_prompts = False  # blocks are cut when all are known
        self._engine, self._world, self._lane = engine, world, lane
        self._others = [rank for rank in ranks if rank]
        self._numbers = itertools.count()

    @property
    def context_window(self) -> int:
        return self._engine.context_window

    def generate(self, prompts: Iterable[Prompt], sampling: Sampling) -> Iterator[RolloutGroup]:
        given, number = list(prompts), next(self._numbers)
        own, *rest = blocks(len(given), 1 + len(self._others))
        asked = [(rank, block) for rank, block in zip(self._others, rest, strict=True) if block]
        arriving = []
        for rank, block in asked:
            self._world.leader.send(self._lane, rank, (number, [given[i] for i in block], sampling))
            groups: queue.SimpleQueue[RolloutGroup | Exception] = queue.SimpleQueue()
            arriving.append(groups)
            threading.Thread(target=self._read, args=(rank, number, groups), daemon=True).start()
        ours = self._engine.generate([given[i] for i in own], sampling)
        theirs = [(given[i], groups) for (_, block), groups in zip(asked, arriving, strict=True) for i in block]
        return self._groups(ours, theirs)

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Every rank gathers the student's weights into its own engine; these are the ones that are given here."""
        self._world.call("load_weights")

    def sleep(self) -> None:
        self._world.call("sleep")

    def wake(self) -> None:
        self._world.call("wake")

    def close(self) -> None:
        self._engine.close()

    @staticmethod
    def _groups(
        ours: Iterator[RolloutGroup], theirs: Sequence[tuple[Prompt, queue.SimpleQueue[Any]]]
    ) -> Iterator[RolloutGroup]:
        yield from ours
        for prompt, groups in theirs:
            group = groups.get()
            if isinstance(group, Exception):
                raise group
            group.prompt = prompt
            yield group

    def _read(self, rank: int, number: int, groups: queue.SimpleQueue[RolloutGroup | Exception]) -> None:
        """Take a rank's groups as they come, so that it never waits to be read; those of a call that was given up,
        which come before, are dropped."""
        try:
            while True:
                theirs, kind, content = self._world.leader.receive(self._lane, rank)
                if theirs != number:
                    continue
                if kind == "done":
                    return
                groups.put(content)
                if kind == "error":
                    return
        except Exception as error:
            groups.put(error)


def serve(link: Connection, engine: RolloutEngine) -> None:
    """A follower's side of one lane: sample what is asked for, until the process ends."""
    while True:
        number, prompts, sampling = link.recv()
        try:
            groups = engine.generate(prompts, sampling)
            found: dict[str, RolloutGroup] = {}
            for prompt in prompts:
                while prompt.uid not in found:
                    group = next(groups)
                    found[group.uid] = group
                link.send((number, "group", found.pop(prompt.uid)))
            link.send((number, "done", None))
        except UserError as error:
            link.send((number, "error", plain_error(error)))


def engine_commands(
    engine: RolloutEngine, tensors: Callable[[], Iterator[tuple[str, torch.Tensor]]]
) -> dict[str, Callable[..., Any]]:
    """What rank 0 has every rank do with its engine. `tensors` gathers the student's weights."""
    return {
        "load_weights": lambda: engine.load_weights(tensors()),
        "sleep": engine.sleep,
        "wake": engine.wake,
    }
