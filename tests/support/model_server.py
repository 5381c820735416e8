"""A model of the harness behind the part of vLLM's API that the harness uses: for tests and demonstrations, no vLLM.

`python -m tests.support.model_server --model tiny:teacher --port 8124`, then `teacher.urls=[http://127.0.0.1:8124/v1]`.
The numbers are the model's own, computed as `TransformersEngine` computes them, one request at a time. Of a
`logit_bias` only bans (-100 and below) are taken. As at vLLM, `prompt_logprobs` are those of the plain logits: no bans,
no temperature.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from harness.config.schema import ModelConfig
from harness.models.chat import Chat, PackedPrompt
from harness.models.forward import LanguageModel
from harness.models.loading import load_model, load_tokenizer
from harness.rollout.base import Sampling
from harness.rollout.transformers_engine import TransformersEngine
from harness.types import Prompt, Question, Rollout
from tests.support.http_server import Body, LoopbackServer, NotServed, Plan, running, until_interrupted


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


def make_server(model: ServedModel, port: int = 0, plan: Plan | None = None) -> LoopbackServer:
    """Port 0 takes a free one. `plan` makes it misbehave."""

    def of_the_model(answer: Callable[[Body], Body]) -> Callable[[Body], Body]:
        def checked(body: Body) -> Body:
            if body.get("model") != model.name:
                raise NotServed(f"there is no model {body.get('model')}")
            return answer(body)

        return checked

    answers = {"completions": of_the_model(model.complete), "chat/completions": of_the_model(model.talk)}
    card: Body = {"id": model.name, "object": "model", "max_model_len": model.plain.context_window}
    return LoopbackServer(answers, [card], port=port, plan=plan)


def serve(model: ServedModel, port: int = 0, plan: Plan | None = None) -> AbstractContextManager[LoopbackServer]:
    """The endpoint in a thread."""
    return running(make_server(model, port, plan))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.model_server", description=__doc__)
    parser.add_argument("--model", default="tiny:teacher", help="as in teacher.path; default: tiny:teacher")
    parser.add_argument("--served-model-name", help="default: --model")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    options = parser.parse_args()
    name = options.served_model_name
    config = ModelConfig(name="loopback", path=options.model, served_name=name, dtype="float32")
    server = make_server(ServedModel(config), options.port)
    until_interrupted(server, f"teacher.urls=[{server.url}]")


if __name__ == "__main__":
    main()
