"""A model of the harness behind the part of vLLM's API that the harness uses: for tests and demonstrations, no vLLM.

`python -m harness.rollout.loopback --model tiny:teacher --port 8124`, then `teacher.urls=[http://127.0.0.1:8124/v1]`.
The numbers are the model's own, computed as `TransformersEngine` computes them, one request at a time. Of a
`logit_bias` only bans (-100 and below) are taken. As at vLLM, `prompt_logprobs` are those of the plain logits: no bans,
no temperature.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from harness.config import ModelConfig
from harness.models.chat import Chat, PackedPrompt
from harness.models.forward import LanguageModel
from harness.models.loading import load_model, load_tokenizer
from harness.rollout.base import Sampling
from harness.rollout.transformers_engine import TransformersEngine
from harness.types import Prompt, Question, Rollout


@dataclass(frozen=True, kw_only=True)
class Fault:
    """How to misbehave in one request."""

    status: int = 200
    delay: float = 0.0
    """Seconds before the request is looked at."""
    drop: bool = False
    """Close the connection without an answer."""
    body: str | None = None
    """The whole body instead of an answer."""
    retry_after: str | None = None
    spoil: Callable[[dict[str, Any]], None] | None = None
    """Changes the answer in place."""


Plan = Callable[[int, dict[str, Any]], Fault | None]
"""From the number of a request (from 0) and its body to how to misbehave; None: not at all."""


class ServedModel:
    """Answers to the bodies of requests. Raises ValueError or LookupError for what it does not understand."""

    def __init__(self, config: ModelConfig) -> None:
        self.name = config.served_name or config.path
        self.chat = Chat(load_tokenizer(config), config)
        self.module = load_model(config, "cpu")
        self.plain = LanguageModel(self.module)
        self._lock = threading.Lock()

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """POST /v1/completions of one prompt of ids."""
        prompt = body["prompt"]
        if not prompt or not all(isinstance(token_id, int) for token_id in prompt):
            raise ValueError("the prompt has to be a list of token ids")
        rollouts = self._sample(prompt, body)
        scores = self._score(prompt, body["prompt_logprobs"]) if body.get("prompt_logprobs") is not None else None
        choices = []
        for rollout in rollouts:
            choice: dict[str, Any] = self._choice(rollout) | {"text": rollout.text, "prompt_logprobs": scores}
            if body.get("logprobs") is not None:
                pieces = [self.chat.decode_prompt([i]) for i in rollout.completion_ids]
                choice["logprobs"] = {"tokens": pieces, "token_logprobs": rollout.rollout_logprobs}
            if body.get("return_token_ids"):
                choice |= {"token_ids": rollout.completion_ids, "prompt_token_ids": prompt}
            choices.append(choice)
        return {"object": "text_completion", "model": self.name, "choices": choices}

    def talk(self, body: dict[str, Any]) -> dict[str, Any]:
        """POST /v1/chat/completions, text alone."""
        question = Question(id="request", text="", answer="")
        ids = self.chat.pack(Prompt(uid="request", question=question, messages=tuple(body["messages"]))).ids
        end = sorted(self.chat.stop_ids)
        choices = [
            self._choice(rollout) | {"message": {"role": "assistant", "content": rollout.text}}
            for rollout in self._sample(ids, {"max_tokens": 64, "stop_token_ids": end, **body})
        ]
        return {"object": "chat.completion", "model": self.name, "choices": choices}

    def _choice(self, rollout: Rollout) -> dict[str, Any]:
        return {"index": rollout.index, "finish_reason": rollout.finish_reason}

    def _sample(self, ids: list[int], body: dict[str, Any]) -> list[Rollout]:
        window = self.plain.context_window
        limit = int(body.get("max_tokens") or 16)
        if len(ids) + limit > window:
            raise ValueError(f"{len(ids)} tokens and {limit} to sample are more than the context window of {window}")
        defaults = Sampling()
        names = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "repetition_penalty", "seed")
        given = {name: getattr(defaults, name) if body.get(name) is None else body[name] for name in names}
        sampling = Sampling(num_rollouts=body.get("n") or 1, max_new_tokens=limit, **given)
        banned = [int(i) for i, bias in (body.get("logit_bias") or {}).items() if bias <= -100]
        model = LanguageModel(self.module, banned)
        chat: Any = _Ids(self.chat, ids, frozenset(body.get("stop_token_ids") or ()))
        engine = TransformersEngine(model, chat, sampler="teacher", max_sequences=64)
        prompt = Prompt(uid="request", question=Question(id="request", text="", answer=""), messages=())
        with self._lock:
            return next(engine.generate([prompt], sampling)).rollouts

    @torch.no_grad()
    def _score(self, ids: list[int], num_top: int) -> list[dict[str, Any] | None]:
        """The likeliest `num_top` tokens of each position, and the prompt's own; nothing predicts the first."""
        ids_1T = torch.tensor([ids])
        with self._lock:
            hidden_1TH = self.plain.hidden(ids_1T, torch.ones_like(ids_1T))
            logprobs_TV = self.plain.logits(hidden_1TH[0, :-1]).float().log_softmax(-1)
        scores: list[dict[str, Any] | None] = [None]
        for token_id, logprobs_V in zip(ids[1:], logprobs_TV, strict=True):
            wanted = [token_id, *logprobs_V.topk(num_top).indices.tolist()]
            scores.append(
                {
                    str(i): {"logprob": float(logprobs_V[i]), "rank": int((logprobs_V > logprobs_V[i]).sum()) + 1}
                    for i in wanted
                }
            )
        return scores


@dataclass(frozen=True)
class _Ids:
    """In the place of a `Chat`: the prompt is the ids of the request, and what ends a reply is the request's too."""

    chat: Chat
    ids: list[int]
    stop_ids: frozenset[int]

    def pack(self, prompt: Prompt) -> PackedPrompt:
        return PackedPrompt(self.ids)

    def decode(self, ids: list[int]) -> str:
        return self.chat.decode(ids)


class ModelServer(ThreadingHTTPServer):
    """The endpoint; `requests` are the bodies it got, `busiest` is how many it had in hand at a time."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, model: ServedModel, port: int, plan: Plan | None) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.model = model
        self.plan = plan
        self.requests: list[dict[str, Any]] = []
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
    server: ModelServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/health":
            return self._send(200, {})
        model = self.server.model
        card = {"id": model.name, "object": "model", "max_model_len": model.plain.context_window}
        self._send(200, {"object": "list", "data": [card]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            number = len(server.requests)
            server.requests.append(body)
            server.busy += 1
            server.busiest = max(server.busiest, server.busy)
        try:
            self._answer(body, (server.plan and server.plan(number, body)) or Fault())
        finally:
            with server.lock:
                server.busy -= 1

    def _answer(self, body: dict[str, Any], fault: Fault) -> None:
        model = self.server.model
        answers = {"/v1/completions": model.complete, "/v1/chat/completions": model.talk}
        time.sleep(fault.delay)
        if fault.drop:
            self.close_connection = True
            return
        if fault.status != 200:
            return self._send(fault.status, {"error": {"message": "told to fail"}}, fault)
        if self.path not in answers or body.get("model") != model.name:
            return self._send(404, {"error": {"message": f"there is no {self.path} of {body.get('model')}"}})
        try:
            answer = answers[self.path](body)
        except (ValueError, LookupError, TypeError) as error:
            return self._send(400, {"error": {"message": f"not understood: {error}"}})
        if fault.spoil is not None:
            fault.spoil(answer)
        self._send(200, answer, fault)

    def _send(self, status: int, answer: dict[str, Any], fault: Fault | None = None) -> None:
        fault = fault or Fault()
        raw = json.dumps(answer).encode() if fault.body is None else fault.body.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        if fault.retry_after is not None:
            self.send_header("Retry-After", fault.retry_after)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@contextmanager
def serve(model: ServedModel, port: int = 0, plan: Plan | None = None) -> Iterator[ModelServer]:
    """The endpoint in a thread; port 0 takes a free one. `plan` makes it misbehave."""
    with ModelServer(model, port, plan) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m harness.rollout.loopback", description=__doc__)
    parser.add_argument("--model", default="tiny:teacher", help="as in teacher.path; default: tiny:teacher")
    parser.add_argument("--served-model-name", help="default: --model")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    options = parser.parse_args()
    name = options.served_model_name
    config = ModelConfig(name="loopback", path=options.model, served_name=name, dtype="float32")
    with serve(ServedModel(config), options.port) as server:
        sys.stdout.write(f"teacher.urls=[{server.url}]\n")
        sys.stdout.flush()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
