"""Several OpenAI-compatible endpoints that serve one model, asked as one: shared load, retries, an end to patience."""

from __future__ import annotations

import asyncio
import queue
import random
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import httpx2
import tenacity

from harness.config.engines import ServerConfig, api_key
from harness.errors import RunInterrupted, UserError
from harness.serving.answers import WrongAnswer, most_bytes
from harness.serving.http import MODELS_BYTES, Passing, detail, json_of, listed, models_of, retry_after, window_of

if TYPE_CHECKING:
    from harness.serving.client import Client

LONGEST_PAUSE = 60.0
CHECK_TIMEOUT = 10.0
MAX_RESTARTS = 3
"""Restarts in a row that led to no answer; then the server dies of what it is asked."""
GIVE_UP_AFTER = 32
"""Requests in a row that got no answer in all their tries; then the endpoint is gone, and the rest is not tried."""
_PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
_KEY = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_ADDRESS = (*range(300, 400), HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
"""Statuses that may pass, as 5xx do, and those of a wrong key and of a wrong address or model."""

T = TypeVar("T")
Answer = dict[str, Any]


class Unreachable(UserError):
    """Nobody answers at an address: that may pass, a refusal does not."""


@dataclass(frozen=True)
class Lost:
    """No answer came; `reason` says why in a line."""

    reason: str


class Names(NamedTuple):
    """What messages call an endpoint (`who` stands before its address), and the options that it comes from."""

    who: str
    urls: str
    key: str
    model: str


class Endpoints:
    """`urls` (http://<host>:<port>/v1) that serve `model`. Used from any thread; its requests run in one of their own.

    A request goes to the endpoint with the fewest in hand. What may pass is tried again after a pause: `backoff`
    seconds, twice as long after each further failure, or as long as the endpoint says. There are two ways to give up.

    - Together: an endpoint that fails gets the pause, and then a single request at a time until it answers; meanwhile
      its requests go to the others. Where all have been failing for `config.max_wait` seconds, without an answer,
      RunInterrupted is raised. A slow answer is no failure before `config.timeout`, and the time of a restart does not
      count.
    - Each request by itself, with `tries`: after so many, with pauses between them, it is `Lost`. So is at once one
      that the endpoint finds wrong, and the rest after `GIVE_UP_AFTER` that were lost in a row.

    `role` names the model's part of the configuration in messages; `names` are for options that are called otherwise.
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
        names: Names | None = None,
        tries: int | None = None,
        restart: Callable[[], None] | None = None,
        backoff: float = 1.0,
    ) -> None:
        example = f"{role}.urls=[http://<host>:<port>/v1]"
        self._names = names or Names(f"the {role}'s endpoint", example, "server.api_key_env", f"{role}.served_name")
        if not urls:
            raise UserError(f"no endpoint serves the {role}: {self._names.urls}")
        key = api_key(self._names.key, config.api_key_env)
        self.model = model
        self._config = config
        self._role = role
        self._restart = restart
        self._backoff = backoff
        self._endpoints = [_Endpoint(url, key, self._names.urls, config.concurrency) for url in urls]
        self.urls = [endpoint.url for endpoint in self._endpoints]
        self._tries = tries
        self._policy = tenacity.AsyncRetrying(retry=tenacity.retry_if_exception_type(Passing), reraise=True)
        if tries is not None:  # else the endpoints have the pauses and the end of patience
            self._policy.stop = tenacity.stop_after_attempt(tries)
            self._policy.wait = self._pause_of
        self._lost_in_a_row: list[str] = []
        self._restarts_in_a_row = 0
        self._restarting = asyncio.Lock()
        self._changed = asyncio.Event()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"endpoints of the {role}", daemon=True)
        self._thread.start()

    def map(self, path: str, bodies: Iterable[dict[str, Any]]) -> Iterator[tuple[int, Answer]]:
        """Post each body, with the model's name, to `<url>/<path>`; yields (position, answer) as they finish.

        Bodies are taken as there is room for them, and may come late. Asking starts with the first `next`; what is left
        is cancelled when the iterator is closed or dropped. Raises UserError where an endpoint refuses a request,
        RunInterrupted where all are gone, and what `bodies` raises.
        """
        done: queue.SimpleQueue[tuple[int, Any] | None] = queue.SimpleQueue()
        work = self._map(path, bodies, lambda answer: answer, lambda *item: done.put(item))
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        future.add_done_callback(lambda _: done.put(None))
        try:
            while (item := done.get()) is not None:
                yield item
            future.result()
        finally:
            future.cancel()

    def post(self, path: str, body: dict[str, Any]) -> Answer:
        """The answer to one body. Raises like `map`."""
        return next(self.map(path, [body]))[1]

    def each(
        self,
        path: str,
        bodies: Iterable[dict[str, Any]],
        read: Callable[[Answer], T],
        put: Callable[[int, T | Lost], None],
    ) -> None:
        """Post each body like `map`; `put(position, what read makes of the answer)` is called as they finish.

        That is in the endpoints' thread, one at a time, before the next body is asked about. An answer for which `read`
        raises Passing is asked for again. Raises like `map`, and what `put` raises.
        """
        self._wait(self._map(path, bodies, read, put))

    def check(self) -> int | None:
        """Ask every endpoint what it serves. Returns the shortest context window that one states, in tokens.

        Raises Unreachable, and another UserError for an endpoint that refuses the key or does not serve the model. With
        `tries` what it serves is not looked at.
        """
        return self._wait(self._check())

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
            if "client" in vars(endpoint):
                await endpoint.client.close()

    async def _map(
        self,
        path: str,
        bodies: Iterable[dict[str, Any]],
        read: Callable[[Answer], T],
        put: Callable[[int, T | Lost], None],
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
                put(position, await self._answer(path, {**body, "model": self.model}, read))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._config.concurrency * len(self._endpoints)):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # one refusal or one end of patience; the rest was cancelled

    async def _answer(self, path: str, body: dict[str, Any], read: Callable[[Answer], T]) -> T | Lost:
        """What `read` makes of the answer, in as many tries as it takes or as there are."""
        lost = self._lost_in_a_row
        if len(lost) >= GIVE_UP_AFTER:
            return Lost(f"not asked any more: {len(lost)} requests in a row failed ({lost[-1]})")
        try:
            answer: T | Lost = await self._policy.copy()(self._turn, path, body, read)
        except WrongAnswer as error:
            answer = Lost(str(error))
        except Passing as error:
            lost.append(error.reason)
            return Lost(f"{error.reason} ({self._tries} tries)")
        lost.clear()
        return answer

    def _pause_of(self, state: Any) -> float:
        return pause_after(state.attempt_number, self._backoff, state.outcome.exception().pause)

    async def _turn(self, path: str, body: dict[str, Any], read: Callable[[Answer], T]) -> T:
        """One try, at the endpoint with the least to do."""
        endpoint = await self._free()
        started = self._loop.time()
        try:
            answer = read(await self._request(endpoint, path, body))
        except Passing as error:
            if self._tries is None:
                self._note_failure(endpoint, started, error)
                if error.refused and self._restart is not None:
                    await self._start_again(endpoint, started)
            raise
        else:
            endpoint.failures, endpoint.failing_since = 0, None
            self._restarts_in_a_row = 0
            return answer
        finally:
            endpoint.in_hand -= 1
            self._wake()

    async def _free(self) -> _Endpoint:
        """Take a place at the endpoint with the least to do. Waits for one; raises RunInterrupted."""
        most = self._config.concurrency
        while True:
            now = self._loop.time()
            ready = [e for e in self._endpoints if e.pause_until <= now and e.in_hand < (1 if e.failures else most)]
            if ready:
                endpoint = min(ready, key=lambda e: e.in_hand)
                endpoint.in_hand += 1
                return endpoint
            # Whoever is under way wakes the others; pauses and the end of patience pass by themselves.
            timeout = min((e.pause_until - now for e in self._endpoints if e.pause_until > now), default=None)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), timeout)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _note_failure(self, endpoint: _Endpoint, started: float, error: Passing) -> None:
        """Pause the endpoint. Raises RunInterrupted if all have been failing for too long."""
        now = self._loop.time()
        if endpoint.failing_since is None:
            endpoint.failing_since = now
        if started >= endpoint.failed_at:  # requests that were under way together fail together: one failure
            endpoint.failures += 1
            endpoint.failed_at = now
        endpoint.pause_until = now + pause_after(endpoint.failures, self._backoff, error.pause)
        failing = [e.failing_since for e in self._endpoints if e.failing_since is not None]
        if len(failing) < len(self._endpoints):
            return
        patience = max(failing) + self._config.max_wait
        endpoint.pause_until = min(endpoint.pause_until, max(now, patience))
        if now >= patience:
            raise RunInterrupted(
                f"{self._names.who} {endpoint.url} has not answered for {self._config.max_wait:g} s "
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

    async def _request(self, endpoint: _Endpoint, path: str, body: dict[str, Any]) -> Answer:
        """Raises Passing; UserError for a refusal, with `tries` WrongAnswer for one of this request alone."""
        response = await endpoint.client.ask(path, body, seconds=self._config.timeout, most_bytes=most_bytes(body))
        status = response.status_code
        if status in _PASSING or status >= 500:
            raise Passing(f"status {status}", detail(response), pause=retry_after(response))
        if status != HTTPStatus.OK:
            if self._tries is not None and status not in (*_KEY, *_ADDRESS):
                raise WrongAnswer(f"status {status}: {detail(response)}")
            raise await self._refusal(endpoint, response)
        answer = json_of(response)
        if not isinstance(answer, dict):
            raise Passing("the answer is no JSON object")
        if answer.get("error") and "choices" not in answer:
            raise Passing("the answer is an error", detail(response))
        return answer

    async def _refusal(self, endpoint: _Endpoint, response: httpx2.Response) -> UserError:
        """What a status that will not pass means, and the remedy."""
        status, names = response.status_code, self._names
        remedy = f"does it have vLLM's API? {self._role}.api=text asks for text alone"
        if status in _KEY:
            remedy = f"set {self._config.api_key_env}, or name another variable in {names.key}"
        elif status in _ADDRESS:
            remedy = f"is {endpoint.url} the right address ({names.urls}), and {self.model} its model ({names.model})?"
            served = models_of(json_of(await self._models(endpoint))) if status == HTTPStatus.NOT_FOUND else None
            if served and self.model not in dict(served):
                remedy = f"it {self._not_served(served)}"
        return UserError(f"{names.who} {endpoint.url} refuses: status {status}, {detail(response)}: {remedy}")

    def _not_served(self, served: Sequence[tuple[str, Any]]) -> str:
        others = listed([name for name, _ in served])
        return f"does not serve {self.model}, it serves {others}: set {self._names.model}"

    async def _check(self) -> int | None:
        windows = []
        for endpoint in self._endpoints:
            response = await self._models(endpoint)
            if self._tries is not None:
                continue
            who, status = f"{self._names.who} {endpoint.url}", response.status_code
            served = models_of(json_of(response)) if status == HTTPStatus.OK else None
            if served is None:
                raise UserError(f"{who} lists no models (status {status}): is it OpenAI-compatible? {self._names.urls}")
            if self.model not in dict(served):
                raise UserError(f"{who} {self._not_served(served)}")
            try:
                windows.append(window_of(dict(served)[self.model]))
            except ValueError as error:
                raise UserError(f"{who} states {error}: does it have vLLM's API?") from error
        return min((window for window in windows if window is not None), default=None)

    async def _models(self, endpoint: _Endpoint) -> httpx2.Response:
        """What GET /models gives, whatever that is. Raises Unreachable, and UserError for a key that is refused."""
        seconds = min(CHECK_TIMEOUT, self._config.timeout)
        try:
            response = await endpoint.client.ask("models", None, seconds=seconds, most_bytes=MODELS_BYTES)
        except Passing as error:
            who, urls = self._names.who, self._names.urls
            raise Unreachable(f"{who} {endpoint.url} cannot be reached ({error}): is it running? {urls}") from error
        if response.status_code in _KEY:
            raise await self._refusal(endpoint, response)
        return response


def pause_after(failures: int, backoff: float, asked: float | None) -> float:
    """Seconds before the next try. Spread by half, so that requests that failed together do not come back together."""
    grown = backoff * 2 ** (min(failures, 10) - 1) * random.uniform(0.75, 1.25)
    return min(LONGEST_PAUSE, grown if asked is None else asked)


class _Endpoint:
    """One address, and how it has been doing. Times are those of the event loop."""

    def __init__(self, url: str, key: str, example: str, concurrency: int) -> None:
        self.url = url.rstrip("/")
        try:
            host = httpx2.URL(self.url).host
        except httpx2.InvalidURL:
            host = ""
        if not host or not self.url.startswith(("http://", "https://")):
            raise UserError(f"{self.url} is no address: {example}")
        self.in_hand = 0
        self.failures = 0
        """In a row."""
        self.failed_at = 0.0
        self.failing_since: float | None = None
        self.pause_until = 0.0
        self.restarted_at = 0.0
        self._key = key
        self._concurrency = concurrency

    @cached_property
    def client(self) -> Client:
        from harness.serving.client import Client

        return Client(self.url, self._key, self._concurrency)
