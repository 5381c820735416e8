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


_LAST = [0.0]


def used() -> float:
    """Core-seconds of this process so far, and of all below it, dead or alive.

    The kernel may leave a child out of a list that changes while it is read. The sum is smaller then, and read again.
    """
    for _ in range(3):
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        if (now := own + _alive_below(os.getpid())) >= _LAST[0]:
            break
    _LAST[0] = now
    return now


def _alive_below(pid: int | str) -> float:
    """A fork server, or a model server of a module, is not waited for before the end: `os.times` misses it."""
    total = 0.0
    try:
        children = [child for task in Path(f"/proc/{pid}/task").iterdir() for child in _words(task / "children")]
    except OSError:  # it has ended meanwhile, or the system is another than Linux
        return total
    for child in children:
        try:
            ticks = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:15]
        except OSError:
            continue
        total += sum(map(int, ticks)) / TICKS + _alive_below(child)
    return total


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
    faults: list[str] = field(default_factory=list)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        before, started = used(), time.monotonic()
        result = yield
        core, clock = self.tests.get(item.nodeid, (0.0, 0.0))
        # A process that outlives its parent is counted no longer once it is nobody's child.
        core += max(0.0, used() - before)
        self.tests[item.nodeid] = core, clock + time.monotonic() - started
        return result

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.items:
            self.collections.append(used())

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
            session.config.workeroutput["core_seconds"] = self.tests, self.collections, used()
            return
        times = os.times()
        # The workers are children of this process and have sent what they used.
        self.total += times.user + times.system if self.total else used()
        self.pace = max(self.pace, calibration() / REFERENCE)
        self.faults = self.faults_found()
        if self.faults and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def faults_found(self) -> list[str]:
        faults = []
        if self.test_bound is not None:
            faults += [
                f"{name} takes {core:.1f} core-seconds, more than {self.test_bound * self.pace:.1f}: "
                "share what it builds, or mark it `slow`"
                for name, (core, _) in sorted(self.tests.items())
                if core > self.test_bound * self.pace
            ]
        if self.suite_bound is not None and self.total > self.suite_bound * self.pace:
            faults.append(
                f"the suite takes {self.total:.1f} core-seconds, more than {self.suite_bound * self.pace:.1f}: "
                "make the dearest tests cheaper, or mark the rest of a family `slow`"
            )
        return faults

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("core-seconds")
        terminalreporter.write_line("  core  clock")
        dearest = sorted(self.tests.items(), key=lambda row: -row[1][0])[:NUM_DEAREST]
        for name, (core, clock) in dearest:
            terminalreporter.write_line(f"{core:6.2f} {clock:6.2f}  {name}")
        collected = " + ".join(f"{seconds:.1f}" for seconds in self.collections)
        terminalreporter.write_line(
            f"{self.total:.1f} core-seconds for {len(self.tests)} tests, {collected} of them for collection; "
            f"bounds are multiplied by the pace of this machine, {self.pace:.2f}"
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
