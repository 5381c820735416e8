"""A fork of a warm server is what `python -m` starts, and outlives whoever may go before it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from harness.process.warm import LOST, WarmServer

SAID = """
import json, os, random, signal, sys, time
import loaded
print(json.dumps({
    "name": __name__, "argv": sys.argv[1:], "cwd": os.getcwd(), "home": os.environ.get("HOME"),
    "given": os.environ.get("GIVEN"), "kept": os.environ.get("KEPT"),
    "leads": os.getsid(0) == os.getpid() == os.getpgid(0),
    "stdin": sys.stdin.read(), "importer": loaded.PID, "parent": os.getppid(), "random": random.random(),
    "open": sorted(os.readlink(f"/proc/self/fd/{n}").partition(":")[0] for n in os.listdir("/proc/self/fd")
                   if os.path.exists(f"/proc/self/fd/{n}")),
}))
print("said", file=sys.stderr)
os.environ["KEPT"] = "no"
what = sys.argv[1]
if what.startswith("-"):
    os.kill(os.getpid(), -int(what))
if what == "sleep":
    time.sleep(60)
if what == "raise":
    1 / 0
if what == "late":
    import atexit
    atexit.register(print, "at the end")
sys.exit(int(what) if what.isdigit() else what)
"""

SERVER = """
import importlib, sys
from harness.process.warm import main
main(sys.argv[2], lambda: importlib.import_module(sys.argv[1]))
"""


def command(module):
    return [sys.executable, "-m", "server", module]


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "said.py").write_text(SAID)
    (folder / "loaded.py").write_text("import os\nPID = os.getpid()\n")
    (folder / "busy.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
    )
    (folder / "server.py").write_text(SERVER)
    return folder


@pytest.fixture
def environment(site):
    paths = os.pathsep.join([str(site), os.getcwd()])
    return {"PYTHONPATH": paths, "PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def server(environment):
    made = WarmServer(command("loaded"), environment)
    yield made
    made.close()


def start(server, environment, log, *words):
    with log.open("ab") as stream:
        return server.start(["said", *words], environment, stream)


def said(log):
    return json.loads(log.read_text().splitlines()[0])


def test_a_fork_is_the_module_with_what_it_is_given(server, environment, tmp_path):
    log, second = tmp_path / "log", tmp_path / "second"
    assert start(server, environment | {"GIVEN": "value"}, log, "0", "a b").wait() == 0
    assert start(server, environment, second, "0").wait() == 0
    fork, other = said(log), said(second)
    fresh = subprocess.run(
        [sys.executable, "-m", "said", "0", "a b"], env=environment | {"GIVEN": "value"}, stdin=subprocess.DEVNULL,
        capture_output=True, start_new_session=True, check=True,
    )  # fmt: skip
    expected = json.loads(fresh.stdout.splitlines()[0])
    for key in ("name", "argv", "cwd", "home", "given", "kept", "leads", "stdin"):
        assert fork[key] == expected[key], key
    assert log.read_text().splitlines()[1:] == ["said"]
    assert fork["importer"] == other["importer"] == fork["parent"], "each fork has imported for itself"
    assert fork["random"] != other["random"]
    assert "socket" not in fork["open"] and "pipe" not in fork["open"], "it holds what is the server's"
    assert (other["given"], other["argv"]) == (None, ["0"])


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("3", 3, "said"),
        ("-9", -9, "said"),
        ("-11", -11, "said"),
        ("in words", 1, "in words"),
        ("raise", 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_how_it_ends_is_said(server, environment, tmp_path, what, code, words):
    log = tmp_path / "log"
    assert start(server, environment, log, what).wait() == code
    assert log.read_text().splitlines()[-1] == words


def test_what_is_registered_for_the_end_is_done(server, environment, tmp_path):
    assert start(server, environment, tmp_path / "log", "late").wait() == 1
    assert "at the end" in (tmp_path / "log").read_text()


def test_several_run_at_once_and_a_signal_reaches_one(server, environment, tmp_path):
    first, second = (start(server, environment, tmp_path / name, "sleep") for name in "ab")
    assert (first.poll(), second.poll()) == (None, None)
    first.send_signal(signal.SIGTERM)
    assert (first.wait(), second.poll()) == (-signal.SIGTERM, None)
    second.send_signal(signal.SIGKILL)
    assert (second.wait(), first.returncode) == (-signal.SIGKILL, -signal.SIGTERM)


def gone(pid: int, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_forks_outlive_the_server_whose_end_is_seen(server, environment, tmp_path):
    fork = start(server, environment, tmp_path / "log", "sleep")
    server.close()
    assert psutil.Process(fork.pid).status() != psutil.STATUS_ZOMBIE
    assert fork.poll() is None
    assert start(server, environment, tmp_path / "log", "0") is None
    fork.send_signal(signal.SIGKILL)
    assert gone(fork.pid) and fork.poll() == LOST


def test_a_launcher_that_is_killed_leaves_its_forks_and_no_server(environment, tmp_path):
    code = f"""
import os, signal, sys
from harness.process.warm import WarmServer
environment = dict(os.environ)
server = WarmServer([sys.executable, "-m", "server", "loaded"], environment)
with open({str(tmp_path / "log")!r}, "ab") as log:
    fork = server.start(["said", "sleep"], environment, log)
print(fork.pid, server._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    fork, server = map(int, done.stdout.split())
    assert done.returncode == -signal.SIGKILL and gone(server)
    assert psutil.Process(fork).status() != psutil.STATUS_ZOMBIE
    os.kill(fork, signal.SIGKILL)


def test_a_launcher_that_is_interrupted_before_its_request_leaves_no_fork(server, environment, tmp_path, monkeypatch):
    seen = []

    def interrupted(self):
        seen.append(int(self._socket.recv(64)))
        raise KeyboardInterrupt

    monkeypatch.setattr(WarmServer, "_next_started", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(server, environment, tmp_path / "log", "0")
    assert gone(seen[0]) and (tmp_path / "log").read_text() == ""


def test_a_module_that_leaves_a_thread_is_not_forked(environment, tmp_path):
    """A lock that the thread holds would be held for ever in a fork."""
    server = WarmServer(command("busy"), environment)
    assert start(server, environment, tmp_path / "log", "0") is None
    server.close()


def test_a_module_that_cannot_be_imported_is_for_the_command_to_say(environment, tmp_path):
    server = WarmServer(command("absent"), environment)
    assert start(server, environment, tmp_path / "log", "0").wait() == 0
    server.close()
