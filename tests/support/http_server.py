"""An OpenAI-compatible endpoint on this machine, in a thread, that can be set to misbehave: for tests and
demonstrations. What it answers comes from `tests.support.judge_server` and `tests.support.model_server`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """How to misbehave in one request."""

    status: int = 200
    delay: float = 0.0
    """Seconds before the request is looked at."""
    trickle: float = 0.0
    """Seconds before every single byte of the body."""
    drop: bool = False
    """Close the connection without an answer."""
    body: str | None = None
    """The complete body instead of an answer."""
    content_type: str = "application/json"
    retry_after: str | None = None
    spoil: Callable[[Body], Any] | None = None
    """Changes the answer in place."""


Plan = Callable[[int, Body], Fault | None]
"""Says how to misbehave, given the number of a request (from 0) and its body; None: not at all."""


class NotServed(Exception):
    """An answerer's word for status 404."""


class LoopbackServer(ThreadingHTTPServer):
    """`answers` are what is served, by path after /v1/: a body in, a body out, ValueError, LookupError or TypeError
    (status 400) or NotServed (404). `models` are the entries of GET /v1/models.

    `requests` are the bodies it got, `keys` the Authorization header of each, `busiest` is how many it had in hand at a
    time.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, answers: Mapping[str, Callable[[Body], Body]], models: list[Body], *, port: int, plan: Plan | None
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.answers = answers
        self.models = models
        self.plan = plan
        self.requests: list[Body] = []
        self.keys: list[str | None] = []
        self.busiest = 0
        self.busy = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of the server."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: LoopbackServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(200, {} if self.path == "/health" else {"object": "list", "data": self.server.models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            number = len(server.requests)
            server.requests.append(body)
            server.keys.append(self.headers["Authorization"])
            server.busy += 1
            server.busiest = max(server.busiest, server.busy)
        try:
            self._answer(body, (server.plan and server.plan(number, body)) or Fault())
        finally:
            with server.lock:
                server.busy -= 1

    def _answer(self, body: Body, fault: Fault) -> None:
        time.sleep(fault.delay)
        if fault.drop:
            self.close_connection = True
            return
        if fault.status != 200:
            return self._send(fault.status, {"error": {"message": "told to fail"}}, fault)
        answer = self.server.answers.get(self.path.removeprefix("/v1/"))
        try:
            if answer is None:
                raise NotServed(f"there is no {self.path}")
            content = answer(body)
        except NotServed as error:
            return self._send(404, {"error": {"message": str(error)}})
        except (ValueError, LookupError, TypeError) as error:
            return self._send(400, {"error": {"message": f"not understood: {error}"}})
        if fault.spoil is not None:
            fault.spoil(content)
        self._send(200, content, fault)

    def _send(self, status: int, answer: Body, fault: Fault | None = None) -> None:
        fault = fault or Fault()
        raw = json.dumps(answer).encode() if fault.body is None else fault.body.encode()
        self.send_response(status)
        self.send_header("Content-Type", fault.content_type)
        self.send_header("Content-Length", str(len(raw)))
        if fault.retry_after is not None:
            self.send_header("Retry-After", fault.retry_after)
        self.end_headers()
        if not fault.trickle:
            self.wfile.write(raw)
            return
        for byte in raw:
            time.sleep(fault.trickle)
            self.wfile.write(bytes([byte]))

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@contextmanager
def running(server: LoopbackServer) -> Iterator[LoopbackServer]:
    """The server in a thread of its own, until the block ends."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def until_interrupted(server: LoopbackServer, option: str) -> None:
    """Say on a command line how to use it, then serve until Ctrl-C."""
    with running(server):
        sys.stdout.write(f"{option}\n")
        sys.stdout.flush()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return
