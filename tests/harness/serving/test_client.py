"""What goes over the wire: headers, proxies, nothing of the SDK's own; and answers that it would stumble over."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psutil
import pytest

from harness.config.engines import ServerConfig
from harness.config.evaluation import JudgeConfig
from harness.errors import RunInterrupted, UserError
from harness.rewards.judge.client import JudgeClient, JudgeFailure, JudgeGone
from harness.serving.endpoints import Endpoints
from tests.layers import ROOT

ASK = [{"role": "user", "content": "?"}]
REPLY = json.dumps({"choices": [{"message": {"content": "yes"}}]}).encode()
MODELS = b'{"data": [{"id": "m"}]}'
Seen = list[tuple[str, str, dict[str, str], Any]]


@contextmanager
def recorder(status: int = 200, body: bytes = REPLY, models_status: int = 200) -> Iterator[tuple[str, Seen]]:
    """An endpoint that notes method, target, header and body of each request. As a proxy it answers by itself."""
    seen: Seen = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(models_status, MODELS)

        def do_POST(self) -> None:
            self.answer(status, body)

        def answer(self, status: int, content: bytes) -> None:
            asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append(
                (
                    self.command,
                    self.path,
                    {name.title(): value for name, value in self.headers.items()},
                    json.loads(asked or "null"),
                )
            )
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
        server.shutdown()


def judge(url: str, **config: Any) -> JudgeClient:
    return JudgeClient(JudgeConfig(**{"url": url, "model": "m", "retries": 0, **config}), backoff=0.01)


NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def foreign_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the SDK reads of the environment, and some of it cannot even be sent."""
    headers = "X-Foreign: 1\nAuthorization: Bearer foreign\nHost: foreign\nX-Umlaut: \u00fc"
    for name, value in {
        "API_KEY": "foreign", "ADMIN_KEY": "foreign", "ORG_ID": "f\u00f6reign", "PROJECT_ID": "foreign",
        "BASE_URL": NOBODY, "WEBHOOK_SECRET": "foreign", "CUSTOM_HEADERS": headers, "API_TYPE": "azure",
        "API_VERSION": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"OPENAI_{name}", value)
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", NOBODY)
    monkeypatch.delenv("MY_KEY", raising=False)


@pytest.mark.parametrize("key", [None, "secret"])
def test_a_request_has_no_header_beyond_need(
    foreign_settings: None, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    if key:
        monkeypatch.setenv("MY_KEY", key)
    with recorder() as (url, seen):
        assert judge(url, api_key_env="MY_KEY").ask([ASK]) == ["yes"]
        with closing(Endpoints([url], "m", ServerConfig(api_key_env="MY_KEY"))) as endpoints:
            assert endpoints.check() is None
            assert endpoints.post("completions", {"prompt": [1]}) == json.loads(REPLY)
    posts = ["/v1/chat/completions", "/v1/completions"]
    assert [(method, path) for method, path, _, _ in seen] == [
        pair for path in posts for pair in (("GET", "/v1/models"), ("POST", path))
    ]
    for method, _, headers, _ in seen:
        client = {name: headers.pop(name) for name in ("Accept", "User-Agent")}
        assert client["Accept"] == "*/*" and "openai" not in client["User-Agent"].lower()
        if method == "POST":
            assert int(headers.pop("Content-Length")) > 0 and headers.pop("Content-Type") == "application/json"
        expected = {"Host": url.split("/")[2], "Accept-Encoding": "identity", "Connection": "keep-alive"}
        assert headers == expected | ({"Authorization": f"Bearer {key}"} if key else {})


def test_a_proxy_is_asked_for_others_and_never_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy", "http_proxy", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with recorder() as (proxy, seen):
        monkeypatch.setenv("HTTP_PROXY", proxy.removesuffix("/v1"))
        assert judge("http://judge.invalid/v1").ask([ASK]) == ["yes"]
        assert [path for _, path, _, _ in seen] == [
            "http://judge.invalid/v1/models", "http://judge.invalid/v1/chat/completions",
        ]  # fmt: skip
    monkeypatch.setenv("HTTP_PROXY", NOBODY)
    with recorder() as (url, _):
        for address in (url, url.replace("127.0.0.1", "localhost")):
            assert judge(address).ask([ASK]) == ["yes"]


def test_half_of_a_surrogate_pair_and_numbers_go_out_as_they_are() -> None:
    content = "\ud83d \u00fc \x00"
    with recorder() as (url, seen):
        messages = [{"role": "user", "content": content}]
        assert judge(url, extra_body={"seed": 2**63, "bias": 1e-9}).ask([messages]) == ["yes"]
    body = seen[-1][3]
    assert body["messages"][0]["content"] == content and (body["seed"], body["bias"]) == (2**63, 1e-9)


def test_what_was_asked_is_hung_up_on() -> None:
    with recorder() as (url, _):
        client = judge(url)
        assert client.ask([ASK]) == client.ask([ASK]) == ["yes"]
        ports = [c.raddr.port for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_ESTABLISHED]
        assert int(url.split(":")[2].removesuffix("/v1")) not in ports


DEEP = b'{"error": ' + b'{"param": ' * 100_000
ODD = (
    DEEP, b"\xff\xfe\x00", b"[" * 300_000, b"9" * 50_000, b"null", b"",
    b'{"error": {"message": {"a": [NaN]}, "code": [1], "type": {}, "param": []}}', b'{"error": "no\\r\\nroom"}',
)  # fmt: skip


@pytest.mark.parametrize("status", [400, 418, 503])
def test_an_error_of_any_form_is_a_line(status: int) -> None:
    for body in ODD:
        with recorder(status, body) as (url, _):
            (reply,) = judge(url).ask([ASK])
            assert isinstance(reply, JudgeFailure) and reply.reason.startswith(f"status {status}")
            config = ServerConfig(max_wait=0.01)
            with closing(Endpoints([url], "m", config, backoff=0.01)) as endpoints, pytest.raises(UserError) as caught:
                endpoints.post("completions", {})
        assert isinstance(caught.value, RunInterrupted) == (status == 503)
        for text in (reply.reason, str(caught.value)):
            assert f"status {status}" in text and "\n" not in text and len(text) < 600


def test_the_key_is_not_in_what_is_said_about_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-planted")
    for status in (400, 401, 503):
        with recorder(status, b'{"error": {"message": "wrong key sk-planted"}}') as (url, _):
            endpoints = Endpoints([url], "m", ServerConfig(max_wait=0.01, api_key_env="MY_KEY"))
            with closing(endpoints), pytest.raises(UserError, match=r"wrong key \*\*\*") as caught:
                endpoints.post("completions", {})
        chain: BaseException | None = caught.value
        while chain is not None:
            assert "sk-planted" not in f"{chain} {chain!r}"
            chain = chain.__cause__ or chain.__context__


def test_a_judge_need_not_list_its_models_and_an_engine_has_to() -> None:
    with recorder(models_status=404) as (url, _):
        assert judge(url).ask([ASK]) == ["yes"]
        endpoints = Endpoints([url], "m", ServerConfig())
        with closing(endpoints), pytest.raises(UserError, match=r"no models \(status 404\).*teacher\.urls"):
            endpoints.check()
    with (
        recorder(404, models_status=404) as (url, _),
        pytest.raises(UserError, match=r"eval\.judge\.url.*judge\.model"),
    ):
        judge(url).ask([ASK])


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_refused_is_said_before_anything_is_asked(status: int) -> None:
    with recorder(models_status=status) as (url, seen):
        endpoints = Endpoints([url], "m", ServerConfig())
        for ask, option in ((lambda: judge(url).ask([ASK]), r"eval\.judge"), (endpoints.check, "server")):
            message = rf"{url} refuses: status {status}, .*: set OPENAI_API_KEY, or .* {option}\.api_key_env"
            with pytest.raises(UserError, match=message) as caught:
                ask()
            assert not isinstance(caught.value, JudgeGone)
        endpoints.close()
    assert {method for method, *_ in seen} == {"GET"}


SCRIPT = """
import logging, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
from harness.config.engines import ServerConfig
from harness.rewards.judge.client import JudgeClient
from harness.serving.endpoints import Endpoints
endpoints = Endpoints([sys.argv[1]], "m", ServerConfig())
assert not {"openai", "torch", "transformers"} & sys.modules.keys()
assert endpoints.post("completions", {})["choices"]
assert "openai" in sys.modules
endpoints.close()
"""


def test_the_sdk_is_imported_at_the_first_request_and_writes_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_LOG", "debug")
    with recorder() as (url, _):
        run = [sys.executable, "-c", SCRIPT, url]
        done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "DEBUG:openai" not in done.stdout and "INFO:openai" not in done.stdout


def test_the_query_of_an_address_is_asked_with_every_path() -> None:
    """Gateways have their version there."""
    with recorder() as (url, seen):
        assert JudgeClient(JudgeConfig(url=f"{url}?api-version=5", retries=0)).ask([ASK]) == ["yes"]
    assert [target for _, target, _, _ in seen] == [
        f"/v1/{path}?api-version=5" for path in ("models", "chat/completions")
    ]
