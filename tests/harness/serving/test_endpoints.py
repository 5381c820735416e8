from __future__ import annotations

import concurrent.futures
import contextlib
import gzip
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from harness.config.engines import ServerConfig
from harness.errors import RunInterrupted, UserError
from harness.serving import endpoints as module
from harness.serving.endpoints import Endpoints, pause_after
from tests.support.http_server import Fault, LoopbackServer
from tests.support.model_server import serve

BODIES = [{"prompt": [first, 120, 130], "max_tokens": 1, "return_token_ids": True} for first in range(105, 125)]


@pytest.fixture
def connect(stack):
    """`connect(urls)`: endpoints that try again soon, closed after the test."""

    def make(urls, *, name="tiny:teacher", restart=None, **config) -> Endpoints:
        config = {"max_wait": 20.0, "timeout": 20.0, "concurrency": 4} | config
        return stack.enter_context(
            closing(Endpoints(urls, name, ServerConfig(**config), restart=restart, backoff=0.02))
        )

    return make


class closing:
    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints = endpoints

    def __enter__(self) -> Endpoints:
        return self.endpoints

    def __exit__(self, *error: object) -> None:
        self.endpoints.close()


def nowhere() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


def prompts_of(answers) -> dict[int, int]:
    """The first prompt id that each position was answered for. Fails where a position came twice."""
    answers = list(answers)
    found = {position: answer["choices"][0]["prompt_token_ids"][0] for position, answer in answers}
    assert len(found) == len(answers)
    return found


def test_two_endpoints_share_the_load_and_everything_arrives_once(served_model, stack, connect):
    servers = [stack.enter_context(serve(served_model, plan=lambda number, body: Fault(delay=0.02))) for _ in range(2)]
    endpoints = connect([server.url for server in servers])
    assert prompts_of(endpoints.map("completions", BODIES)) == {i: i + 105 for i in range(20)}
    numbers = [len(server.requests) for server in servers]
    assert sum(numbers) == 20 and min(numbers) >= 5
    assert all(1 < server.busiest <= 4 for server in servers)
    assert all(body["model"] == "tiny:teacher" for server in servers for body in server.requests)


def test_a_request_goes_to_the_endpoint_with_the_least_to_do(served_model, stack, connect):
    servers = [stack.enter_context(serve(served_model, plan=lambda number, body: Fault(delay=0.5))) for _ in range(2)]
    list(connect([server.url for server in servers]).map("completions", BODIES[:4]))
    assert [len(server.requests) for server in servers] == [2, 2]


def test_an_answer_ends_what_a_failure_began(served_model, stack, connect):
    """The endpoint has all of its places again, and the time of its silence starts anew."""
    fails = {0, 2}
    server = stack.enter_context(
        serve(served_model, plan=lambda number, body: Fault(status=503) if number in fails else Fault(delay=0.1))
    )
    endpoints = connect([server.url], max_wait=0.4)
    endpoints.post("completions", BODIES[0])
    time.sleep(0.4)
    endpoints.post("completions", BODIES[0])
    server.busiest = 0
    list(endpoints.map("completions", BODIES[:8]))
    assert server.busiest > 1 and len(server.requests) == 12


def test_an_endpoint_that_dies_midway_loses_nothing(served_model, stack, connect):
    alive = stack.enter_context(serve(served_model))
    dying = stack.enter_context(
        serve(served_model, plan=lambda number, body: Fault(drop=True) if number >= 3 else None)
    )
    endpoints = connect([dying.url, alive.url])
    assert prompts_of(endpoints.map("completions", BODIES)) == {i: i + 105 for i in range(20)}
    assert len(dying.requests) > 3 and len(alive.requests) == 17


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=503),
        Fault(status=408),
        Fault(status=409),
        Fault(status=425),
        Fault(status=429, retry_after="0.01"),
        Fault(drop=True),
        Fault(body="<html>"),
        Fault(body="[1]"),
        Fault(delay=2.0),
    ],
    ids=["503", "408", "409", "425", "429", "drop", "no JSON", "no object", "timeout"],
)
def test_what_may_pass_is_tried_again(served_model, stack, connect, fault):
    server = stack.enter_context(serve(served_model, plan=lambda number, body: fault if number < 2 else None))
    answer = connect([server.url], timeout=0.5).post("completions", BODIES[0])
    assert answer["choices"][0]["prompt_token_ids"] == [105, 120, 130] and len(server.requests) == 3


def test_the_pause_that_an_endpoint_asks_for_is_kept(served_model, stack, connect):
    fault = Fault(status=429, retry_after="0.6")
    server = stack.enter_context(serve(served_model, plan=lambda number, body: fault if number == 0 else None))
    start = time.monotonic()
    connect([server.url]).post("completions", BODIES[0])
    assert time.monotonic() - start >= 0.6


def test_the_shortest_pause_is_waited_for(served_model, stack, connect):
    pauses = [Fault(status=429, retry_after=seconds) for seconds in ("8", "0.1")]
    plans = [lambda number, body, pause=pause: pause if number == 0 else None for pause in pauses]
    servers = [stack.enter_context(serve(served_model, plan=plan)) for plan in plans]
    start = time.monotonic()
    connect([server.url for server in servers]).post("completions", BODIES[0])
    assert time.monotonic() - start < 8 and [len(server.requests) for server in servers] == [1, 2]


def test_a_pause_that_an_endpoint_asks_for_does_not_outlast_patience(served_model, stack, connect):
    server = stack.enter_context(serve(served_model, plan=lambda number, body: Fault(status=429, retry_after="8")))
    start = time.monotonic()
    with pytest.raises(RunInterrupted, match=r"has not answered for 0\.3 s"):
        connect([server.url], max_wait=0.3).post("completions", BODIES[0])
    assert time.monotonic() - start < 8


def test_the_run_is_interrupted_when_all_have_been_silent_for_too_long(connect):
    urls = [nowhere(), nowhere()]
    endpoints = connect(urls, max_wait=0.4)
    start = time.monotonic()
    with pytest.raises(RunInterrupted, match=r"has not answered for 0\.4 s \(.*\): launch the same command again"):
        list(endpoints.map("completions", BODIES))
    assert 0.4 <= time.monotonic() - start < 10


def test_a_slow_answer_is_not_silence(served_model, stack, connect):
    """The endpoint needs longer than max_wait and has not failed: there is nothing to give up on."""
    server = stack.enter_context(serve(served_model, plan=lambda number, body: Fault(delay=0.6)))
    endpoints = connect([nowhere(), server.url], max_wait=0.1)
    for number in (1, 2):  # the other has been silent for longer than max_wait at the second
        endpoints.post("completions", BODIES[0])
        assert len(server.requests) == number


def test_patience_begins_when_the_last_endpoint_begins_to_fail(served_model, stack, connect):
    """One has been failing for longer than max_wait when the other fails for the first time."""
    fault = Fault(status=503, delay=1.3)
    server = stack.enter_context(serve(served_model, plan=lambda number, body: fault if number == 0 else None))
    assert connect([nowhere(), server.url], max_wait=1.0).post("completions", BODIES[0])["choices"]
    assert len(server.requests) == 2


def test_an_endpoint_that_fails_gets_one_request_until_it_answers(served_model, stack, connect):
    came: list[float] = []

    def plan(number: int, body: object) -> Fault:
        came.append(time.monotonic())
        return Fault(status=503, delay=0.5) if number < 4 else Fault(delay=0.3)

    server = stack.enter_context(serve(served_model, plan=plan))
    list(connect([server.url], max_wait=20.0).map("completions", BODIES[:6]))
    assert server.busiest == 4 and came[5] - came[4] >= 0.3


def test_a_dead_server_is_started_again_once_at_a_time(served_model, stack, connect):
    url = nowhere()
    active, calls = threading.Lock(), []

    def restart() -> None:
        assert active.acquire(blocking=False)
        time.sleep(0.3)
        calls.append(stack.enter_context(serve(served_model, int(url.split(":")[2].split("/")[0]))))
        active.release()

    endpoints = connect([url], restart=restart, max_wait=0.1)
    assert prompts_of(endpoints.map("completions", BODIES)) == {i: i + 105 for i in range(20)}
    assert len(calls) == 1


def test_the_time_of_a_restart_does_not_count(served_model, stack, connect):
    """It takes longer than max_wait, and the new server is busy at first."""
    url = nowhere()
    busy = lambda number, body: Fault(status=503) if number == 0 else None  # noqa: E731

    def restart() -> None:
        time.sleep(0.4)
        stack.enter_context(serve(served_model, int(url.split(":")[2].split("/")[0]), busy))

    assert connect([url], restart=restart, max_wait=0.3).post("completions", BODIES[0])["choices"]


def test_a_server_that_is_busy_is_not_started_again(served_model, stack, connect):
    calls: list[int] = []
    server = stack.enter_context(
        serve(served_model, plan=lambda number, body: Fault(status=503) if not number else None)
    )
    connect([server.url], restart=lambda: calls.append(1)).post("completions", BODIES[0])
    assert calls == [] and len(server.requests) == 2


def test_a_server_that_always_dies_is_not_started_for_ever(connect):
    calls: list[int] = []
    endpoints = connect([nowhere()], restart=lambda: calls.append(1))
    with pytest.raises(RunInterrupted, match="was started 3 times and died each time"):
        endpoints.post("completions", BODIES[0])
    assert len(calls) == 3


def test_an_answer_forgives_a_restart(served_model, connect, monkeypatch):
    monkeypatch.setattr(module, "MAX_RESTARTS", 1)
    url, calls = nowhere(), []

    def restart() -> None:
        calls.append(current.enter_context(serve(served_model, int(url.split(":")[2].split("/")[0]), once)))

    once = lambda number, body: Fault(drop=True) if number else None  # noqa: E731
    endpoints = connect([url], restart=restart)
    for _ in range(2):
        with contextlib.ExitStack() as current:
            assert endpoints.post("completions", BODIES[0])["choices"]
    assert len(calls) == 2


def test_a_restart_that_fails_ends_what_is_asked(connect):
    def restart() -> None:
        raise UserError("no memory")

    with pytest.raises(UserError, match="no memory"):
        list(connect([nowhere()], restart=restart).map("completions", BODIES))


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"refuses: status 401, told to fail: set OPENAI_API_KEY"),
        (403, r"status 403.*server\.api_key_env"),
        (404, r"status 404, told to fail: is http://127\.0\.0\.1:\d+/v1 the right address"),
        (307, r"status 307, told to fail: is http://127\.0\.0\.1:\d+/v1 the right address \(teacher\.urls="),
        (405, r"status 405, told to fail: is http://127\.0\.0\.1:\d+/v1 the right address"),
        (400, r"status 400, told to fail: does it have vLLM's API\? teacher\.api=text"),
        (422, r"status 422, told to fail: does it have vLLM's API\?"),
        (204, r"status 204, .*: does it have vLLM's API\?"),
    ],
)
def test_a_refusal_ends_everything_at_once(served_model, stack, connect, status, message):
    server = stack.enter_context(serve(served_model, plan=lambda number, body: Fault(status=status)))
    with pytest.raises(UserError, match=message) as error:
        list(connect([server.url]).map("completions", BODIES))
    assert "\n" not in str(error.value) and not isinstance(error.value, RunInterrupted)
    assert len(server.requests) <= 4


def test_another_model_is_named(served_model, stack, connect):
    server = stack.enter_context(serve(served_model))
    message = r"does not serve big, it serves tiny:teacher: set teacher\.served_name"
    with pytest.raises(UserError, match=message):
        connect([server.url], name="big").check()
    with pytest.raises(UserError, match=message):
        connect([server.url], name="big").post("completions", BODIES[0])


def test_check_returns_the_window_and_finds_who_is_missing(served_model, stack, connect):
    server = stack.enter_context(serve(served_model))
    window = served_model.plain.context_window
    assert connect([server.url + "/"]).check() == window
    short, silent = (stack.enter_context(serve(served_model)) for _ in range(2))
    short.models[0]["max_model_len"] = window - 1
    del silent.models[0]["max_model_len"]
    assert connect([server.url, short.url, silent.url]).check() == window - 1
    with pytest.raises(UserError, match=r"cannot be reached \(.+\): is it running\?"):
        connect([server.url, nowhere()]).check()


def test_no_address(connect):
    with pytest.raises(UserError, match=r"teacher\.urls=\[http"):
        connect([])


def test_the_key_comes_from_the_environment(monkeypatch, served_model, stack, connect):
    monkeypatch.setenv("MY_KEY", "secret")
    server = stack.enter_context(serve(served_model))
    connect([server.url], api_key_env="MY_KEY").post("completions", BODIES[0])
    assert server.keys == ["Bearer secret"]


def test_pauses_grow_and_are_bounded():
    for failures, middle in enumerate([1, 2, 4, 8], start=1):
        assert 0.75 * middle <= pause_after(failures, 1.0, None) <= 1.25 * middle
    assert pause_after(31, 1.0, None) == 60.0
    assert pause_after(1, 1.0, 3600.0) == 60.0
    assert pause_after(5, 1.0, 0.0) == 0.0
    assert len({pause_after(1, 1.0, None) for _ in range(9)}) > 1


def test_dropping_the_iterator_cancels_what_is_left(served_model, stack, connect):
    server: LoopbackServer = stack.enter_context(serve(served_model, plan=lambda number, body: Fault(delay=0.1)))
    endpoints = connect([server.url], concurrency=1)
    answers = endpoints.map("completions", BODIES)
    next(answers)
    answers.close()
    time.sleep(0.5)
    assert len(server.requests) <= 3
    assert endpoints.post("completions", BODIES[0])["choices"]


def test_close_ends_those_who_wait(served_model, stack, connect):
    server = stack.enter_context(serve(served_model, plan=lambda number, body: Fault(delay=1.0)))
    endpoints = connect([server.url])
    threading.Timer(0.2, endpoints.close).start()
    start = time.monotonic()
    with pytest.raises(concurrent.futures.CancelledError):
        list(endpoints.map("completions", BODIES))
    assert time.monotonic() - start < 1.0


@contextmanager
def raw_server(*parts: bytes, endless: bytes = b"") -> Iterator[tuple[str, list[int]]]:
    """Answers a GET with its models, and every other request with these bytes, then with `endless` ones until nobody
    reads them any more. How many bytes it got rid of is in the list."""
    sent = [0]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with contextlib.suppress(OSError):
                for part in parts:
                    self.wfile.write(part)
                while endless:
                    self.wfile.write(endless)
                    sent[0] += len(endless)

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1", sent
        server.shutdown()


def answer_with(content: bytes, *headers: bytes) -> bytes:
    lines = [b"HTTP/1.0 200 OK", b"Content-Type: application/json", *headers, b"Content-Length: %d" % len(content)]
    return b"\r\n".join([*lines, b"", content])


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ZEROS = gzip.compress(bytes(64 << 20))
ENDLESS = {
    "never-ending": (CHUNKED, b"%x\r\n%s\r\n" % (1 << 16, b" " * (1 << 16)), "the answer has more than 1.0 MiB"),
    "no length": (b"HTTP/1.0 200 OK\r\n\r\n", b"[" * (1 << 16), "the answer has more than 1.0 MiB"),
    "packed": (answer_with(ZEROS, b"Content-Encoding: gzip"), b"", "the answer is packed"),
    "packed twice": (answer_with(ZEROS, b"Content-Encoding: gzip, gzip"), b"", "the answer is packed"),
    "nested lists": (answer_with(b"[" * 300_000), b"", "the answer is no JSON object"),
    "nested records": (answer_with(b'{"a":' * 200_000), b"", "the answer is no JSON object"),
    "digits": (answer_with(b"9" * 100_000), b"", "the answer is no JSON object"),
    "bytes": (answer_with(b'{"choices":"\xff\xfe"}'), b"", "the answer is no JSON object"),
    "headers": (b"HTTP/1.0 200 OK\r\n", b"X: %s\r\n" % (b"a" * 9000), "has not answered"),
    "status": (b"HTTP/1.0 503 x\r\n\r\n", b"x" * (1 << 16), "the answer has more than 1.0 MiB"),
}


@pytest.mark.parametrize("how", ENDLESS)
def test_an_answer_without_end_costs_little_and_is_a_failure(connect, how):
    first, endless, says = ENDLESS[how]
    with raw_server(first, endless=endless) as (url, sent):
        endpoints = connect([url], max_wait=0.05, timeout=10.0)
        with pytest.raises(RunInterrupted, match=says):
            endpoints.post("completions", BODIES[0])
        assert sent[0] < 24 << 20  # what the sockets of both sides hold in a few tries


@pytest.mark.parametrize("window", [-5, 0, "big", 1.5, True, [1]])
def test_a_window_that_is_no_number_of_tokens_is_refused(served_model, stack, connect, window):
    server = stack.enter_context(serve(served_model))
    server.models[0]["max_model_len"] = window
    with pytest.raises(UserError, match="states a context window of"):
        connect([server.url]).check()


def test_the_list_of_models_may_hold_anything(served_model, stack, connect):
    server = stack.enter_context(serve(served_model))
    server.models += ["x", None, {"name": "y"}, *({"id": f"m{i}" + "x" * 500} for i in range(1000))]
    assert connect([server.url]).check() == served_model.plain.context_window
    with pytest.raises(UserError, match=r"it serves tiny:teacher, m0x+, .* and 991 more: set teacher") as error:
        connect([server.url], name="other").check()
    assert len(str(error.value)) < 2000
    for body in (b"[" * 300_000, b"{}", b'{"data": 3}', b"<html>"):
        with raw_server(answer_with(body)) as (url, _), pytest.raises(UserError, match="lists no models"):
            connect([url]).check()
