"""The rollout engine on OpenAI-compatible endpoints: token ids go out, ids and log-probabilities come back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.models.chat import Chat
from harness.rollout.base import BAN, EngineParts, RolloutEngine, Sampling, rollout_seed, room
from harness.serving.answers import WrongAnswer, check_sampled, choices_of, logprob, readable, token_ids
from harness.serving.endpoints import Endpoints
from harness.types import FinishReason, Prompt, Rollout, RolloutGroup, Sampler

if TYPE_CHECKING:
    import torch

LONGEST_TOKEN = 256
"""Characters of the text of a token; what comes after as many for each token of a limit is beyond it."""


def open_engine(parts: EngineParts) -> RolloutEngine:
    """Asks the endpoints what they serve. Raises UserError where they cannot be asked."""
    from harness.models.loading import text_config

    model, rollout, endpoints = parts.model, parts.rollout, parts.endpoints
    assert endpoints is not None
    window, gives_text = endpoints.check(), model.api == "text"
    if window is None and gives_text:
        window = rollout.max_prompt_tokens + rollout.max_response_tokens
    rows = 0 if gives_text else text_config(model).vocab_size
    if window is None:
        window = text_config(model).max_position_embeddings
    return ServerEngine(
        endpoints, parts.chat, parts.sampler, context_window=window, api=model.api, vocab_size=rows
    )  # fmt: skip


class ServerEngine:
    """One model at `endpoints`; all prompts are in hand at once, within the endpoints' concurrency.

    - `api="tokens"`, vLLM's completions: the very ids of the prompt, checked against those that the endpoint read.
      Log-probabilities are those of `logits / T` where the server was started with `--logprobs-mode
      processed_logprobs`, as `harness.serving.server` does, and nothing is truncated. Those of a server that somebody
      else has started are in its own mode. At temperature 0 they are those of temperature 1.
    - `api="text"`, chat alone: the endpoint applies its own template, bans nothing, and its text is encoded again. The
      log-probabilities are NaN: such rollouts can be read and graded, never trained.

    `vocab_size` is the number of rows of the model's head, where it is known: those that only pad it are banned too.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        chat: Chat,
        sampler: Sampler,
        *,
        context_window: int,
        api: str = "tokens",
        vocab_size: int = 0,
    ) -> None:
        self.sampler: Sampler = sampler
        self.has_own_weights = True
        self.takes_late_prompts = True
        self._endpoints = endpoints
        self._chat = chat
        self._window = context_window
        self._api = api
        self._bias = {str(i): BAN for i in (*chat.banned_ids, *range(chat.num_tokens, vocab_size))}
        self._banned = frozenset(chat.banned_ids)
        self._name = f"the {sampler}'s endpoint"

    @property
    def context_window(self) -> int:
        return self._window

    def generate(self, prompts: Iterable[Prompt], sampling: Sampling) -> Iterator[RolloutGroup]:
        """Yield the group of each prompt as it finishes.

        Raises UserError for a prompt with media, one that leaves no room for a single token, or, where the endpoints
        give text alone, one with a prefix. That is at once, unless the prompt comes late. Later, UserError where an
        endpoint lacks what is asked of it, and RunInterrupted where all of them are gone.
        """
        asked = (self._ask(prompt, sampling) for prompt in prompts)
        return self._groups(list(asked) if isinstance(prompts, Sequence) else asked, sampling)

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        raise UserError("an endpoint cannot take new weights: train with rollout=vllm or rollout=transformers")

    def sleep(self) -> None:
        """Nothing to release here."""

    def wake(self) -> None:
        """It never slept."""

    def close(self) -> None:
        """The endpoints belong to the caller."""

    def _ask(self, prompt: Prompt, sampling: Sampling) -> _Asked:
        question = prompt.question
        if question.images or question.video is not None:
            raise UserError(
                f"question {question.id} has media and a served model is asked text prompts only: "
                "use rollout=transformers or rollout=vllm"
            )
        if self._api == "text" and prompt.ids:
            raise UserError(
                f"prompt {prompt.uid} is given as tokens, which {self._name} cannot take as text: "
                f"serve it with vLLM and set {self.sampler}.api=tokens"
            )
        if self._api == "text" and prompt.prefix_ids:
            raise UserError(
                f"prompt {prompt.uid} starts the reply with given tokens, which {self._name} cannot take as text: "
                f"serve it with vLLM and set {self.sampler}.api=tokens"
            )
        ids = self._chat.pack(prompt).ids
        return _Asked(prompt, ids, room(prompt, len(ids), sampling, self._window), sampling)

    def _groups(self, asked: Iterable[_Asked], sampling: Sampling) -> Iterator[RolloutGroup]:
        """A request a prompt; a request a rollout where the endpoints give text, because few of them draw many."""
        # Greedy rollouts are all the same, and vLLM refuses to draw them more than once.
        draws = sampling.num_rollouts if sampling.temperature > 0.0 else 1
        parts = draws if self._api == "text" else 1
        requests: list[tuple[_Asked, int]] = []
        build = self._text_body if self._api == "text" else self._tokens_body
        read = self._read_text if self._api == "text" else self._read_tokens
        path = "chat/completions" if self._api == "text" else "completions"

        def bodies() -> Iterator[dict[str, Any]]:
            for one in asked:
                for part in range(parts):
                    requests.append((one, part))
                    yield build(one, sampling, part, draws // parts)

        for position, answer in self._endpoints.map(path, bodies()):
            one, part = requests[position]
            try:
                choices = choices_of(answer, draws // parts)
            except WrongAnswer as error:
                raise UserError(f"{self._name} {error}") from error
            one.rollouts += [read(one, part + number, choice) for number, choice in enumerate(choices)]
            if len(one.rollouts) == draws:
                if draws < sampling.num_rollouts:
                    one.rollouts = [read(one, index, choices[0]) for index in range(sampling.num_rollouts)]
                one.rollouts.sort(key=lambda rollout: rollout.index)
                yield RolloutGroup(uid=one.prompt.uid, prompt=one.prompt, rollouts=one.rollouts)

    def _tokens_body(self, asked: _Asked, sampling: Sampling, part: int, draws: int) -> dict[str, Any]:
        return {
            "prompt": asked.given,
            "n": draws,
            "max_tokens": asked.limit - len(asked.prompt.prefix_ids),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "presence_penalty": sampling.presence_penalty,
            "repetition_penalty": sampling.repetition_penalty,
            "seed": rollout_seed(sampling, self.sampler, asked.prompt.uid),
            "stop_token_ids": sorted(self._chat.stop_ids),
            "ignore_eos": True,
            "logprobs": 0,  # that of the sampled token alone
            "return_token_ids": True,
            **({} if sampling.unrestricted else {"logit_bias": self._bias}),
            **({"stop": list(sampling.stop), "include_stop_str_in_output": True} if sampling.stop else {}),
        }

    def _text_body(self, asked: _Asked, sampling: Sampling, part: int, draws: int) -> dict[str, Any]:
        body = {
            "messages": [{**m, "content": self._chat.as_data(m["content"])} for m in asked.prompt.messages],
            "max_tokens": asked.limit,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "presence_penalty": sampling.presence_penalty,
            "seed": rollout_seed(sampling, self.sampler, asked.prompt.uid) + part,
        }
        # Not of OpenAI's API, so only those endpoints are bothered that have to be.
        for name, off in (("top_k", 0), ("min_p", 0.0), ("repetition_penalty", 1.0)):
            if (value := getattr(sampling, name)) != off:
                body[name] = value
        return body

    def _read_tokens(self, asked: _Asked, index: int, choice: dict[str, Any]) -> Rollout:
        remedy = f"serve it with vLLM, or set {self.sampler}.api=text, which asks for text alone"
        read, scores = choice.get("prompt_token_ids"), choice.get("logprobs")
        if not choice.get("token_ids") or not isinstance(read, list):
            raise UserError(f"{self._name} gives no token ids: {remedy}")
        listed = scores.get("token_logprobs") if isinstance(scores, dict) else None
        try:
            ids = token_ids(choice["token_ids"])
            if not isinstance(listed, list) or len(listed) != len(ids):
                raise WrongAnswer("gives no log-probabilities of its tokens")
            logprobs = [logprob(value) for value in listed]
        except WrongAnswer as error:
            raise UserError(f"{self._name} {error}: {remedy}") from error
        self._check_prompt(asked, read)
        prefix = list(asked.prompt.prefix_ids)
        if len(prefix) + len(ids) > asked.limit:
            most = asked.limit - len(prefix)
            raise UserError(f"{self._name} gave {len(ids)} tokens where at most {most} were asked for: {remedy}")
        chat = self._chat
        try:
            banned = frozenset() if asked.sampling.unrestricted else self._banned
            check_sampled(ids, num_tokens=chat.num_tokens, stop_ids=chat.stop_ids, banned_ids=banned)
        except WrongAnswer as error:
            raise UserError(f"{self._name} {error}") from error
        ended = ids[-1] in chat.stop_ids or (asked.sampling.stop and choice.get("finish_reason") == "stop")
        finish: FinishReason = "stop" if ended else "length"
        if finish == "length" and len(prefix) + len(ids) < asked.limit:
            raise UserError(
                f"{self._name} ended a reply after {len(ids)} tokens without a token that ends a turn "
                f"(finish_reason {str(choice.get('finish_reason'))[:50]}): start it with --generation-config vllm"
            )
        return self._rollout(asked, index, prefix + ids, [0.0] * len(prefix) + logprobs, None, finish)

    def _check_prompt(self, asked: _Asked, read: Sequence[Any]) -> None:
        """The endpoint has to have read our ids."""
        given = asked.given
        if read != given:
            both = zip(read, given, strict=False)
            at = next((i for i, (a, b) in enumerate(both) if a != b), min(len(read), len(given)))
            theirs, ours = (str(some[at])[:50] if at < len(some) else "nothing" for some in (read, given))
            raise UserError(
                f"{self._name} read another prompt than {asked.prompt.uid}: token {at} is {theirs} where {ours} was "
                "sent: does it cut prompts, or serve another model?"
            )

    def _read_text(self, asked: _Asked, index: int, choice: dict[str, Any]) -> Rollout:
        """Without any text the reply was all reasoning, or a refusal. One above the limit is cut off there."""
        message = choice.get("message")
        text = readable(message.get("content") if isinstance(message, dict) else None)[: asked.limit * LONGEST_TOKEN]
        finish: FinishReason = "stop" if choice.get("finish_reason") == "stop" else "length"
        ids = self._chat.encode_text(text)
        if finish == "stop" or not ids:
            ids.append(self._chat.end_id)
        if len(ids) > asked.limit:
            ids, finish = ids[: asked.limit], "length"
            text = self._chat.decode(ids)
        return self._rollout(asked, index, ids, [math.nan] * len(ids), text, finish)

    def _rollout(
        self, asked: _Asked, index: int, ids: list[int], logprobs: list[float], text: str | None, finish: FinishReason
    ) -> Rollout:
        return Rollout(
            sampler=self.sampler,
            index=index,
            prompt_ids=list(asked.ids),
            completion_ids=ids,
            rollout_logprobs=logprobs,
            text=self._chat.decode(ids) if text is None else text,
            finish_reason=finish,
            num_prefix=len(asked.prompt.prefix_ids),
        )


class _Asked:
    """A prompt under way."""

    def __init__(self, prompt: Prompt, ids: list[int], limit: int, sampling: Sampling) -> None:
        self.prompt = prompt
        self.sampling = sampling
        self.ids = ids
        self.limit = limit
        """Completion tokens at most, the prefix included."""
        self.rollouts: list[Rollout] = []

    @property
    def given(self) -> list[int]:
        return [*self.ids, *self.prompt.prefix_ids]
