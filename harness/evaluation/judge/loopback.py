"""A judge without a model, behind an OpenAI-compatible endpoint on this machine: for tests and demonstrations.

`python -m harness.evaluation.judge.loopback --port 8123`, then `eval.judge.url=http://127.0.0.1:8123/v1`. It compares
the gold answer with the student's text and answers in the form that the prompt asks for. It knows no synonyms and no
arithmetic beyond equal numbers: its verdicts show that judging works and are no results.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from harness.evaluation.judge import official, shared
from harness.evaluation.judge.sections import read_sections
from harness.rewards.boxed import last_boxed
from harness.rewards.choice import choice_letter, normal_text

MODEL = "loopback-judge"
_WORD = re.compile(r"[^\W_]{4,}")
_QUOTED = re.compile("[\"'`\u2018\u201c]([^\"'`\u2018\u2019\u201c\u201d]+)[\"'`\u2019\u201d](?!\\w)")
_ASIDE = {"answer", "does", "have", "model", "reply", "response", "that", "the", "there", "this", "with", "word"}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """How to misbehave in one request."""

    status: int = 200
    delay: float = 0.0
    """Seconds before anything is sent."""
    trickle: float = 0.0
    """Seconds before every single byte of the body."""
    drop: bool = False
    """Close the connection without an answer."""
    content: str | None = None
    """What the judge says instead of its verdict."""
    body: str | None = None
    """The whole body instead of a chat completion."""
    retry_after: str | None = None


Plan = Callable[[int, dict[str, Any]], Fault | None]
"""From the number of a request (from 0) and its body to how to misbehave; None: not at all."""


class JudgeServer(ThreadingHTTPServer):
    """The endpoint; `requests` are the bodies it got, `busiest` is how many it had in hand at a time."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, plan: Plan | None) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.plan = plan
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        """The Authorization header of each request."""
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
    server: JudgeServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})

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

    def _answer(self, body: dict[str, Any], fault: Fault) -> None:
        time.sleep(fault.delay)
        if fault.drop:
            self.close_connection = True
            return
        if self.path != "/v1/chat/completions":
            self._send(404, {"error": {"message": f"there is no {self.path}"}})
        elif fault.status != 200:
            self._send(fault.status, {"error": {"message": "told to fail"}}, fault)
        else:
            try:
                content = verdict(body["messages"]) if fault.content is None else fault.content
            except (ValueError, LookupError) as error:
                self._send(400, {"error": {"message": f"not a prompt of this harness: {error}"}})
                return
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
            self._send(200, {"object": "chat.completion", "model": body["model"], "choices": [choice]}, fault)

    def _send(self, status: int, answer: dict[str, Any], fault: Fault | None = None) -> None:
        fault = fault or Fault()
        raw = json.dumps(answer).encode() if fault.body is None else fault.body.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
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
def serve(port: int = 0, plan: Plan | None = None) -> Iterator[JudgeServer]:
    """The endpoint in a thread; port 0 takes a free one. `plan` makes it misbehave."""
    with JudgeServer(port, plan) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def verdict(messages: list[dict[str, str]]) -> str:
    """The reply to a prompt, in the form that its rules end with. Raises ValueError for one of another harness."""
    rules = messages[0]["content"]
    parts = read_sections(messages[-1]["content"])
    for ending, reply in _FORMS.items():
        if rules.endswith(ending):
            return reply(parts)
    raise ValueError("it asks for no known form")


def _shared(parts: dict[str, str]) -> str:
    return json.dumps({"verdict": "correct" if _equal(parts) else "wrong"})


def _mmvet(parts: dict[str, str]) -> str:
    """The best of the alternatives, each worth the share of its elements that the student has."""
    said = _committed(parts)
    shares = []
    for alternative in parts["reference"].split("<OR>"):
        elements = [element.strip() for element in alternative.split("<AND>") if element.strip()]
        shares.append(sum(_says(said, element) for element in elements) / max(1, len(elements)))
    return f"{max(shares):.1f}"


def _multichallenge(parts: dict[str, str]) -> str:
    """YES if the reply has what the criterion quotes, or, where it quotes nothing, most of its longer words."""
    reply = parts["response"]
    quoted = _QUOTED.findall(parts["criterion"])
    words = [word for word in _WORD.findall(parts["criterion"].casefold()) if word not in _ASIDE]
    if quoted:
        met = all(_says(reply, phrase) for phrase in quoted)
    else:
        met = sum(_says(reply, word) for word in words) * 2 > len(words)
    return "YES" if met else "NO"


def _mmvu(parts: dict[str, str]) -> str:
    return json.dumps({"extracted_answer": _committed(parts), "correct": _equal(parts)})


def _hle(parts: dict[str, str]) -> str:
    equal = _equal(parts)
    return json.dumps(
        {
            "extracted_final_answer": _committed(parts) or "None",
            "reasoning": "The texts are the same." if equal else "The texts differ.",
            "correct": "yes" if equal else "no",
            "confidence": 100,
        }
    )


def _charxiv(parts: dict[str, str]) -> str:
    return json.dumps({"score": int(_equal(parts)), "extracted_answer": _committed(parts)})


_FORMS: dict[str, Callable[[dict[str, str]], str]] = {
    shared.REPLY: _shared,
    official.MMVET_REPLY: _mmvet,
    official.MULTICHALLENGE_REPLY: _multichallenge,
    official.MMVU_REPLY: _mmvu,
    official.HLE_REPLY: _hle,
    official.CHARXIV_REPLY: _charxiv,
}


def _committed(parts: dict[str, str]) -> str:
    """What the student settles on: the extracted answer; of a response the last box, else the last line of text."""
    if "answer" in parts:
        return parts["answer"]
    boxed = last_boxed(parts["response"])
    lines = [line.strip() for line in parts["response"].splitlines() if line.strip()]
    return boxed if boxed is not None else lines[-1] if lines else ""


def _equal(parts: dict[str, str]) -> bool:
    said, gold = _committed(parts), parts["reference"]
    options = [line.partition(". ")[2] for line in parts.get("options", "").splitlines()]
    if options:
        chosen = choice_letter(said, options)
        if chosen is not None:
            return chosen == choice_letter(gold, options)
    if _same(said, gold):
        return True
    # A letter or a digit stands in many sentences by chance.
    return len(normal_text(gold)) > 1 and _says(said, gold)


def _same(said: str, gold: str) -> bool:
    if normal_text(said) == normal_text(gold):
        return bool(normal_text(gold))
    try:
        return float(said) == float(gold)
    except ValueError:
        return False


def _says(text: str, phrase: str) -> bool:
    """Whether a phrase stands in a text as whole words."""
    wanted = normal_text(phrase)
    return bool(wanted) and re.search(rf"(?<![\w.]){re.escape(wanted)}(?!\w|\.\d)", normal_text(text)) is not None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m harness.evaluation.judge.loopback", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    with serve(parser.parse_args().port) as server:
        sys.stdout.write(f"eval.judge.url={server.url}\n")
        sys.stdout.flush()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
