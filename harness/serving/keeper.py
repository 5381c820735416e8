"""Runs a command and sees to its end: `python -m harness.serving.keeper -- COMMAND...`, with a pipe as standard input.

Every process that descends from the command is killed when the command ends or the pipe closes, whatever session it
is in: SIGTERM, and SIGKILL after `GRACE` seconds. The pipe closes however its other end's process dies. Exits with
the command's status. Only the standard library is imported. Linux; elsewhere only the command's own process group is
killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

GRACE = 5.0
POLL = 0.1
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(command: list[str]) -> int:
    """Run `command` until it ends or standard input closes; nothing of it is left when this returns."""
    # Orphans of the command become children of this process instead of init's, so they stay its descendants.
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    parent = os.getppid()
    child = _start(command)
    statuses: dict[int, int] = {}
    try:
        while child not in statuses and _is_held(parent):
            _reap(statuses)
    except _Stopped:
        pass
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _end(child, statuses)
    return os.waitstatus_to_exitcode(statuses[child]) if child in statuses else -signal.SIGKILL


class _Stopped(Exception):
    pass


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stopped


def _start(command: list[str]) -> int:
    """The command in a session of its own; it dies with this process even if that is killed. Returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error}\n".encode())
    finally:
        os._exit(127)


def _is_held(parent: int) -> bool:
    """Waits a moment. False once the pipe is closed; or the parent gone, while forks of it still hold the pipe."""
    readable, _, _ = select.select([0], [], [], POLL)
    return os.getppid() == parent and not (readable and os.read(0, 1024) == b"")


def _end(child: int, statuses: dict[int, int]) -> None:
    deadline = time.monotonic() + GRACE
    _signal(child, signal.SIGTERM, statuses)
    while _reap(statuses) and time.monotonic() < deadline:
        time.sleep(POLL / 4)
    while _reap(statuses):
        _signal(child, signal.SIGKILL, statuses)
        time.sleep(POLL / 4)


def _signal(child: int, number: int, statuses: dict[int, int]) -> None:
    for pid in _descendants(os.getpid()):
        _quietly(os.kill, pid, number)
    if child not in statuses:  # its number may be another process's by now
        _quietly(os.killpg, child, number)


def _quietly(kill: Callable[[int, int], None], pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        kill(pid, number)


def _reap(statuses: dict[int, int]) -> bool:
    """Take note of children that have ended, adopted ones too. False when there is none left."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        statuses[pid] = status


def _descendants(root: int) -> list[int]:
    """Ids of the processes that descend from `root`, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = entry.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it has ended
        children.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(entry.parent.name))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[sys.argv.index("--") + 1 :]))
