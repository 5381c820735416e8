"""Processes that have their libraries imported: forks of a server, where a fresh Python imports for seconds.

`WarmServer` starts a command that calls `main`: it loads what it is to have, then forks whenever it is asked to. A fork
becomes what `python -m` starts: `__main__` of a module, with arguments, an environment, a log and a
session of its own. It shares no more with the others than imported modules. Linux only. Imports no torch.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO

import psutil

MAX_MESSAGE = 64
LOST = 255
"""The exit code of a fork whose server has gone, which alone knew it."""


class WarmServer:
    """Forks for one launcher. It ends with `close`, or with the launcher; its forks go on.

    `command` gets the number of its socket as its last word. `environment` is that of the server, which libraries read
    while they are imported.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._codes: dict[int, int | None] = {}
        self._is_lost = False
        with theirs:
            # A session of its own: Ctrl-C is for the launcher.
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env=dict(environment), pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: BinaryIO) -> WarmProcess | None:
        """Start `python -m COMMAND`, its words to follow, once the server is ready. None where the server has gone."""
        read, write = os.pipe()
        with os.fdopen(write, "wb") as request:
            try:
                socket.send_fds(self._socket, [b"."], [log.fileno(), read])
                pid = self._next_started()
            except OSError:
                return None
            finally:
                os.close(read)
            if pid is None:
                return None
            # Until here the fork waits. It ends where this process has been interrupted, and closes the pipe unwritten.
            with contextlib.suppress(BrokenPipeError):
                request.write(json.dumps([list(command), dict(environment)]).encode())
                request.flush()
        return WarmProcess(pid, self)

    def close(self) -> None:
        """End the server. Forks that run are left alone."""
        self._process.kill()
        self._process.wait()
        self._socket.close()
        self._is_lost = True

    def code(self, pid: int, *, wait: bool = False) -> int | None:
        """The exit code of a fork as in `subprocess`, None while it runs."""
        while self._codes[pid] is None and not self._is_lost:
            if not wait and not select.select([self._socket], [], [], 0)[0]:
                return None
            self._read()
        if self._codes[pid] is None and (wait or not _is_alive(pid)):
            with contextlib.suppress(psutil.Error):
                psutil.Process(pid).wait()
            self._codes[pid] = LOST
        return self._codes[pid]

    def _next_started(self) -> int | None:
        while not self._is_lost:
            if (started := self._read()) is not None:
                return started
        return None

    def _read(self) -> int | None:
        """Take one message. Returns the fork that it says has started."""
        try:
            words = self._socket.recv(MAX_MESSAGE).split()
        except OSError:
            words = []
        if not words:
            self._is_lost = True
            return None
        pid = int(words[0])
        self._codes[pid] = int(words[1]) if len(words) > 1 else self._codes.get(pid)
        return pid if len(words) == 1 else None


class WarmProcess:
    """A fork, with the interface of `subprocess.Popen` as far as a launcher needs it."""

    def __init__(self, pid: int, server: WarmServer) -> None:
        self.pid, self._server = pid, server
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.code(self.pid)
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = self._server.code(self.pid, wait=True)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def is_possible() -> bool:
    """Whether this system can do it."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open")


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


# --- in the server ---


def serve(channel: socket.socket) -> tuple[list[str], dict[str, str]] | None:
    """Fork at each request, and say how forks end. Returns in a fork with what it is to be, else None at the end."""
    forks: dict[int, int] = {}
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if (pid := forks.pop(descriptor, None)) is not None:
                poll.unregister(descriptor)
                os.close(descriptor)
                _, status = os.waitpid(pid, 0)
                channel.send(f"{pid} {os.waitstatus_to_exitcode(status)}".encode())
                continue
            _, given, _, _ = socket.recv_fds(channel, 1, 2)
            if len(given) < 2:
                return None
            pid = os.fork()
            if pid == 0:
                for other in forks:
                    os.close(other)
                return _become(channel, *given)
            for own in given:
                os.close(own)
            process = os.pidfd_open(pid)
            forks[process] = pid
            poll.register(process, select.POLLIN)


def _become(channel: socket.socket, log: int, request: int) -> tuple[list[str], dict[str, str]]:
    """In a fork: leave the server's session and streams, and wait for what it is to be."""
    os.setsid()
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)
    with channel:
        channel.send(f"{os.getpid()}".encode())
    with os.fdopen(request, "rb") as stream:
        text = stream.read()
    if not text:
        os._exit(0)
    command, environment = json.loads(text)
    return command, environment


def main(descriptor: str, load: Callable[[], None]) -> None:
    """The server, once it has loaded, and in a fork the command that it becomes. `descriptor` is its socket."""
    channel = socket.socket(fileno=int(descriptor))
    channel.set_inheritable(False)  # for what the forks start
    with contextlib.suppress(Exception):  # what cannot be imported is for the command to say
        load()
    if threading.active_count() > 1:  # a fork would lack the other threads, and find their locks held
        return
    gc.collect()
    gc.freeze()  # objects that no collection visits stay in pages that are shared
    found = serve(channel)
    if found is None:
        return
    command, environment = found
    os.environ.clear()
    os.environ.update(environment)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # Python reseeds its own after a fork
    sys.argv[:] = command
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)
