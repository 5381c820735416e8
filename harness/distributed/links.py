"""Connections between rank 0 and each other rank, and the watch that every rank keeps over the other end.

A rank that ends closes its connections, so its end is known at once; one that hangs says nothing any more, and is given
up after a deadline. Nothing here is a collective: what ranks do together is in `harness.distributed.world`.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing import AuthenticationError, connection
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from harness.errors import UserError

logger = logging.getLogger(__name__)

LANES = ("watch", "work", "student", "teacher")
"""Each is a connection of its own to every rank, so that sampling and a checkpoint do not wait for each other."""
BEAT = 0.5
"""Seconds between two signs of life."""
LEAVE = 10.0
"""Seconds in which the run may end by itself after the loss of a rank; then the process leaves."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
LOOPBACK = "127.0.0.1"

GOES_ON = "launched again the run goes on from its last checkpoint"


class RankLost(UserError):
    """A rank has ended or hangs: launched again the run goes on from its last checkpoint."""

    exit_code = os.EX_TEMPFAIL


class RankFailed(UserError):
    """A rank raised an error; `exit_code` is what it would have ended with alone."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Leader:
    """Rank 0's end of all connections, at `host` for the others and at a free port unless `port` names one.

    A host is listened on as the name that it has for the others: a machine may know its own name as 127.0.1.1 alone.

    `loss` is why the run cannot go on, once it cannot; `give_up` is called with it where the process has to be left.
    """

    def __init__(self, world_size: int, host: str, key: bytes, timeout: float, port: int = 0) -> None:
        self._size, self._timeout = world_size, timeout
        bound = host if host == LOOPBACK else ""  # every interface
        try:
            self._listener = Listener((bound, port), backlog=4 * world_size, authkey=key)
        except OSError as error:
            raise UserError(
                f"cluster.port={port} is taken ({error.strerror}): cluster.port=0 takes a free one"
            ) from error
        self.address: tuple[str, int] = (host, self._listener.address[1])  # type: ignore[assignment]
        self.lanes: dict[str, dict[int, Connection]] = {lane: {} for lane in LANES}
        self._names: dict[int, str] = {}
        self.loss: UserError | None = None
        self.give_up: Callable[[UserError], None] = lambda loss: None
        self.step: Callable[[], int] = lambda: 0
        self._ended = threading.Event()
        self._sending = threading.Lock()

    def accept(self) -> None:
        """Wait for all ranks. Raises UserError for those that do not come in time."""
        arrived = threading.Thread(target=self._accept, name="ranks", daemon=True)
        arrived.start()
        arrived.join(self._timeout)
        if arrived.is_alive():
            missing = sorted(set(range(1, self._size)) - set(self._names))
            raise UserError(
                f"rank {', '.join(map(str, missing))} did not connect to {self.address[0]}:{self.address[1]} in "
                f"cluster.collective_timeout={self._timeout:g} s: open the node's ports to the others"
            )
        self._listener.close()
        threading.Thread(target=self._watch, name="rank watch", daemon=True).start()

    def check(self) -> None:
        """Raises where a rank is lost."""
        if self.loss is not None:
            raise self.loss

    def receive(self, lane: str, rank: int) -> Any:
        """The next message of a rank; waits as long as the rank lives. Raises RankLost or RankFailed."""
        link = self.lanes[lane][rank]
        try:
            while not link.poll(BEAT):
                self.check()
            return link.recv()
        except (EOFError, OSError):
            raise self.known_loss() or self._lose(rank, "has ended") from None

    def send(self, lane: str, rank: int, message: Any) -> None:
        self.check()
        try:
            self.lanes[lane][rank].send(message)
        except OSError:
            raise self.known_loss() or self._lose(rank, "has ended") from None

    def known_loss(self, wait: float = 2.0) -> UserError | None:
        """The loss that an error here may come from: the word of a rank may come a moment after its effect."""
        end = time.monotonic() + wait
        while self.loss is None and time.monotonic() < end:
            time.sleep(0.05)
        return self.loss

    def end(self, code: int) -> None:
        """All other ranks leave, with this exit code."""
        self._ended.set()
        self._say(("end", code))

    def _accept(self) -> None:
        while len(self.lanes["teacher"]) < self._size - 1 or any(len(x) < self._size - 1 for x in self.lanes.values()):
            try:
                link = self._listener.accept()
            except (OSError, EOFError, AuthenticationError):
                continue
            rank, lane, name = link.recv()
            self.lanes[lane][rank] = link
            self._names[rank] = name

    def _watch(self) -> None:
        ranks: dict[Any, int] = {link: rank for rank, link in self.lanes["watch"].items()}
        heard = dict.fromkeys(ranks.values(), time.monotonic())
        doing: dict[int, str] = dict.fromkeys(ranks.values(), "while starting")
        beat = time.monotonic()
        while not self._ended.is_set() and self.loss is None:
            for link in connection.wait(list(ranks), max(0.0, beat - time.monotonic())):
                rank = ranks[link]
                try:
                    message: tuple[Any, ...] = link.recv()  # type: ignore[union-attr, call-arg, assignment]
                except (EOFError, OSError):
                    if not self._ended.is_set():
                        self._lose(rank, f"has ended {doing[rank]}")
                    return
                heard[rank] = time.monotonic()
                match message:
                    case ("beat", what):
                        doing[rank] = what
                    case ("signal", name):
                        logger.warning("rank %d has been sent %s", rank, name)
                        os.kill(os.getpid(), getattr(signal, name))
                    case ("fault", text, code):
                        self._fail(rank, text, code)
            if time.monotonic() >= beat:
                beat = time.monotonic() + BEAT
                self._say(("beat",))
            longest = min(heard, key=lambda r: heard[r])
            if time.monotonic() - heard[longest] > self._timeout and self.loss is None:
                waited = f"cluster.collective_timeout={self._timeout:g} s"
                self._lose(longest, f"has not answered in {waited}, last seen {doing[longest]}")

    def _say(self, message: tuple[Any, ...]) -> None:
        with self._sending:
            for link in self.lanes["watch"].values():
                try:
                    link.send(message)
                except OSError:
                    continue

    def _lose(self, rank: int, what: str) -> UserError:
        return self._give_up_soon(RankLost(f"step {self.step()}: {self._names[rank]} {what}; {GOES_ON}"))

    def _fail(self, rank: int, text: str, code: int) -> None:
        self._give_up_soon(RankFailed(f"step {self.step()}: {self._names[rank]} failed: {text}", code))

    def _give_up_soon(self, loss: UserError) -> UserError:
        if self.loss is None:
            self.loss = loss
            threading.Thread(target=self._leave, args=(loss,), name="leave", daemon=True).start()
        return self.loss

    def _leave(self, loss: UserError) -> None:
        """A thread that waits in a collective for a rank that is gone may never return: then the process goes."""
        if self._ended.wait(LEAVE):
            return
        logger.critical("error: %s", loss)
        try:
            self.give_up(loss)
            self.end(loss.exit_code)
        finally:
            os._exit(loss.exit_code)


class Follower:
    """Another rank's end. Its watch ends the process where rank 0 says so, has ended, or does not answer."""

    def __init__(self, address: tuple[str, int], key: bytes, rank: int, name: str, timeout: float) -> None:
        self._timeout = timeout
        self.doing = "while starting"
        """What this rank is at, for the message if it is lost."""
        self.lanes: dict[str, Connection] = {}
        for lane in LANES:
            self.lanes[lane] = Client(address, authkey=key)
            self.lanes[lane].send((rank, lane, name))
        self._rank = rank
        self._sending = threading.Lock()
        threading.Thread(target=self._watch, name="rank watch", daemon=True).start()

    def fault(self, text: str, code: int) -> None:
        self._say("fault", text, code)

    def forward(self, number: int, frame: Any) -> None:
        """A handler of signals: it is rank 0 that ends a run."""
        threading.Thread(target=self._say, args=("signal", signal.Signals(number).name), daemon=True).start()

    def wait_for_end(self) -> None:
        """Rank 0 has been sent all; it ends this process."""
        time.sleep(self._timeout)

    def _say(self, *message: Any) -> None:
        with self._sending:
            try:
                self.lanes["watch"].send(message)
            except OSError:
                return

    def _watch(self) -> None:
        link, heard, beat = self.lanes["watch"], time.monotonic(), time.monotonic()
        while True:
            if time.monotonic() >= beat:
                beat = time.monotonic() + BEAT
                self._say("beat", self.doing)
            try:
                if link.poll(max(0.0, beat - time.monotonic())):
                    message = link.recv()
                    heard = time.monotonic()
                    if message[0] == "end":
                        os._exit(message[1])
            except (EOFError, OSError):
                self._leave("has ended")
            if time.monotonic() - heard > self._timeout:
                self._leave(f"has not answered in cluster.collective_timeout={self._timeout:g} s")

    def _leave(self, what: str) -> None:
        if self._rank == 1:  # one for all
            logger.critical("error: rank 0 %s; %s", what, GOES_ON)
        os._exit(os.EX_TEMPFAIL)
