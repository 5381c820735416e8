"""All ranks of a run: how rank 0 has them do the same thing, and the few collectives that the harness makes itself.

Rank 0 is the controller. It alone runs the train loop; the others follow its commands (`harness.distributed.follower`).
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from harness.config.deployment import Deployment, gpu_problems
from harness.config.schema import RunConfig
from harness.distributed.links import GOES_ON, LEAVE, LOOPBACK, Follower, Leader, RankLost
from harness.distributed.rank import VARIABLES, Place
from harness.errors import UserError, first_line
from harness.models.devices import use_device
from harness.process.preemption import handling, received, uninterrupted

Command = Callable[..., Any]
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class World:
    """This rank among the others; made by `opened`. `commands` are what rank 0 may `call`."""

    def __init__(self, config: RunConfig, deployment: Deployment, place: Place) -> None:
        self.place = place
        self.rank, self.size = place.rank, place.world_size
        self.commands: Mapping[str, Command] = {}
        self._timeout, self._port = config.cluster.collective_timeout, config.cluster.port
        self._device = _own_device(config, deployment, place)
        self._lock = threading.Lock()
        self.links: Leader | Follower
        _start_process_group(place, self._device, self._timeout)
        self.mesh: DeviceMesh = init_device_mesh(self._device.type, (self.size,))
        self._refuse_mixed()
        self._connect()

    @property
    def leader(self) -> Leader:
        assert isinstance(self.links, Leader), "only rank 0 gives commands"
        return self.links

    @property
    def follower(self) -> Follower:
        assert isinstance(self.links, Follower), "rank 0 follows nobody"
        return self.links

    def node_leaders(self) -> list[int]:
        """The first rank of every node."""
        return list(range(0, self.size, self.place.local_world_size))

    def call(self, name: str, arguments: Sequence[Mapping[str, Any]] | None = None, **common: Any) -> list[Any]:
        """Have every rank run a command, this one too; its results by rank. `arguments` are each rank's own.

        A signal that ends the run waits until all are through: a command that takes long asks `is_stopping`.
        Raises RankLost or RankFailed.
        """
        leader = self.leader
        each = [{**common, **own} for own in arguments or [{}] * self.size]
        with uninterrupted(), self._lock, self._collective():
            for rank in range(1, self.size):
                leader.send("work", rank, (name, each[rank]))
            own = self.commands[name](**each[0])
            return [own, *(leader.receive("work", rank) for rank in range(1, self.size))]

    def maximum(self, value: int) -> int:
        """The maximum of all ranks' values."""
        tensor = torch.tensor([value])
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor)

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place."""
        dist.all_reduce(value)
        return value

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def meet(self, value: Any = None) -> list[Any]:
        """Every rank's value, by rank, as `gather`; but no collective, and so without a deadline: a rank may load or
        start something for as long as it lives. Raises RankLost or RankFailed on rank 0."""
        others = range(1, self.size)
        if self.rank:
            lane = self.follower.lanes["work"]
            lane.send(value)
            values: list[Any] = lane.recv()
            return values
        values = [value, *(self.leader.receive("work", rank) for rank in others)]
        for rank in others:
            self.leader.send("work", rank, values)
        return values

    def is_stopping(self, here: bool = False) -> bool:
        """Whether all ranks shall stop, because one has reason to (`here`) or rank 0 was sent a signal that ends the
        run: the same answer on every rank."""
        return bool(self.maximum(int(here or (self.rank == 0 and received() is not None))))

    @contextmanager
    def _collective(self) -> Iterator[None]:
        """An error of a collective is named after the rank that it comes from."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if (loss := self.leader.known_loss()) is not None:
                raise loss from error
            if isinstance(error, RuntimeError) and _is_of_a_collective(error):
                raise RankLost(
                    f"step {self.leader.step()}: a collective did not come about in cluster.collective_timeout="
                    f"{self._timeout:g} s ({first_line(error)}); {GOES_ON}"
                ) from error
            raise

    def _refuse_mixed(self) -> None:
        """Every rank waits for the slowest, and the smallest memory decides."""
        is_gpu = self._device.type == "cuda"
        names = self.gather(torch.cuda.get_device_name(self._device) if is_gpu else "cpu")
        if len(set(names)) > 1:
            where = ", ".join(f"{name} on rank {names.index(name)}" for name in sorted(set(names)))
            raise UserError(f"ranks of different types ({where}): ask for nodes of one type")

    def _connect(self) -> None:
        key = secrets.token_bytes(32)
        if self.rank == 0:
            host = LOOPBACK if self.place.is_alone_on_machine else self.place.address
            leader = Leader(self.size, host, key, self._timeout, self._port)
            self.gather((leader.address, key))
            self.links = leader
            leader.accept()
        else:
            address, key = self.gather(None)[0]
            self.links = Follower(address, key, self.rank, str(self.place), self._timeout)


@contextmanager
def opened(config: RunConfig, deployment: Deployment, place: Place) -> Iterator[World]:
    """Meet the other ranks; on rank 0, tell them the end, with the exit code of this process."""
    world = World(config, deployment, place)
    if place.rank:
        with handling(SIGNALS, world.follower.forward), handling((signal.SIGINT,), lambda *_: None):
            yield world
        return
    code = 1
    try:
        yield world
        code = 0
    except UserError as error:
        code = error.exit_code
        raise
    except KeyboardInterrupt:
        code = 130
        raise
    finally:
        world.leader.end(code)


def _own_device(config: RunConfig, deployment: Deployment, place: Place) -> torch.device:
    """Raises UserError where this node has too few GPUs."""
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    for problem in gpu_problems(config, deployment, torch.cuda.device_count(), where=f"node {place.node}"):
        raise UserError(problem)
    device = torch.device("cuda", place.local_rank)
    use_device(device)
    return device


def _start_process_group(place: Place, device: torch.device, timeout: float) -> None:
    """Raises UserError where the ranks do not reach each other in time."""
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    if place.is_alone_on_machine:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            init_method="env://",  # with torchrun its agent has the store, not rank 0
            rank=place.rank,
            world_size=place.world_size,
            timeout=timedelta(seconds=timeout + 2 * LEAVE),  # a rank that hangs is named before
        )
        dist.all_reduce(torch.zeros(1, device=device))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{place.world_size} ranks did not meet at {place.address}:{place.port} in cluster.collective_timeout="
            f"{timeout:g} s ({first_line(error)}): see that all were started and that the nodes reach each other; of "
            "several networks name one in NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME; NCCL_DEBUG=INFO says more"
        ) from error
    # What this process starts (vLLM's servers, graders, evaluations) is no rank, and must not take itself for one.
    for name in (*VARIABLES[:4], *[n for n in os.environ if n.startswith("TORCHELASTIC_")]):
        with suppress(KeyError):
            del os.environ[name]


def _is_of_a_collective(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(w in text for w in ("gloo", "nccl", "timed out", "connection"))
