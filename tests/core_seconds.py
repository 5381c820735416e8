"""Core-seconds of the tests, with all processes that they start: measured, printed and held to a bound.

Seconds on the clock say how busy the machine is; core-seconds (user and system time) say what a test costs.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

TICKS = os.sysconf("SC_CLK_TCK")
REFERENCE = 0.079
"""Core-seconds of `calibration` where the bounds were measured."""
NUM_DEAREST = 30
ROOM = 1.25
"""Sessions of one suite on one machine differ by as much, in ways that the fixed computation does not show."""


@dataclass(frozen=True)
class Process:
    """A row of `/proc/PID/stat`."""

    start: str
    """Tells it from a later process of the same number."""
    own: int
    """Ticks of its own, in user and system time."""
    waited: int
    """Ticks of the children that it has waited for, and of theirs."""


@dataclass
class Family:
    """This process and all below it: what they used.

    The kernel may leave a child out of a list that changes while it is read: one that was seen is looked up by number.
    A process that outlives its parent is counted until it ends, if it was seen with its parent. Other time of daemons,
    and of children that nobody waits for, is missing from the sum: no test is given what it did not spend.
    """

    seen: dict[str, Process] = field(default_factory=dict)

    def used(self) -> float:
        """Core-seconds of all so far, dead or alive."""
        now = _tree(str(os.getpid()))
        for pid, before in self.seen.items():
            if pid not in now and (process := _process(pid)) is not None and process.start == before.start:
                now |= _tree(pid)
        self.seen = now
        return sum(process.own + process.waited for process in now.values()) / TICKS


def _tree(pid: str) -> dict[str, Process]:
    """A process and those below it. It is read again where a child was waited for meanwhile: that one is in no list."""
    found: dict[str, Process] = {}
    for _ in range(3):
        if (process := _process(pid)) is None:
            break
        found = {pid: process}
        for child in _children(pid):
            found |= _tree(child)
        after = _process(pid)
        if after is None or after.waited == process.waited:
            break
    return found


def _process(pid: str) -> Process | None:
    """None where it has ended, or the system is another than Linux."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    user, system, waited_user, waited_system = map(int, words[11:15])
    return Process(words[19], user + system, waited_user + waited_system)


def _children(pid: str) -> list[str]:
    try:
        return [child for task in Path(f"/proc/{pid}/task").iterdir() for child in _words(task / "children")]
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return path.read_text().split()


def calibration() -> float:
    """Core-seconds of a fixed computation, the least of three: the pace of this machine."""

    def once() -> float:
        started = time.process_time()
        table: dict[str, int] = {}
        for i in range(200_000):
            table[str(i % 5000)] = table.get(str(i // 7 % 5000), 0) ^ i
        return time.process_time() - started

    return min(once() for _ in range(3))


@dataclass
class Meter:
    """What one pytest process used; the controller of xdist adds up those of its workers."""

    suite_bound: float | None
    test_bound: float | None
    pace: float
    """How many times slower than the reference, at the start or at the end: bounds are multiplied by it."""
    tests: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Core-seconds and seconds on the clock, by test."""
    collections: list[float] = field(default_factory=list)
    """Core-seconds until the tests are known, a process."""
    total: float = 0.0
    family: Family = field(default_factory=Family)
    before: float = 0.0
    """Core-seconds when the last test ended."""
    faults: list[str] = field(default_factory=list)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        started = time.monotonic()
        result = yield
        core, clock = self.tests.get(item.nodeid, (0.0, 0.0))
        before, self.before = self.before, self.family.used()
        seconds = time.monotonic() - started
        # What is seen late was used before: no test uses more than all cores for as long as it takes.
        most = (os.cpu_count() or 1) * (seconds + 2 / TICKS)
        self.tests[item.nodeid] = core + min(max(0.0, self.before - before), most), clock + seconds
        return result

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.before = self.family.used()
        if session.items:
            self.collections.append(self.before)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        sent = getattr(node, "workeroutput", {}).get("core_seconds")
        if sent is not None:
            tests, collections, total = sent
            self.tests |= tests
            self.collections += collections
            self.total += total

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["core_seconds"] = self.tests, self.collections, self.family.used()
            return
        times = os.times()
        # The workers are children of this process and have sent what they used.
        self.total += times.user + times.system if self.total else self.family.used()
        self.pace = max(self.pace, calibration() / REFERENCE)
        self.faults = self.faults_found()
        if self.faults and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def faults_found(self) -> list[str]:
        faults = []
        if self.test_bound is not None:
            faults += [
                f"{name} takes {core:.1f} core-seconds, more than {self.test_bound * self.allowed:.1f}: "
                "share what it builds, or mark it `slow`"
                for name, (core, _) in sorted(self.tests.items())
                if core > self.test_bound * self.allowed
            ]
        if self.suite_bound is not None and self.total > self.suite_bound * self.allowed:
            faults.append(
                f"the suite takes {self.total:.1f} core-seconds, more than {self.suite_bound * self.allowed:.1f}: "
                "make the dearest tests cheaper, or mark the rest of a family `slow`"
            )
        return faults

    @property
    def allowed(self) -> float:
        """What the bounds are multiplied by before a session fails."""
        return self.pace * ROOM

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("core-seconds")
        terminalreporter.write_line("  core  clock")
        dearest = sorted(self.tests.items(), key=lambda row: -row[1][0])[:NUM_DEAREST]
        for name, (core, clock) in dearest:
            terminalreporter.write_line(f"{core:6.2f} {clock:6.2f}  {name}")
        collected = " + ".join(f"{seconds:.1f}" for seconds in self.collections)
        terminalreporter.write_line(
            f"{self.total:.1f} core-seconds for {len(self.tests)} tests, {collected} of them for collection; "
            f"bounds are multiplied by the pace of this machine, {self.pace:.2f}, and by {ROOM}"
        )
        for fault in self.faults:
            terminalreporter.write_line(f"ERROR: {fault}", red=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("core-seconds", "core-seconds of the tests")
    for name, what in (("suite", "the whole session takes"), ("test", "one test takes")):
        group.addoption(f"--{name}-bound", type=float, metavar="S", help=f"fail where {what} more core-seconds")


def pytest_configure(config: pytest.Config) -> None:
    """Measure where a bound is given."""
    suite, test = config.getoption("suite_bound"), config.getoption("test_bound")
    if suite is not None or test is not None:
        is_worker = hasattr(config, "workerinput")
        pace = 1.0 if is_worker else max(1.0, calibration() / REFERENCE)
        config.pluginmanager.register(Meter(suite, test, pace), "core-seconds")
