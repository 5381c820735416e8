"""Who may write a run folder: one process at a time, on one machine or on several that share a disk.

On one machine `flock` on `<run>/.lock` decides. The kernel frees it however its holder ends, and no clock and no reused
process id can make a dead holder look alive. `flock` may not reach over a network file system, so the holder also keeps
`<run>/.lock.json` (machine, process, counter) and renews the counter. A holder on another machine counts as gone when
its counter has stood still for `STALE_SECONDS` of the observer's monotonic clock: clocks of machines are never
compared. Imports no torch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
import shutil
import threading
import time
import uuid
import weakref
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from harness.errors import UserError

LOCK, OWNER = ".lock", ".lock.json"
HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
SETTLE_SECONDS = 1.0
"""How long a claim over another machine's dead one stands before it counts, so that of two claims the later wins."""
UNSURE = (errno.ESTALE, errno.EIO)
"""A network file system that answers so does not know who holds the lock: somebody does."""
TRY_SECONDS = 1.0
"""How long a held lock is tried again: who only looks (`owner_of`) holds it for a moment."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """The content of `.lock.json`."""

    host: str
    machine: str
    """Identifies the running kernel, within which `flock` is right: names of hosts repeat."""
    pid: int
    token: str
    """Tells two owners apart that share machine and pid."""
    devices: str | None = None
    """CUDA_VISIBLE_DEVICES of the owner."""
    counter: int = 0
    seconds: float = 0.0
    """Since the lock was taken, by the owner's monotonic clock, at the last renewal."""
    phase: str = "running"
    """`starting` until a run has begun: models load, and nothing is written yet."""

    @property
    def here(self) -> bool:
        return self.machine == machine_id()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.pid else "another process"


_FIELDS = tuple(field.name for field in fields(Owner))
UNKNOWN = Owner(host="", machine="", pid=0, token="")
"""Holds the lock, and has not yet written who it is."""


class FolderInUse(UserError):
    """Another process writes this run folder."""

    exit_code = os.EX_TEMPFAIL

    def __init__(self, run_dir: Path, owner: Owner) -> None:
        super().__init__(
            f"{run_dir} is being written by {owner}: wait for it, stop it, or choose another study=NAME or outputs=DIR"
        )
        self.owner = owner


class RunLock:
    """The lock of a run folder, held from construction to `release`, to the end of the process, or until it is lost.

    Raises FolderInUse where another process, or another lock of this one, holds it, and UserError where the folder
    cannot be written. It takes `STALE_SECONDS` where a process of another machine, or from before a reboot, left its
    claim.
    Children do not hold it: the descriptor is closed in forks and in what is executed.
    """

    def __init__(self, run_dir: Path, *, phase: str = "running") -> None:
        self._path = run_dir / OWNER
        self._owner = Owner(
            host=platform.node(),
            machine=machine_id(),
            pid=os.getpid(),
            token=uuid.uuid4().hex,
            devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
            phase=phase,
        )
        self._beat = beat = _Heartbeat(self._path, self._owner)
        new = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
        descriptor, reaches = _take(run_dir)
        self._finalizer = weakref.finalize(self, _free, descriptor, beat, new)
        try:
            self._claim(run_dir, reaches)
        except OSError as error:
            self.release()
            raise _unwritable(run_dir, error) from error
        except BaseException:
            self.release()
            raise
        beat.start()

    def release(self) -> None:
        """Give the folder up, and remove it where it came with the lock and has nothing else. Once is enough."""
        self._finalizer()

    def enter(self, phase: str) -> None:
        """Say in `.lock.json` what the holder is at."""
        self._beat.enter(phase)

    def _claim(self, run_dir: Path, reaches: bool) -> None:
        """Write who holds the lock. `reaches`: `flock` answered, so a claim of this machine is a dead process's."""
        for aside in run_dir.glob(f"{OWNER}.*"):  # of a holder that was killed while it wrote
            aside.unlink(missing_ok=True)
        other = _read(self._path)
        if other is UNKNOWN:
            raise FolderInUse(run_dir, UNKNOWN)
        if other is None or (other.here and reaches):
            _write(self._path, self._owner)
            return
        logger.warning("%s was being written by %s: looking for %.0f s whether it lives", run_dir, other, STALE_SECONDS)
        watch = Watch(run_dir)
        while not watch.is_stale(other):
            time.sleep(min(HEARTBEAT_SECONDS, STALE_SECONDS / 4))
            now = _read(self._path)
            if now is None:
                break
            if (now.token, now.counter) != (other.token, other.counter):
                raise FolderInUse(run_dir, now)
        _write(self._path, self._owner)
        time.sleep(SETTLE_SECONDS)
        now = _read(self._path)
        if now is None or now.token != self._owner.token:
            raise FolderInUse(run_dir, now or UNKNOWN)


class Watch:
    """Looks at one run folder again and again, and so can tell a dead owner on another machine from a living one."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._seen: tuple[str, int] | None = None
        self._since = 0.0

    def owner(self) -> Owner | None:
        """The process that writes the folder; None where there is none, or none any more."""
        owner = owner_of(self._run_dir)
        return None if owner is None or self.is_stale(owner) else owner

    def is_stale(self, owner: Owner) -> bool:
        if owner is UNKNOWN or (owner.here and _is_held(self._run_dir)):
            return False
        if self._seen != (owner.token, owner.counter):
            self._seen, self._since = (owner.token, owner.counter), time.monotonic()
        return time.monotonic() - self._since >= STALE_SECONDS


def owner_of(run_dir: Path) -> Owner | None:
    """The process that writes a run folder at this moment; one look, so a claim of another machine is believed."""
    held = _is_held(run_dir)
    owner = _read(run_dir / OWNER)
    if held is None:  # no flock here: the claim is all there is
        return owner
    if held:
        return owner or UNKNOWN
    return None if owner is None or owner.here else owner


def clear(run_dir: Path) -> None:
    """Remove all that is in a run folder but its lock, which the caller holds."""
    for entry in run_dir.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name not in (LOCK, OWNER):
            entry.unlink()


def machine_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()


# --- the lock ---

_descriptors: set[int] = set()


def _close_in_child() -> None:
    """A forked worker that outlives its parent would keep the lock; closing its copy leaves the parent's alone."""
    while _descriptors:
        with contextlib.suppress(OSError):
            os.close(_descriptors.pop())


os.register_at_fork(after_in_child=_close_in_child)


def _take(run_dir: Path) -> tuple[int, bool]:
    """The descriptor of the locked file, and whether the file system has `flock` at all."""
    end = time.monotonic() + TRY_SECONDS
    while True:
        descriptor = _opened(run_dir, end)
        if descriptor is None:
            raise FolderInUse(run_dir, UNKNOWN)
        got = _flock(descriptor, fcntl.LOCK_EX)
        if got is not False and _is_at(descriptor, run_dir / LOCK):
            _descriptors.add(descriptor)
            return descriptor, got is not None
        os.close(descriptor)  # held, or its holder has removed it meanwhile
        if time.monotonic() >= end:
            raise FolderInUse(run_dir, _read(run_dir / OWNER) or UNKNOWN)
        time.sleep(TRY_SECONDS / 20)


def _opened(run_dir: Path, end: float) -> int | None:
    """None where the file system cannot say what is there."""
    while True:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            return os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError as error:  # another process has just given the empty folder up
            if time.monotonic() >= end:
                raise _unwritable(run_dir, error) from error
        except OSError as error:
            if error.errno not in UNSURE:
                raise _unwritable(run_dir, error) from error
            if time.monotonic() >= end:
                return None
            time.sleep(TRY_SECONDS / 20)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _is_held(run_dir: Path) -> bool | None:
    """Whether a process of this machine holds the lock; None where the file system has no `flock`."""
    try:
        descriptor = os.open(run_dir / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return error.errno in UNSURE
    try:
        got = _flock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)
    return None if got is None else not got


def _flock(descriptor: int, kind: int) -> bool | None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in UNSURE:
            return False
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return None
        raise
    return True


def _free(descriptor: int, beat: _Heartbeat, new: list[Path]) -> None:
    """No method of RunLock, so that one which nobody refers to any more is freed."""
    if descriptor in _descriptors:  # not in a fork: the lock and the claim are its parent's
        beat.stop()
        with contextlib.suppress(OSError):
            _remove_empty(new)
        _descriptors.discard(descriptor)
        os.close(descriptor)


def _remove_empty(new: list[Path]) -> None:
    """Remove the folders that came with the lock, innermost first, up to one that has more than the lock in it."""
    if not new or {entry.name for entry in new[0].iterdir()} != {LOCK}:
        return
    (new[0] / LOCK).unlink()  # while it is held
    for folder in new:
        folder.rmdir()


# --- the claim ---


class _Heartbeat:
    """Renews the claim; ends the process where another machine has claimed the folder as well."""

    def __init__(self, path: Path, owner: Owner) -> None:
        self._path, self._owner = path, owner
        self._started = time.monotonic()
        self._ended = threading.Event()
        self._writing = threading.Lock()

    def start(self) -> None:
        threading.Thread(target=self._run, name="run lock", daemon=True).start()

    def enter(self, phase: str) -> None:
        with self._writing:
            self._owner = replace(self._owner, phase=phase)
            self._renew()

    def stop(self) -> None:
        """Take the claim back."""
        self._ended.set()
        with self._writing, contextlib.suppress(OSError):
            now = _read(self._path)
            if now is not None and now.token == self._owner.token:
                self._path.unlink()

    def _run(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            with self._writing:
                if not self._ended.is_set():
                    self._renew()

    def _renew(self) -> None:
        now = _read(self._path)
        if now is not None and now is not UNKNOWN and now.token != self._owner.token:
            logger.critical("%s is being written by %s as well: this process leaves it", self._path.parent, now)
            os._exit(os.EX_TEMPFAIL)  # at once: nothing more may be written
        seconds = time.monotonic() - self._started
        self._owner = replace(self._owner, counter=self._owner.counter + 1, seconds=seconds)
        try:
            _write(self._path, self._owner)
        except OSError as error:  # a full disk: the run itself will say so
            logger.debug("%s could not be renewed: %s", self._path, error)


def _write(path: Path, owner: Owner) -> None:
    aside = path.with_name(f"{path.name}.{owner.token}")
    aside.write_text(json.dumps(asdict(owner)) + "\n", encoding="utf-8")
    aside.replace(path)


def _read(path: Path) -> Owner | None:
    """UNKNOWN where the file system cannot say. None where there is no claim, or one that a crash left half written."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return Owner(**{name: said[name] for name in _FIELDS if name in said})  # a later version may say more
    except OSError as error:
        return UNKNOWN if error.errno in UNSURE else None
    except (ValueError, TypeError):
        return None


def _unwritable(run_dir: Path, error: OSError) -> UserError:
    return UserError(f"{run_dir} cannot be written ({error.strerror}): choose another outputs=DIR")
