"""Which of a run's processes this one is, as its launcher says it in the environment. Imports no torch."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from harness.config.schema import RunConfig
from harness.errors import UserError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun and `harness.distributed.launch` tell a rank."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A rank, and the node that it is on. Nodes have equally many ranks, numbered node by node."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    address: str
    """Address of the node of rank 0."""
    port: int

    @property
    def node(self) -> int:
        return self.rank // self.local_world_size

    @property
    def num_nodes(self) -> int:
        return self.world_size // self.local_world_size

    @property
    def leads_node(self) -> bool:
        return self.local_rank == 0

    @property
    def is_alone_on_machine(self) -> bool:
        """Whether all ranks are on this machine, so that nothing has to leave it."""
        return self.num_nodes == 1

    def environment(self) -> dict[str, str]:
        values = (
            self.rank,
            self.world_size,
            self.local_rank,
            self.local_world_size,
            self.address,
            self.port,
        )
        return dict(zip(VARIABLES, map(str, values), strict=True))

    def __str__(self) -> str:
        return f"rank {self.rank} (node {self.node}, process {os.getpid()} on {socket.gethostname()})"


def this_place(environ: Mapping[str, str] | None = None) -> Place | None:
    """None where no launcher says so, and for a single process. Raises UserError for half of the variables."""
    environ = os.environ if environ is None else environ
    if int(environ.get("WORLD_SIZE", "1")) == 1:
        return None
    missing = [name for name in VARIABLES if name not in environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE={environ['WORLD_SIZE']} without {missing[0]}: start ranks with torchrun, or with zppo train "
            "cluster=NAME, which starts them itself"
        )
    rank, size, local_rank, local_size = (int(environ[name]) for name in VARIABLES[:4])
    if size % local_size:
        raise UserError(f"{size} ranks on nodes of {local_size}: all nodes have to have equally many")
    return Place(
        rank=rank,
        world_size=size,
        local_rank=local_rank,
        local_world_size=local_size,
        address=environ["MASTER_ADDR"],
        port=int(environ["MASTER_PORT"]),
    )


_started_as = os.environ.get("LOCAL_RANK", "0")


def speaks() -> bool:
    """Whether this process is the one of its node that tells a user what is wrong."""
    return os.environ.get("LOCAL_RANK", _started_as) == "0"


def check_place(config: RunConfig, place: Place | None) -> None:
    """Raises UserError where the processes that were started are not those that the configuration describes."""
    cluster, size = config.cluster, 1 if place is None else place.world_size
    if size == cluster.world_size == 1:
        return
    if place is None:
        raise UserError(f"cluster={cluster.name} has {cluster.world_size} ranks: zppo train or torchrun starts them")
    if (place.num_nodes, place.local_world_size) != (cluster.num_nodes, cluster.student_gpus):
        raise UserError(
            f"{size} ranks were started, {place.local_world_size} a node, and cluster={cluster.name} has "
            f"{cluster.num_nodes} x {cluster.student_gpus}: set cluster.num_nodes={place.num_nodes} "
            f"cluster.student_gpus={place.local_world_size}, or leave torchrun out: zppo train starts its ranks"
        )
