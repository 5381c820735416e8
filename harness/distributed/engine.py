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
        self._waiting: dict[tuple[int, int], queue.SimpleQueue[RolloutGroup | Exception]] = {}
        """Where what a rank sends of a call goes."""
        self._is_reading = False

    @property
    def context_window(self) -> int:
        return self._engine.context_window

    def generate(self, prompts: Iterable[Prompt], sampling: Sampling) -> Iterator[RolloutGroup]:
        given, number = list(prompts), next(self._numbers)
        own, *rest = blocks(len(given), 1 + len(self._others))
        asked = [(rank, block) for rank, block in zip(self._others, rest, strict=True) if block]
        self._start_reading()
        for rank, block in asked:
            self._waiting[rank, number] = queue.SimpleQueue()
            self._world.leader.send(self._lane, rank, (number, [given[i] for i in block], sampling))
        ours = self._engine.generate([given[i] for i in own], sampling)
        theirs = [(given[i], (rank, number)) for rank, block in asked for i in block]
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

    def _groups(
        self, ours: Iterator[RolloutGroup], theirs: Sequence[tuple[Prompt, tuple[int, int]]]
    ) -> Iterator[RolloutGroup]:
        try:
            yield from ours
            for prompt, key in theirs:
                group = self._waiting[key].get()
                if isinstance(group, Exception):
                    raise group
                group.prompt = prompt
                yield group
        finally:
            for key in {key for _, key in theirs}:
                del self._waiting[key]

    def _start_reading(self) -> None:
        """One reader a rank, for as long as the engine lives. What is sent is taken at once, and goes to the call that
        asked for it, also where an earlier one was given up."""
        if not self._is_reading:
            self._is_reading = True
            for rank in self._others:
                threading.Thread(target=self._read, args=(rank,), name=f"groups of {rank}", daemon=True).start()

    def _read(self, rank: int) -> None:
        try:
            while True:
                number, content = self._world.leader.receive(self._lane, rank)
                if (groups := self._waiting.get((rank, number))) is not None:
                    groups.put(content)
        except Exception as error:  # the rank is lost, and later calls are refused
            for (other, _), groups in list(self._waiting.items()):
                if other == rank:
                    groups.put(error)


def serve(link: Connection, engine: RolloutEngine) -> None:
    """A follower's side of one connection: sample what is asked for, until the process ends."""
    while True:
        number, prompts, sampling = link.recv()
        try:
            groups = engine.generate(prompts, sampling)
            found: dict[str, RolloutGroup] = {}
            for prompt in prompts:
                while prompt.uid not in found:
                    group = next(groups)
                    found[group.uid] = group
                link.send((number, found.pop(prompt.uid)))
        except UserError as error:
            link.send((number, plain_error(error)))


def engine_commands(
    engine: RolloutEngine, tensors: Callable[[], Iterator[tuple[str, torch.Tensor]]]
) -> dict[str, Callable[..., Any]]:
    """What rank 0 has every rank do with its engine. `tensors` gathers the student's weights."""
    return {
        "load_weights": lambda: engine.load_weights(tensors()),
        "sleep": engine.sleep,
        "wake": engine.wake,
    }
