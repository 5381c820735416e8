"""openai's client for one address: a body goes out with a key, so many bytes come back. Imported at the first request.

It posts to paths and parses nothing: the SDK's models would take two thirds of a request's time again, and check less
than `harness.serving.answers`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx2
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, Omit

from harness.errors import first_line
from harness.serving.answers import MIB
from harness.serving.http import LOOPBACK, Passing

logging.getLogger("openai").setLevel(logging.WARNING)  # whatever OPENAI_LOG says
_MOST_BYTES = "X-Most-Bytes"
"""Tells `_Bounded` how long an answer may be; it is never sent."""
_TLS = httpx2.create_ssl_context()
"""Reading the certificates takes longer than all else of a client."""


class Client(AsyncOpenAI):
    """No tries and no headers of the SDK's own, and nothing from variables named OPENAI_*.

    `url` ends with /v1; an empty `key` is not sent.
    """

    def __init__(self, url: str, key: str, concurrency: int) -> None:
        address = httpx2.URL(url)
        super().__init__(
            base_url=address.copy_with(query=None),
            default_query=dict(address.params),  # `?api-version=...` of gateways, which is no part of the path
            api_key=key or "none",
            max_retries=0,
            timeout=None,
            http_client=_Bounded(
                # A limit or a timeout of the pool would count waiting for a connection into the deadline.
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=concurrency),
                timeout=None,
                verify=_TLS,
                trust_env=address.host not in LOOPBACK,  # a proxy is never asked for this machine itself
            ),
        )
        self._unsent = {"X-Stainless-Retry-Count": Omit()} | ({} if key else {"Authorization": Omit()})

    @property
    def default_headers(self) -> dict[str, str | Omit]:
        """All of them. Packed bytes are not asked for: a few may be gigabytes."""
        return {"Accept-Encoding": "identity", "Content-Type": "application/json"}

    async def ask(self, path: str, body: dict[str, Any] | None, *, seconds: float, most_bytes: int) -> httpx2.Response:
        """The complete response to a GET, or to a POST of `body`, of any status. Raises Passing where none comes."""
        options: Any = {"headers": {**self._unsent, _MOST_BYTES: str(most_bytes)}}
        try:
            async with asyncio.timeout(seconds):
                if body is None:
                    return await self.get(path, cast_to=httpx2.Response, options=options)
                content = json.dumps(body).encode()  # the SDK's encoder stumbles over half of a surrogate pair
                return await self.post(path, cast_to=httpx2.Response, content=content, options=options)
        except APIStatusError as error:
            return error.response
        except TimeoutError as error:
            raise Passing(f"no answer in {seconds:g} s") from error
        except (APIConnectionError, OSError) as error:
            cause = error.__cause__ or error
            raise Passing(first_line(cause), refused=isinstance(cause, httpx2.ConnectError)) from cause


class _Bounded(httpx2.AsyncClient):
    """Reads answers itself, up to the bytes that the request allows."""

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """What is kept of the header names no character set: Python has some that read no text."""
        most_bytes = int(request.headers.pop(_MOST_BYTES))
        content = bytearray()
        response = await super().send(request, **options | {"stream": True})
        try:
            if (response.headers.get("Content-Encoding") or "identity").lower() != "identity":
                raise httpx2.ReadError("the answer is packed, which was not asked for")
            async for piece in response.aiter_raw():
                content += piece
                if len(content) > most_bytes:
                    raise httpx2.ReadError(f"the answer has more than {most_bytes / MIB:.1f} MiB")
        finally:
            await response.aclose()
        kept = {name: value for name, value in response.headers.items() if name == "retry-after"}
        return httpx2.Response(response.status_code, headers=kept, content=bytes(content), request=request)
