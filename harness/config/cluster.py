"""Where a run's processes are: that part of the configuration. Imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from harness.config.gpus import GPUS
from harness.config.values import Seconds, Text
from harness.errors import UserError, did_you_mean


@dataclass
class ClusterConfig:
    """Nodes of one kind. Each has GPUs that train and sample the student, and may have GPUs for the teacher alone."""

    name: Text = "local"
    """Name of the placement in plans. `local` is one process on this machine, whatever device it has."""
    num_nodes: PositiveInt = 1
    """Machines that the run takes (Table 8: 8)."""
    student_gpus: PositiveInt = 1
    """GPUs of each node that train and sample the student, one rank for each (Table 8: 6). `data.batch_size` has to be
    a multiple of all ranks."""
    teacher_gpus: NonNegativeInt = 0
    """Further GPUs of each node that run the teacher alone (Table 8: 2). 0: the teacher shares the student's."""
    gpu: Text = ""
    """Type of all GPUs, a name that `zppo plan` knows, such as `H100-80GB`. Empty: not stated."""
    collective_timeout: Seconds = 600.0
    """Seconds in which all ranks have to meet and to take part in a collective. After them the run ends with a
    remedy."""

    port: Annotated[int, Field(ge=0, le=65_535)] = 0
    """Port of the first node at which rank 0 listens for the others. 0 takes a free one."""

    @property
    def world_size(self) -> int:
        """Ranks of the student."""
        return self.num_nodes * self.student_gpus


def check_cluster(cluster: ClusterConfig, batch_size: int) -> None:
    """Raises UserError for GPUs that are unknown or of several types, and for ranks without equal shares."""
    types = [name for name in re.split(r"[+,;/\s]+", cluster.gpu) if name]
    for name in types:
        if name not in GPUS:
            raise UserError(f"cluster.gpu={name} is not known.{did_you_mean(name, GPUS)}")
    if len(set(types)) > 1:
        least = min(types, key=lambda name: GPUS[name].memory_gb)
        raise UserError(
            f"cluster.gpu={cluster.gpu} mixes types: all ranks step together and get equal shards, so the smallest and "
            f"slowest decides; ask for nodes of one type, or plan with cluster.gpu={least}"
        )
    if batch_size % cluster.world_size:
        below, above = (batch_size // cluster.world_size + more for more in (0, 1))
        near = " or ".join(str(n * cluster.world_size) for n in (below, above) if n)
        raise UserError(
            f"data.batch_size={batch_size} cannot be shared equally by {cluster.world_size} ranks (cluster.num_nodes="
            f"{cluster.num_nodes} x cluster.student_gpus={cluster.student_gpus}): set data.batch_size={near}"
        )
