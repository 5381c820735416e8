"""Where a run's processes are: that part of the configuration. Imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.config.gpus import GPUS
from harness.errors import UserError, did_you_mean


@dataclass
class ClusterConfig:
    """Nodes of one kind, each with GPUs that train and sample the student and GPUs that serve the teacher."""

    name: str = "local"
    """One process on this machine, whatever device it has."""
    num_nodes: int = 1
    student_gpus: int = 1
    """Of a node: its ranks, which train and sample."""
    teacher_gpus: int = 0
    """Of a node: they serve the teacher, for its rollouts, rewrites and verdicts. 0: it shares the student's."""
    gpu: str = ""
    """A name that `zppo plan` knows; all are of this type. Empty: not stated."""
    collective_timeout: float = 600.0
    """Seconds in which all ranks have to take part in a collective."""

    @property
    def world_size(self) -> int:
        """Ranks of the student."""
        return self.num_nodes * self.student_gpus


POSITIVE = ("cluster.num_nodes", "cluster.student_gpus", "cluster.collective_timeout")


def check_cluster(cluster: ClusterConfig, batch_size: int) -> None:
    """Raises UserError for GPUs that are unknown or of several types, and for ranks without equal shares."""
    if cluster.teacher_gpus < 0:
        raise UserError(f"cluster.teacher_gpus must be 0 or more, got {cluster.teacher_gpus}")
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
