"""Asks a judge at an OpenAI-compatible endpoint: many requests at a time, each with a deadline and a few tries."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx

from harness.config.evaluation import JudgeConfig
from harness.errors import UserError
from harness.serving.answers import most_bytes, readable
from harness.serving.http import LOOPBACK, MODELS_BYTES, bearer, detail, json_of, request, retry_after
from harness.serving.http import reason as reason_of
from harness.types import Message

GIVE_UP_AFTER = 32
"""Requests in a row that got no answer in all their tries; then the endpoint is gone, and the rest is not tried."""
_LONGEST_PAUSE = 60.0
_CHECK_TIMEOUT = 10.0


@dataclass(frozen=True)
class JudgeFailure:
    """No reply came; `reason` says why in a line."""

    reason: str


Reply = str | JudgeFailure
OnReply = Callable[[int, Reply], None]


class JudgeGone(UserError):
    """Nobody answers at the address: that may pass, a refusal does not."""


class _Retriable(Exception):
    """What may pass: no connection, a timeout, status 429 or 5xx, an answer that is no chat completion."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause
        """Seconds to wait, if the endpoint says."""


class JudgeClient:
    """One model and its sampling at one endpoint.

    `option` is where the configuration comes from, for messages. `backoff` is the first pause in seconds; each further
    one is twice as long.
    """

    def __init__(self, config: JudgeConfig, *, option: str = "eval.judge", backoff: float = 1.0) -> None:
        if not config.url:
            raise UserError(f"there is no judge: {option}.url=http://<host>:<port>/v1")
        self.config = config
        self.option = option
        self.base = config.url.rstrip("/").removesuffix("/chat/completions")
        self.backoff = backoff
        self.sampling = sampling(config)
        self._headers = bearer(f"{option}.api_key_env", config.api_key_env)
        self._checked = False

    def ask(self, prompts: Sequence[list[Message]], on_reply: OnReply | None = None) -> list[Reply]:
        """A reply to each prompt, in their order; `on_reply(position, reply)` is called as soon as each has come.

        Raises JudgeGone if the endpoint cannot be reached, UserError if it refuses the key, the model or the address.
        """
        if not prompts:
            return []
        return asyncio.run(self._ask(prompts, on_reply or (lambda position, reply: None)))

    def check(self) -> None:
        """Look again whether somebody is there. Raises JudgeGone if not, UserError if the key is refused."""
        self._checked = False
        asyncio.run(self._check_alone())

    async def _check_alone(self) -> None:
        async with self._client(httpx.Limits()) as http:
            await self._check(http)

    async def _ask(self, prompts: Sequence[list[Message]], on_reply: OnReply) -> list[Reply]:
        replies: list[Reply] = [JudgeFailure("not asked")] * len(prompts)
        waiting = iter(enumerate(prompts))
        lost = _LostInARow()
        num_workers = min(self.config.concurrency, len(prompts))
        # A limit of the pool would count waiting for a connection into the deadline.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=num_workers)
        async with self._client(limits) as http:
            await self._check(http)

            async def work(waiting: Iterator[tuple[int, list[Message]]]) -> None:
                for position, messages in waiting:
                    replies[position] = await self._reply(http, messages, lost)
                    on_reply(position, replies[position])

            await asyncio.gather(*(work(waiting) for _ in range(num_workers)))
        return replies

    def _client(self, limits: httpx.Limits) -> httpx.AsyncClient:
        try:
            url = httpx.URL(self.base)
        except httpx.InvalidURL as error:
            raise UserError(
                f"{self.option}.url={self.base} is no address ({error}): http://<host>:<port>/v1"
            ) from error
        if url.scheme not in ("http", "https") or not url.host:
            raise UserError(f"{self.option}.url={self.base} is no address: http://<host>:<port>/v1")
        # The request as such has one deadline, of asyncio; a proxy is never asked for this machine itself.
        return httpx.AsyncClient(headers=self._headers, timeout=None, limits=limits, trust_env=url.host not in LOOPBACK)

    async def _check(self, http: httpx.AsyncClient) -> None:
        """Whether somebody is there, before hours of requests. Only asked once; what it serves is not looked at."""
        if self._checked:
            return
        try:
            async with asyncio.timeout(min(_CHECK_TIMEOUT, self.config.timeout)):
                response = await request(http, "GET", f"{self.base}/models", most_bytes=MODELS_BYTES)
        except (httpx.HTTPError, OSError, TimeoutError) as error:
            raise JudgeGone(
                f"the judge at {self.base} cannot be reached ({reason_of(error)}): is it running? "
                f"{self.option}.url=http://<host>:<port>/v1"
            ) from error
        if response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise self._refused(response)
        self._checked = True

    async def _reply(self, http: httpx.AsyncClient, messages: list[Message], lost: _LostInARow) -> Reply:
        reason = "not asked"
        for attempt in range(self.config.retries + 1):
            if lost.number >= GIVE_UP_AFTER:
                return JudgeFailure(f"not asked any more: {lost.number} requests in a row failed ({lost.reason})")
            try:
                async with asyncio.timeout(self.config.timeout):
                    reply = await self._request(http, messages)
                lost.number = 0
                return reply
            except TimeoutError:
                reason, pause = f"no answer in {self.config.timeout:g} s", None
            except (httpx.HTTPError, OSError) as error:
                reason, pause = reason_of(error), None
            except _Retriable as error:
                reason, pause = str(error), error.pause
            if attempt < self.config.retries:
                await asyncio.sleep(self._pause(attempt, pause))
        lost.number, lost.reason = lost.number + 1, reason
        return JudgeFailure(f"{reason} ({self.config.retries + 1} tries)")

    async def _request(self, http: httpx.AsyncClient, messages: list[Message]) -> Reply:
        body = {**self.sampling, "messages": messages}
        response = await request(http, "POST", f"{self.base}/chat/completions", most_bytes=most_bytes(body), body=body)
        status = response.status_code
        if status == HTTPStatus.TOO_MANY_REQUESTS or status >= 500:
            raise _Retriable(f"status {status}", retry_after(response))
        if 300 <= status < 400 or status in (401, 403, 404, 405):
            raise self._refused(response)
        if status >= 400:
            return JudgeFailure(f"status {status}: {detail(response)}")
        try:
            content = json_of(response)["choices"][0]["message"]["content"]
        except (LookupError, TypeError) as error:
            raise _Retriable("the answer is no chat completion") from error
        # Without any text the reply is malformed: it was all reasoning, or a refusal.
        return readable(content)

    def _pause(self, attempt: int, asked_for: float | None) -> float:
        """Spread by half, so that requests that failed together do not come back together."""
        grown = self.backoff * 2**attempt * random.uniform(0.75, 1.25)
        return min(_LONGEST_PAUSE, grown if asked_for is None else asked_for)

    def _refused(self, response: httpx.Response) -> UserError:
        status = response.status_code
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            remedy = f"set {self.config.api_key_env}, or name another variable in {self.option}.api_key_env"
        else:
            model = f"{self.config.model} ({self.option}.model)"
            remedy = f"does it serve the model {model} at this {self.option}.url?"
        return UserError(f"the judge at {self.base} refuses: status {status}, {detail(response)}: {remedy}")


@dataclass
class _LostInARow:
    """Requests in a row that got no answer at all."""

    number: int = 0
    reason: str = ""


def sampling(config: JudgeConfig) -> dict[str, Any]:
    """What a request says besides its messages: together they decide the reply."""
    return {
        **config.extra_body,
        "model": config.model,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_tokens,
    }
