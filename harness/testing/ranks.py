"""Functions on several ranks of this machine, each in a process of its own, with gloo on the CPU."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from harness.distributed.place import Place

if TYPE_CHECKING:
    from harness.config import RunConfig
    from harness.distributed.world import World
    from methods.base import Method

    Body = Callable[..., Any]
    """`body(config, method, world, *arguments)`, a function at the top of its file."""

PRELOAD = ["harness.testing.ranks", "harness.distributed.build", "torch.distributed.fsdp"]
SECONDS = 120
"""After which a rank is stuck."""


def run_ranks(num_ranks: int, body: Body, overrides: Sequence[str], *arguments: Any) -> list[Any]:
    """What `body` returned on every rank. Raises AssertionError for a rank that does not return."""
    file = body.__code__.co_filename  # test files are no package that a process could import
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(num_ranks):
        place = Place(
            rank=rank,
            world_size=num_ranks,
            local_rank=rank,
            local_world_size=num_ranks,
            address="127.0.0.1",
            port=port,
        )
        receiver, sender = context.Pipe(duplex=False)
        lines = [*overrides, f"cluster.student_gpus={num_ranks}", f"data.batch_size={4 * num_ranks}", "device=cpu"]
        process = context.Process(target=_rank, args=(place, file, body.__name__, lines, arguments, sender))
        process.start()
        sender.close()
        started.append((process, receiver))
    try:
        results = []
        for rank, (_, receiver) in enumerate(started):
            assert receiver.poll(SECONDS), f"rank {rank} is stuck"
            results.append(receiver.recv())
        return results
    except EOFError:
        raise AssertionError(f"rank {rank} has ended without a result") from None
    finally:
        for process, _ in started:
            process.join(10)
            process.kill()


def _rank(
    place: Place, file: str, body: str, overrides: list[str], arguments: tuple[Any, ...], sender: Connection
) -> None:
    from harness.compose import compose
    from harness.config import from_hydra
    from harness.distributed.world import opened
    from harness.run import build_method

    os.environ.update(place.environment())
    config: RunConfig = from_hydra(compose(overrides))
    method: Method | None = build_method(config)
    world: World
    with opened(config, place) as world:
        sender.send(runpy.run_path(file)[body](config, method, world, *arguments))
        world.gather(None)  # rank 0's end is everybody's
