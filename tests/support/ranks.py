"""Functions and runs on several ranks of this machine, each in a process of its own, with gloo on the CPU."""

from __future__ import annotations

import faulthandler
import os
import runpy
import signal
import socket
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Collection, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.distributed.rank import Place
from tests.support.fork_server import fork_server

if TYPE_CHECKING:
    from harness.config.schema import RunConfig
    from harness.distributed.world import World
    from methods.base import Method

    Body = Callable[..., Any]
    """`body(config, method, world, *arguments)`, a function at the top of its file."""

SECONDS = 120
"""After which a rank is stuck."""


def run_ranks(num_ranks: int, body: Body, overrides: Sequence[str], *arguments: Any) -> list[Any]:
    """What `body` returned on every rank. Raises AssertionError for a rank that does not return."""
    file = body.__code__.co_filename  # test files are no package that a process could import
    context = fork_server()
    started = []
    lines = [*overrides, f"cluster.student_gpus={num_ranks}", f"data.batch_size={4 * num_ranks}", "device=cpu"]
    for place in _places(num_ranks):
        receiver, sender = context.Pipe(duplex=False)
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


class RankedRun:
    """`zppo train` on ranks that a test may kill or stop; what each says is in `text`."""

    def __init__(self, num_ranks: int, overrides: Sequence[str], folder: Path) -> None:
        context = fork_server()
        lines = [*overrides, f"cluster.student_gpus={num_ranks}", "device=cpu"]
        self._logs = [folder / f"rank-{uuid.uuid4().hex}.log" for _ in range(num_ranks)]
        self.processes = []
        for place, log in zip(_places(num_ranks), self._logs, strict=True):
            process = context.Process(target=_train, args=(place, lines, str(log)))
            process.start()
            self.processes.append(process)

    def send(self, rank: int, number: int) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def wait(self, seconds: float = SECONDS, *, without: Collection[int] = ()) -> list[int | None]:
        """The exit codes, None for the ranks `without`, which are killed. Raises AssertionError for one that stays."""
        end = time.monotonic() + seconds
        for rank, process in enumerate(self.processes):
            if rank not in without:
                process.join(max(0.1, end - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for rank, process in enumerate(self.processes):
            if codes[rank] is None and rank not in without:
                self.send(rank, signal.SIGABRT)  # it writes its stacks
                process.join(5)
            process.kill()
        stuck = [rank for rank, code in enumerate(codes) if code is None and rank not in without]
        assert not stuck, f"rank {stuck} is stuck: {self.text}"
        return codes

    @property
    def text(self) -> str:
        return "".join(log.read_text(encoding="utf-8") for log in self._logs if log.exists())


def _places(num_ranks: int) -> list[Place]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"world_size": num_ranks, "local_world_size": num_ranks, "address": "127.0.0.1", "port": port}
    return [Place(rank=rank, local_rank=rank, **common) for rank in range(num_ranks)]


def _train(place: Place, overrides: list[str], log: str) -> None:
    from harness.app import main

    os.environ.update(place.environment())
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    for number in (1, 2):
        os.dup2(descriptor, number)
    faulthandler.enable(2)
    try:
        code = main(["train", *overrides])
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


def _rank(
    place: Place, file: str, body: str, overrides: list[str], arguments: tuple[Any, ...], sender: Connection
) -> None:
    from harness.config.compose import compose
    from harness.config.deployment import Deployment, build_method
    from harness.config.schema import from_hydra
    from harness.distributed.world import opened

    os.environ.update(place.environment())
    config: RunConfig = from_hydra(compose(overrides))
    method: Method | None = build_method(config)
    world: World
    with opened(config, Deployment.of(config, method), place) as world:
        sender.send(runpy.run_path(file)[body](config, method, world, *arguments))
        world.gather(None)  # rank 0's end is everybody's
