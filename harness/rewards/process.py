"""One worker process, seen from its parent."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
from harness.errors import UserError

Job = dict[str, Any]
DIED: Any = object()
"""In place of the result of a job that killed its worker."""

START_SECONDS = 300.0
SLEEP_SECONDS = 30.0


class Worker:
    """Starts `harness.rewards.child`. Owned by one thread at a time; only `kill` may come from another.

    `usable` turns False when the process has died, failed or was killed; `dispose` then frees it.
    """

    def __init__(self, grader: str, cpu_seconds: float) -> None:
        root = str(Path(harness.__file__).parents[1])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",  # each thread would reserve address space, which is limited
        }
        # -P keeps the working directory off the path. A session of its own: Ctrl-C is for the parent to handle.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "harness.rewards.child", grader, str(cpu_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        self._started = False
        self._received = b""
        self._wall_seconds = 10.0 * cpu_seconds + SLEEP_SECONDS  # for a job that sleeps: it takes no CPU time
        self.usable = True
        self.num_jobs = 0

    def run(self, jobs: Sequence[Job]) -> list[Any]:
        """Results of the jobs in order, up to and including the first that kills the worker (DIED).

        Raises UserError or RuntimeError where the worker reports that it cannot work.
        """
        if not self._started:
            if self._receive(START_SECONDS) is DIED:
                raise RuntimeError(f"a grading worker did not start (exit code {self._process.wait()})")
            self._started = True
        self._send(jobs)
        results: list[Any] = []
        while len(results) < len(jobs) and self.usable:
            results.append(self._receive(self._wall_seconds))
        self.num_jobs += len(results)
        return results

    def kill(self) -> None:
        self._process.kill()

    def dispose(self) -> None:
        """Kill the process, wait for it and close its pipes."""
        self.usable = False
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None and self._process.stdout is not None
        # Closing flushes: what a dead worker did not read is lost on purpose.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()

    def _send(self, jobs: Sequence[Job]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(jobs).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.usable = False

    def _receive(self, seconds: float) -> Any:
        line = self._read_line(seconds)
        if line is None:
            self.usable = False
            self._process.kill()
            return DIED
        reply = json.loads(line)
        if "result" in reply:
            return reply["result"]
        self.usable = False
        if "user_error" in reply:
            raise UserError(reply["user_error"])
        raise RuntimeError(f"a grading worker failed:\n{reply['error']}")

    def _read_line(self, seconds: float) -> bytes | None:
        """The next line; None at the end of the stream or of the time."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + seconds
        while b"\n" not in self._received:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return None
            data = os.read(descriptor, 65536)
            if not data:
                return None
            self._received += data
        line, self._received = self._received.split(b"\n", 1)
        return line
