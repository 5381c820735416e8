"""One worker process, seen from its parent."""

from __future__ import annotations

import json
import os
import re
import select
import signal
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
"""In place of the result of a job that used up its CPU time."""
LOST: Any = object()
"""In place of the result of a job that lost two workers in another way."""

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
"""Names of environment variables that a worker does not get: it reads what a model wrote."""
START_SECONDS = 300.0
SLEEP_SECONDS = 30.0


class Worker:
    """Starts `harness.rewards.child`. Owned by one thread at a time; only `kill` may come from another.

    `usable` turns False when the process has died, failed or was killed; `dispose` then frees it. No call waits longer
    than the worker's limits, whatever the process does: one that is stopped, or that does not read, is killed.
    """

    def __init__(self, grader: str, cpu_seconds: float) -> None:
        root = str(Path(harness.__file__).parents[1])
        environment = {
            **{name: value for name, value in os.environ.items() if not SECRET.search(name)},
            "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",  # each thread would reserve address space, which is limited
        }
        # -P keeps the working directory off the path. A session of its own: Ctrl-C is for the parent to handle.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "harness.rewards.child", grader, str(cpu_seconds)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self._received = b""
        self._unsent = memoryview(b"")
        self._wall_seconds = 10.0 * cpu_seconds + SLEEP_SECONDS  # for a job that sleeps: it takes no CPU time
        self.usable = True
        self.exit_code: int | None = None
        self.num_jobs = 0

    def start(self) -> bool:
        """Wait until the process is ready. False if it ended before that, or is not ready after START_SECONDS.

        Raises UserError or RuntimeError where the worker reports that it cannot work.
        """
        line = self._read_line(START_SECONDS)
        if line is None:
            self._end()
            return False
        self._result(line)
        return True

    def run(self, jobs: Sequence[Job]) -> list[Any]:
        """Results of the jobs in order, up to the one that ended the worker: DIED if that used up its CPU time.

        Fewer results than jobs without DIED at their end: the worker was lost at the next job in another way. It passed
        the wall limit, which starts with each job, or was killed from outside.
        Raises UserError or RuntimeError where the worker reports that it cannot work.
        """
        self._unsent = memoryview(json.dumps(jobs).encode() + b"\n")
        results: list[Any] = []
        while len(results) < len(jobs):
            line = self._read_line(self._wall_seconds)
            if line is None:
                self._end()
                if self.exit_code == -signal.SIGPROF:
                    results.append(DIED)
                break
            results.append(self._result(line))
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
        self._process.stdin.close()
        self._process.stdout.close()

    def _end(self) -> None:
        """Kill a process that gives no more replies. `exit_code` is that of its own end, if it had ended before."""
        self.usable = False
        self._process.kill()
        self.exit_code = self._process.wait()

    def _result(self, line: bytes) -> Any:
        reply = json.loads(line)
        if "result" in reply:
            return reply["result"]
        self.usable = False
        if "user_error" in reply:
            raise UserError(reply["user_error"])
        raise RuntimeError(f"a grading worker failed:\n{reply['error']}")

    def _read_line(self, seconds: float) -> bytes | None:
        """The next line; None at the end of the stream or of the time. Sends what is unsent meanwhile.

        A pipe holds 64 KB: a write that waited for a process that does not read would never end.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        inlet, outlet = self._process.stdin.fileno(), self._process.stdout.fileno()
        poll = select.poll()
        poll.register(outlet, select.POLLIN)
        if self._unsent:
            poll.register(inlet, select.POLLOUT)
        deadline = time.monotonic() + seconds
        while b"\n" not in self._received:
            ready = {descriptor for descriptor, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)}
            if not ready:
                return None
            if inlet in ready:
                try:
                    self._unsent = self._unsent[os.write(inlet, self._unsent[:65536]) :]
                except BrokenPipeError:
                    return None
                if not self._unsent:
                    poll.unregister(inlet)
            if outlet in ready:
                data = os.read(outlet, 65536)
                if not data:
                    return None
                self._received += data
        line, self._received = self._received.split(b"\n", 1)
        return line
