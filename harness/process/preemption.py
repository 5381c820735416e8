"""SIGTERM and SIGUSR1: a run finishes or abandons what it is at, writes its state and ends, within a limit of time.

Signals belong to the process, so this is a module and no object. Imports no torch.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from harness.errors import RunInterrupted

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(BaseException):
    """Raised in the main thread where a run may be left; no Exception, since libraries try again after those."""


class Stopped(RunInterrupted):
    """The run has been left, and what it needs to go on is written."""


class _State:
    received: signal.Signals | None = None
    is_open = False
    watch: Callable[[str], None] | None = None


_state = _State()


def received() -> str | None:
    """The name of the signal that asked the run to end; None where none did."""
    return None if _state.received is None else _state.received.name


@contextmanager
def listening(grace: float, give_up: Callable[[], None]) -> Iterator[None]:
    """Let `SIGNALS` end what runs in here. After `grace` seconds the process ends in the midst of it with code 75.

    `give_up` is called before that, in another thread. Handlers need the main thread: elsewhere nothing is changed.
    """
    timer = threading.Timer(grace, _leave, (grace, give_up))
    timer.daemon = True

    def note(number: int, frame: Any) -> None:
        if _state.received is None:
            _state.received = signal.Signals(number)
            timer.start()
        if _state.is_open:
            _state.is_open = False  # once: it must not hit the clearing up that it starts
            raise Preempted

    with handling(SIGNALS, note) as is_set:
        try:
            yield
        finally:
            if is_set:
                timer.cancel()
                _state.received, _state.is_open = None, False


@contextmanager
def handling(signals: Iterable[int], handler: Callable[[int, Any], None]) -> Iterator[bool]:
    """`handler` takes these signals in here. False, and nothing changed, outside the main thread, which alone may."""
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield True
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def interruptible() -> Iterator[None]:
    """A phase that may be abandoned at any point: a signal raises Preempted in it. Elsewhere it waits for `check`, or
    for the next such phase."""
    if threading.current_thread() is not threading.main_thread() or _state.is_open:
        yield
        return
    try:
        _state.is_open = True
        raise_if_preempted()
        yield
    finally:
        _state.is_open = False


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A part of such a phase that is not abandoned, because other processes take part: a signal raises after it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    was_open, _state.is_open = _state.is_open, False
    yield
    if was_open:
        _state.is_open = True
        raise_if_preempted()


def raise_if_preempted() -> None:
    """Raises Preempted where a signal has come."""
    if _state.received is not None:
        _state.is_open = False
        raise Preempted


def fault_point(name: str) -> None:
    """A boundary that a test may want to end the process at: it sets `watch`."""
    if _state.watch is not None:
        _state.watch(name)


def watch(callback: Callable[[str], None] | None) -> None:
    """Have every `at` call this with its name. For tests of faults."""
    _state.watch = callback


def _leave(grace: float, give_up: Callable[[], None]) -> None:
    logger.critical("preempt_grace=%g s is over: the run ends in the midst of its work", grace)
    try:
        give_up()
    finally:
        os._exit(os.EX_TEMPFAIL)
