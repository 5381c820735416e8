"""Scoring that runs what a model wrote: each document in a process of its own, with limits, that can be killed.

It is no sandbox: the code can read what the user can read, and reach the network.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
"""Names of environment variables that the code does not get."""
SECONDS = 60.0
"""CPU seconds and, twice that, seconds that a document may take."""
MEMORY_BYTES = 4 * 2**30


def limited_results(
    process_results: Callable[..., Mapping[str, Any]], metrics: Callable[[], Mapping[str, Any]], doc: Any, results: Any
) -> dict[str, Any]:
    """A task's `process_results` in another process; every one of its `metrics` is 0 where that has to be ended."""
    found = in_process(lambda: dict(process_results(doc, results)), SECONDS)
    return dict.fromkeys(metrics(), 0.0) if found is None else found


def in_process(work: Callable[[], dict[str, Any]], seconds: float) -> dict[str, Any] | None:
    """What `work` returns, as JSON has it; None where it raises, ends its process or passes a limit.

    The process and all that it has started are killed at the end.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _run(work, seconds, reader, writer)
    os.close(writer)
    received, deadline = b"", time.monotonic() + 2 * seconds
    try:
        while select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
            piece = os.read(reader, 65536)
            if not piece:
                break
            received += piece
    finally:
        os.close(reader)
        for kill in (os.killpg, os.kill):  # its group is there once it has made one
            with contextlib.suppress(OSError):
                kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    try:
        found = json.loads(received)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _run(work: Callable[[], dict[str, Any]], seconds: float, reader: int, writer: int) -> None:
    """The child's part. It never returns."""
    try:
        os.setsid()
        os.close(reader)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        for name in [name for name in os.environ if SECRET.search(name)]:
            del os.environ[name]
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
        used = _address_space()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
        with tempfile.TemporaryDirectory(prefix="zppo-code-") as folder:
            os.chdir(folder)
            answer = json.dumps(work(), default=float).encode()
        while answer:
            answer = answer[os.write(writer, answer) :]
    finally:
        os._exit(0)


def _address_space() -> int:
    """Bytes that the process, a copy of the one that evaluates, has reserved."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
