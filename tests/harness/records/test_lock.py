"""One process at a time writes a run folder, whatever the clocks say and however a process ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from harness.config.compose import compose
from harness.config.schema import from_hydra
from harness.errors import UserError
from harness.records import lock
from harness.records.folder import RunFolder
from harness.records.lock import LOCK, OWNER, FolderInUse, Owner, RunLock, Watch, clear, owner_of

FOREIGN = Owner(host="far", machine="another kernel", pid=7, token="t")

HOLDER = """
import os, subprocess, sys, time
from pathlib import Path
from harness.records.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
children = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True).pid]
up, is_up = os.pipe()
forked = os.fork()
if not forked:
    os.write(is_up, b"1")
    time.sleep(60)
    os._exit(0)
os.read(up, 1)  # the fork has begun to run
print(*children, forked, flush=True)
time.sleep(60)
"""


@pytest.fixture
def short(monkeypatch):
    """Seconds of real waiting instead of minutes."""
    monkeypatch.setattr(lock, "TRY_SECONDS", 0.1)
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.6)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.1)


def write(folder: Path, owner: Owner) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOCK).touch()
    (folder / OWNER).write_text(json.dumps(asdict(owner)))


def test_a_held_folder_is_refused_in_one_line_and_free_after_its_release(tmp_path, short):
    first = RunLock(tmp_path / "run")
    with pytest.raises(FolderInUse) as caught:
        RunLock(tmp_path / "run")
    assert str(caught.value) == (
        f"{tmp_path}/run is being written by process {os.getpid()} on {os.uname().nodename}: "
        "wait for it, stop it, or choose another study=NAME or outputs=DIR"
    )
    assert caught.value.exit_code == 75
    first.release()
    first.release()
    assert owner_of(tmp_path / "run") is None and list(tmp_path.iterdir()) == []  # the folder came with the lock
    RunLock(tmp_path / "run").release()


def test_looking_does_not_get_in_the_way_of_taking(tmp_path):
    """Who looks holds a shared lock for a moment, here for a long one."""
    (tmp_path / LOCK).touch()
    with (tmp_path / LOCK).open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        timer = threading.Timer(0.4, fcntl.flock, [file, fcntl.LOCK_UN])
        timer.start()
        RunLock(tmp_path).release()
        timer.join()


def test_a_holder_on_this_machine_is_alive_though_its_counter_stands_still(tmp_path, short, monkeypatch):
    """It may be stopped, or its thread starved."""
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 60)
    held, watch, end = RunLock(tmp_path), Watch(tmp_path), time.monotonic() + 1
    while time.monotonic() < end:
        assert watch.owner() is not None
        time.sleep(0.05)
    held.release()
    assert watch.owner() is None


def test_a_killed_holder_frees_it_at_once_though_its_children_live(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    children = [int(word) for word in holder.stdout.readline().split()]
    try:
        owner = owner_of(tmp_path)
        assert owner is not None and owner.pid == holder.pid and owner.here
        holder.kill()
        holder.wait()
        assert len(children) == 2 and all(Path(f"/proc/{pid}").exists() for pid in children)
        assert (tmp_path / OWNER).exists() and owner_of(tmp_path) is None
        start = time.monotonic()
        RunLock(tmp_path).release()
        assert time.monotonic() - start < 1
    finally:
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_an_unreferenced_lock_is_freed_and_a_fork_frees_nothing(tmp_path):
    held = RunLock(tmp_path)
    child = os.fork()
    if not child:
        held.release()  # the parent's lock, and its claim
        os._exit(0)
    os.waitpid(child, 0)
    assert owner_of(tmp_path) is not None and (tmp_path / OWNER).exists()
    del held
    assert owner_of(tmp_path) is None


@pytest.mark.parametrize("jump", [-10 * 365 * 86_400, 10 * 365 * 86_400])
def test_clocks_and_reused_process_ids_decide_nothing(tmp_path, jump):
    """Files that seem to be from another decade; and a dead holder whose process id is that of a living process."""
    held = RunLock(tmp_path / "live")
    write(tmp_path / "dead", replace(FOREIGN, machine=lock.machine_id(), pid=os.getpid()))
    for file in (*(tmp_path / "live").iterdir(), *(tmp_path / "dead").iterdir()):
        os.utime(file, (time.time() + jump, time.time() + jump))
    assert owner_of(tmp_path / "live") is not None and Watch(tmp_path / "live").owner() is not None
    assert owner_of(tmp_path / "dead") is None and Watch(tmp_path / "dead").owner() is None
    held.release()


def test_a_holder_on_another_machine_is_gone_when_its_counter_stands_still(tmp_path, short):
    write(tmp_path, FOREIGN)
    assert owner_of(tmp_path) == FOREIGN  # at first sight it is believed
    watch, start = Watch(tmp_path), time.monotonic()
    while watch.owner() is not None:
        time.sleep(0.02)
    assert 0.6 <= time.monotonic() - start < 3
    start = time.monotonic()
    taken = RunLock(tmp_path)  # looks for itself
    assert time.monotonic() - start >= 0.6
    owner = owner_of(tmp_path)
    assert owner is not None and owner.pid == os.getpid()
    taken.release()


def test_a_holder_on_another_machine_that_counts_is_alive(tmp_path, short):
    write(tmp_path, FOREIGN)
    stop = threading.Event()

    def count() -> None:
        counter = 0
        while not stop.wait(0.1):
            counter += 1
            aside = tmp_path / "aside"
            aside.write_text(json.dumps(asdict(replace(FOREIGN, counter=counter))))
            aside.replace(tmp_path / OWNER)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        watch, end = Watch(tmp_path), time.monotonic() + 1.5
        while time.monotonic() < end:
            owner = watch.owner()
            assert owner is not None and owner.token == "t"
            time.sleep(0.05)
        with pytest.raises(FolderInUse, match="process 7 on far"):
            RunLock(tmp_path)
    finally:
        stop.set()
        thread.join()
    assert not lock._is_held(tmp_path)  # what it had taken before it saw is given back


def test_without_flock_the_claim_decides(tmp_path, short, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    held = RunLock(tmp_path)
    with pytest.raises(FolderInUse):
        RunLock(tmp_path)
    held.release()
    RunLock(tmp_path).release()


def test_the_heartbeat_counts_and_a_lost_folder_ends_the_process(tmp_path):
    """A process that stood still for so long that another machine went on must not write any more."""
    code = (
        "import sys, time; from pathlib import Path; from harness.records import lock\n"
        "lock.HEARTBEAT_SECONDS = 0.05\n"
        "held = lock.RunLock(Path(sys.argv[1])); print(flush=True); time.sleep(30)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    end = time.monotonic() + 10
    while (owner := owner_of(tmp_path)) is None or owner.counter < 3:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert owner.seconds > 0.1
    aside = tmp_path / "aside"
    aside.write_text(json.dumps(asdict(FOREIGN)))
    aside.replace(tmp_path / OWNER)
    assert process.wait(timeout=10) == 75
    assert json.loads((tmp_path / OWNER).read_text())["token"] == "t"


def test_what_a_crash_left_half_written_is_no_owner(tmp_path):
    (tmp_path / LOCK).touch()
    (tmp_path / OWNER).write_text('{"host": "h')
    (tmp_path / f"{OWNER}.0123").touch()
    assert owner_of(tmp_path) is None
    RunLock(tmp_path).release()
    assert [file.name for file in tmp_path.iterdir()] == [LOCK]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/run cannot be written \(Not a directory\): choose another outputs=DIR"):
        RunLock(tmp_path / "file" / "run")


def test_clear_removes_all_but_the_lock(tmp_path):
    held = RunLock(tmp_path)
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "x").touch()
    (tmp_path / "run.json").touch()
    (tmp_path / "link").symlink_to("/tmp")
    clear(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {LOCK, OWNER}
    assert owner_of(tmp_path) is not None and Path("/tmp").is_dir()
    held.release()


def test_two_runs_in_one_folder_nothing_is_overwritten(tmp_path, short):
    config = from_hydra(compose(["student=tiny_xs", "steps=5"]))
    folder = RunFolder(tmp_path / "run", config)
    before = {file: file.read_bytes() for file in folder.path.rglob("*") if file.is_file() and file.name != OWNER}
    with pytest.raises(FolderInUse):
        RunFolder(folder.path, from_hydra(compose(["student=tiny_xs", "steps=7"])))
    assert {file: file.read_bytes() for file in before} == before
    folder.close()


def test_a_run_that_is_done_keeps_its_files(tmp_path):
    config = from_hydra(compose(["student=tiny_xs", "steps=5"]))
    with contextlib.closing(RunFolder(tmp_path / "run", config)) as folder:
        folder.start(label="zppo", overrides=[], num_steps=5)
        folder.finish("done")
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.path.iterdir() if file.is_file()}
    again = from_hydra(compose(["student=tiny_xs", "steps=5", "num_threads=3"]))  # does not change results
    with contextlib.closing(RunFolder(tmp_path / "run", again)) as folder:
        assert folder.is_done(5)
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in before} == before


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
@pytest.mark.parametrize("where", ["open", "flock"])
def test_a_file_system_that_cannot_say_means_somebody_holds_it(tmp_path, short, monkeypatch, number, where):
    """As a server of NFS answers that was restarted: nothing may be written, and nobody's claim is stale."""
    RunLock(tmp_path).release()
    (tmp_path / "run.json").write_text("{}")

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.os if where == "open" else lock.fcntl, where, fail)
    assert owner_of(tmp_path) is lock.UNKNOWN
    with pytest.raises(FolderInUse, match="is being written by another process"):
        RunLock(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {LOCK, "run.json"}
