"""Several OpenAI-compatible endpoints that serve one model, asked as one: shared load, retries, an end to patience."""

from __future__ import annotations

import asyncio
import queue
import random
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Any, TypeVar

import httpx

from harness.config.engines import ServerConfig
from harness.errors import RunInterrupted, UserError
from harness.serving.answers import most_bytes
from harness.serving.http import (
    LOOPBACK,
    MODELS_BYTES,
    bearer,
    detail,
    json_of,
    listed,
    models_of,
    reason,
    request,
    retry_after,
    window_of,
)

LONGEST_PAUSE = 60.0
CHECK_TIMEOUT = 10.0
MAX_RESTARTS = 3
"""Restarts in a row that led to no answer; then the server dies of what it is asked."""
_PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)

T = TypeVar("T")


class _Retriable(Exception):
    """What may pass: no connection, a timeout, status 429 or 5xx, an answer that is no JSON object."""

    def __init__(self, reason: str, *, pause: float | None = None, refused: bool = False) -> None:
        super().__init__(reason)
        self.pause = pause
        """Seconds to wait, if the endpoint says."""
        self.refused = refused
        """Nobody listens there."""


class Endpoints:
    """`urls` (http://<host>:<port>/v1) that serve `model`. Used from any thread; its requests run in one of their own.

    A request goes to the endpoint with the fewest in hand. An endpoint that fails gets a pause, `backoff` seconds and
    twice as long after each further failure. Then it gets a single request at a time until it answers; meanwhile its
    requests go to the others. Where all have been failing for `config.max_wait` seconds, without an answer,
    RunInterrupted is raised. A slow answer is no failure before `config.timeout`, and the time of a restart does not
    count. `role` names the model's part of the configuration in messages.

    `restart` starts a server that is the caller's own again: called when nobody listens at an endpoint, once at a time.
    Its errors end what is being asked.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model: str,
        config: ServerConfig,
        *,
        role: str = "teacher",
        restart: Callable[[], None] | None = None,
        backoff: float = 1.0,
    ) -> None:
        if not urls:
            raise UserError(f"no endpoint serves the {role}: {role}.urls=[http://<host>:<port>/v1]")
        headers = bearer("server.api_key_env", config.api_key_env)
        self.model = model
        self._config = config
        self._role = role
        self._restart = restart
        self._backoff = backoff
        self._endpoints = [_Endpoint(url, headers, role, config.concurrency) for url in urls]
        self._restarts_in_a_row = 0
        self._restarting = asyncio.Lock()
        self._changed = asyncio.Event()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"endpoints of the {role}", daemon=True)
        self._thread.start()

    @property
    def urls(self) -> list[str]:
        return [endpoint.url for endpoint in self._endpoints]

    def map(self, path: str, bodies: Iterable[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Post each body, with the model's name, to `<url>/<path>`; yields (position, answer) as they finish.

        Bodies are taken as there is room for them, and may come late. Asking starts with the first `next`; what is left
        is cancelled when the iterator is closed or dropped. Raises UserError where an endpoint refuses a request,
        RunInterrupted where all are gone, and what `bodies` raises.
        """
        done: queue.SimpleQueue[tuple[int, dict[str, Any]] | None] = queue.SimpleQueue()
        future = asyncio.run_coroutine_threadsafe(self._map(path, bodies, done.put), self._loop)
        future.add_done_callback(lambda _: done.put(None))
        try:
            while (item := done.get()) is not None:
                yield item
            future.result()
        finally:
            future.cancel()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to one body. Raises like `map`."""
        return next(self.map(path, [body]))[1]

    def check(self) -> int | None:
        """Ask every endpoint what it serves. Returns the shortest context window that one states, in tokens.

        Raises UserError for an endpoint that cannot be reached, refuses, or does not serve the model.
        """
        windows = self._wait(self._check())
        return min(windows, default=None)

    def close(self) -> None:
        """Cancel what is left. Iterators of `map` that are still read raise CancelledError."""
        if not self._closed:
            self._closed = True
            self._wait(self._shut())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _shut(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for endpoint in self._endpoints:
            await endpoint.http.aclose()

    async def _map(
        self, path: str, bodies: Iterable[dict[str, Any]], put: Callable[[tuple[int, dict[str, Any]]], None]
    ) -> None:
        waiting = iter(enumerate(bodies))
        taking = asyncio.Lock()

        async def work() -> None:
            while True:
                async with taking:  # in a thread: the next body may be still to come
                    item = await asyncio.to_thread(next, waiting, None)
                if item is None:
                    return
                position, body = item
                put((position, await self._answer(path, body)))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._config.concurrency * len(self._endpoints)):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # one refusal or one end of patience; the rest was cancelled

    async def _answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        content = {**body, "model": self.model}
        while True:
            endpoint = await self._free()
            started = self._loop.time()
            try:
                answer = await self._request(endpoint, path, content)
            except _Retriable as error:
                self._note_failure(endpoint, started, error)
                if error.refused and self._restart is not None:
                    await self._start_again(endpoint, started)
            else:
                endpoint.failures, endpoint.failing_since = 0, None
                self._restarts_in_a_row = 0
                return answer
            finally:
                endpoint.in_hand -= 1
                self._wake()

    async def _free(self) -> _Endpoint:
        """Take a place at the endpoint with the least to do. Waits for one; raises RunInterrupted."""
        while True:
            now = self._loop.time()
            ready = [e for e in self._endpoints if e.pause_until <= now and e.in_hand < e.capacity]
            if ready:
                endpoint = min(ready, key=lambda e: e.in_hand)
                endpoint.in_hand += 1
                return endpoint
            # Whoever is under way wakes the others; pauses and the end of patience pass by themselves.
            moments = [e.pause_until for e in self._endpoints if e.pause_until > now]
            timeout = None if not moments else max(0.0, min(moments) - now)
            try:
                await asyncio.wait_for(self._changed.wait(), timeout)
            except TimeoutError:
                continue

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _note_failure(self, endpoint: _Endpoint, started: float, error: _Retriable) -> None:
        """Pause the endpoint. Raises RunInterrupted if all have been failing for too long."""
        now = self._loop.time()
        if endpoint.failing_since is None:
            endpoint.failing_since = now
        if started >= endpoint.failed_at:  # requests that were under way together fail together: one failure
            endpoint.failures += 1
            endpoint.failed_at = now
        grown = self._backoff * 2 ** (min(endpoint.failures, 10) - 1) * random.uniform(0.75, 1.25)
        endpoint.pause_until = now + min(LONGEST_PAUSE, grown if error.pause is None else error.pause)
        failing = [e.failing_since for e in self._endpoints if e.failing_since is not None]
        if len(failing) < len(self._endpoints):
            return
        patience = max(failing) + self._config.max_wait
        endpoint.pause_until = min(endpoint.pause_until, max(now, patience))
        if now >= patience:
            raise RunInterrupted(
                f"the {self._role}'s endpoint {endpoint.url} has not answered for {self._config.max_wait:g} s "
                f"({error}): launch the same command again to go on"
            )

    async def _start_again(self, endpoint: _Endpoint, failed: float) -> None:
        """Restart the server at an endpoint, unless that was done since `failed`."""
        assert self._restart is not None
        async with self._restarting:
            if endpoint.restarted_at >= failed:
                return
            if self._restarts_in_a_row == MAX_RESTARTS:
                raise RunInterrupted(
                    f"the {self._role}'s server at {endpoint.url} was started {MAX_RESTARTS} times and died each time "
                    "before it answered: see its log, then launch the same command again to go on"
                )
            self._restarts_in_a_row += 1
            await asyncio.to_thread(self._restart)
            endpoint.restarted_at = self._loop.time()
            endpoint.failures, endpoint.failing_since, endpoint.pause_until = 0, None, 0.0

    async def _request(self, endpoint: _Endpoint, path: str, body: dict[str, Any]) -> dict[str, Any]:
        url = f"{endpoint.url}/{path}"
        try:
            async with asyncio.timeout(self._config.timeout):
                response = await request(endpoint.http, "POST", url, most_bytes=most_bytes(body), body=body)
        except TimeoutError as error:
            raise _Retriable(f"no answer in {self._config.timeout:g} s") from error
        except (httpx.HTTPError, OSError) as error:
            raise _Retriable(reason(error), refused=isinstance(error, httpx.ConnectError)) from error
        status = response.status_code
        if status in _PASSING or status >= 500:
            pause = retry_after(response)
            raise _Retriable(f"status {status}, {detail(response)}", pause=pause)
        if status != HTTPStatus.OK:
            raise await self._refusal(endpoint, response)
        answer = json_of(response)
        if not isinstance(answer, dict):
            raise _Retriable("the answer is no JSON object")
        return answer

    async def _refusal(self, endpoint: _Endpoint, response: httpx.Response) -> UserError:
        """What a status that will not pass means, and the remedy."""
        status = response.status_code
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            remedy = f"set {self._config.api_key_env}, or name another variable in server.api_key_env"
        elif status == HTTPStatus.NOT_FOUND:
            served = [name for name, _ in await self._served(endpoint)]
            if self.model not in served:
                return self._not_served(endpoint, served)
            remedy = f"is {endpoint.url} the right address ({self._role}.urls)?"
        else:
            remedy = f"does it speak vLLM's API? {self._role}.api=text asks for text alone"
        return UserError(f"the endpoint {endpoint.url} refuses: status {status}, {detail(response)}: {remedy}")

    def _not_served(self, endpoint: _Endpoint, served: Sequence[str]) -> UserError:
        return UserError(
            f"the endpoint {endpoint.url} does not serve {self.model}, it serves {listed(list(served))}: "
            f"set {self._role}.served_name"
        )

    async def _check(self) -> list[int]:
        windows = []
        for endpoint in self._endpoints:
            served = dict(await self._served(endpoint))
            if self.model not in served:
                raise self._not_served(endpoint, list(served))
            try:
                window = window_of(served[self.model])
            except ValueError as error:
                raise UserError(f"the endpoint {endpoint.url} states {error}: does it have vLLM's API?") from error
            windows += [window] if window is not None else []
        return windows

    async def _served(self, endpoint: _Endpoint) -> list[tuple[str, Any]]:
        """Names of the models at an endpoint, and what it says of their context windows."""
        unreachable = f"is it running? {self._role}.urls=[http://<host>:<port>/v1]"
        try:
            async with asyncio.timeout(min(CHECK_TIMEOUT, self._config.timeout)):
                response = await request(endpoint.http, "GET", f"{endpoint.url}/models", most_bytes=MODELS_BYTES)
        except (httpx.HTTPError, OSError, TimeoutError) as error:
            message = f"the {self._role}'s endpoint {endpoint.url} cannot be reached ({reason(error)}): {unreachable}"
            raise UserError(message) from error
        if response.status_code == HTTPStatus.NOT_FOUND:
            raise UserError(f"{endpoint.url} is no OpenAI-compatible endpoint, it has no /models: {unreachable}")
        if response.status_code != HTTPStatus.OK:
            raise await self._refusal(endpoint, response)
        served = models_of(json_of(response))
        if served is None:
            raise UserError(f"{endpoint.url}/models lists no models: {unreachable}")
        return served


class _Endpoint:
    """One address, and how it has been doing. Times are those of the event loop."""

    def __init__(self, url: str, headers: dict[str, str], role: str, concurrency: int) -> None:
        self.url = url.rstrip("/")
        try:
            host = httpx.URL(self.url).host
        except httpx.InvalidURL as error:
            raise UserError(f"{role}.urls: {url} is no address ({error}): http://<host>:<port>/v1") from error
        # A request has one deadline, of asyncio; a proxy is never asked for this machine itself.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=concurrency)
        self.http = httpx.AsyncClient(headers=headers, timeout=None, limits=limits, trust_env=host not in LOOPBACK)
        self.in_hand = 0
        self.failures = 0
        """In a row."""
        self.failed_at = 0.0
        self.failing_since: float | None = None
        self.pause_until = 0.0
        self.restarted_at = 0.0
        self._concurrency = concurrency

    @property
    def capacity(self) -> int:
        return self._concurrency if self.failures == 0 else 1
