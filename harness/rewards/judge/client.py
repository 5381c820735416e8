"""Asks a judge at an OpenAI-compatible endpoint: many requests at a time, each with a deadline and a few tries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from harness.config.engines import ServerConfig
from harness.config.evaluation import JudgeConfig
from harness.errors import UserError
from harness.serving.answers import readable
from harness.serving.endpoints import Answer, Endpoints, Lost, Names, Unreachable
from harness.serving.http import Passing
from harness.types import Message

JudgeFailure = Lost
JudgeGone = Unreachable
Reply = str | JudgeFailure
OnReply = Callable[[int, Reply], None]


class JudgeClient:
    """One model and its sampling at one endpoint.

    `option` is where the configuration comes from, for messages. `backoff` is the first pause in seconds; each further
    one is twice as long.
    """

    def __init__(self, config: JudgeConfig, *, option: str = "eval.judge", backoff: float = 1.0) -> None:
        example = f"{option}.url=http://<host>:<port>/v1"
        if not config.url:
            raise UserError(f"there is no judge: {example}")
        self.sampling = sampling(config)
        self._open = partial(
            Endpoints,
            [config.url.rstrip("/").removesuffix("/chat/completions")],
            config.model,
            ServerConfig(timeout=config.timeout, concurrency=config.concurrency, api_key_env=config.api_key_env),
            role="judge",
            names=Names("the judge at", example, f"{option}.api_key_env", f"{option}.model"),
            tries=config.retries + 1,
            backoff=backoff,
        )

    def ask(self, prompts: Sequence[list[Message]], on_reply: OnReply | None = None) -> list[Reply]:
        """A reply to each prompt, in their order; `on_reply(position, reply)` is called as soon as each has come, in
        another thread.

        Raises JudgeGone if the endpoint cannot be reached, UserError if it refuses the key, the model or the address.
        """
        replies: list[Reply] = [JudgeFailure("not asked")] * len(prompts)

        def put(position: int, reply: Reply) -> None:
            replies[position] = reply
            if on_reply is not None:
                on_reply(position, reply)

        if prompts:
            with closing(self._open()) as endpoints:
                endpoints.check()  # before hours of requests
                bodies = ({**self.sampling, "messages": messages} for messages in prompts)
                endpoints.each("chat/completions", bodies, _content, put)
        return replies

    def check(self) -> None:
        """Look whether somebody is there. Raises JudgeGone if not, UserError if the key is refused."""
        with closing(self._open()) as endpoints:
            endpoints.check()


def _content(answer: Answer) -> str:
    """The text of a reply. Without any it is malformed: it was all reasoning, or a refusal."""
    try:
        content = answer["choices"][0]["message"]["content"]
        if isinstance(content, list):  # of parts
            content = "".join(part["text"] for part in content if part.get("type") == "text")
        return readable(content)
    except (LookupError, TypeError, AttributeError) as error:
        raise Passing("the answer is no chat completion") from error


def sampling(config: JudgeConfig) -> dict[str, Any]:
    """What a request says besides its messages: together they decide the reply."""
    return {
        **config.extra_body,
        "model": config.model,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_tokens,
    }
