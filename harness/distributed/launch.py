"""Starts the ranks of this node: `zppo train cluster=NAME`, once a node.

On several nodes the same command runs on each of them (Slurm starts one task a node). It finds the others by Slurm's
variables, or by `ZPPO_NODE`, `MASTER_ADDR` and `MASTER_PORT`. `torchrun` does the same job, but for exit codes: its own
is 1 whatever a rank's was, and it gives ranks 30 s to write a checkpoint. Imports no torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

from harness.config.schema import RunConfig
from harness.distributed.rank import Place
from harness.errors import UserError
from harness.process.devices import num_cores

POLL = 0.1
END = 15.0
"""Seconds in which the other ranks of a node have to follow the first one that has ended: they end each other."""
PORTS = range(20_000, 40_000)
"""One of them, by the number of the job, is where ranks on several nodes meet."""
_PR_SET_PDEATHSIG = 1


def launch(config: RunConfig, command: Sequence[str]) -> int:
    """Run `command` once for each rank of this node; returns the exit code of the run.

    SIGTERM and SIGUSR1 are passed on to the first rank, which ends the run within `preempt_grace`. Raises UserError
    where it is not clear which node this is.
    """
    cluster = config.cluster
    node, address, port = _meeting_point(cluster.num_nodes, os.environ)
    threads = max(1, num_cores() // cluster.student_gpus)  # of the allocation, not of the machine
    children = []
    for local_rank in range(cluster.student_gpus):
        place = Place(
            rank=node * cluster.student_gpus + local_rank,
            world_size=cluster.world_size,
            local_rank=local_rank,
            local_world_size=cluster.student_gpus,
            address=address,
            port=port,
        )
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ, **place.environment()}
        children.append(
            subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with_parent
            )
        )
    return _Ranks(children, config.preempt_grace).wait()


def _end_with_parent() -> None:
    """Run in a rank, before its command: SIGTERM comes to the rank where the launcher is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class _Ranks:
    """The processes of this node. None outlives the launcher's end."""

    def __init__(self, children: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
        self._children = children
        self._grace = grace
        self._deadline: float | None = None

    def wait(self) -> int:
        numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        before = {number: signal.signal(number, self._pass_on) for number in numbers}
        try:
            while any(child.poll() is None for child in self._children):
                if any(child.poll() is not None for child in self._children):
                    self._leave_within(END)
                if self._deadline is not None and time.monotonic() > self._deadline:
                    break
                time.sleep(POLL)
        finally:
            for child in self._children:
                self._kill(child)
            for number, handler in before.items():
                signal.signal(number, handler)
        return exit_code([child.returncode for child in self._children])

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """The first rank ends the run: here, or by word to the rank 0 of another node."""
        self._leave_within(self._grace + END)
        if (first := self._children[0]).poll() is None:
            first.send_signal(number)

    def _leave_within(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self._deadline = end if self._deadline is None else min(self._deadline, end)

    @staticmethod
    def _kill(child: subprocess.Popen[bytes]) -> None:
        """Kill a rank with what it has started. One that is stopped (SIGSTOP) ends by SIGKILL alone."""
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def exit_code(codes: Sequence[int]) -> int:
    """Exit code of a run, from those of a node's ranks: an error counts most. Ranks that were killed, or that ended
    with 75 themselves, leave a run that goes on (75)."""
    errors = [code for code in codes if code > 0 and code != os.EX_TEMPFAIL]
    return errors[0] if errors else os.EX_TEMPFAIL if any(codes) else 0


def rank_command(argv: Sequence[str]) -> list[str]:
    """What this process was asked for, as each rank runs it."""
    return [sys.executable, "-m", "harness.app", *argv]


def _meeting_point(num_nodes: int, environ: Mapping[str, str]) -> tuple[int, str, int]:
    """This node's number, and where rank 0 is."""
    if num_nodes == 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return 0, "127.0.0.1", int(probe.getsockname()[1])
    if "SLURM_NODEID" in environ:
        present = int(environ.get("SLURM_NNODES", "1"))
        if present != num_nodes:
            raise UserError(f"cluster.num_nodes={num_nodes} and the Slurm job has {present}: set one to the other")
        address = environ.get("MASTER_ADDR") or _first_host(environ.get("SLURM_JOB_NODELIST", ""))
        port = PORTS[int(environ.get("SLURM_JOB_ID", "0")) % len(PORTS)]
        return int(environ["SLURM_NODEID"]), address, int(environ.get("MASTER_PORT", port))
    missing = [name for name in ("ZPPO_NODE", "MASTER_ADDR", "MASTER_PORT") if name not in environ]
    if missing:
        raise UserError(
            f"cluster.num_nodes={num_nodes} and no Slurm job: run this command on every node with ZPPO_NODE=0, 1, ..., "
            f"MASTER_ADDR=HOST and MASTER_PORT=PORT of node 0 (missing: {', '.join(missing)}), or use torchrun"
        )
    return int(environ["ZPPO_NODE"]), environ["MASTER_ADDR"], int(environ["MASTER_PORT"])


def _first_host(nodes: str) -> str:
    """The first host of Slurm's list, `gpu[03-05,09],login`."""
    try:
        listed = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
        return listed.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise UserError(
            f"the first node of {nodes or 'this job'} is not known (scontrol show hostnames): set MASTER_ADDR"
        ) from error
