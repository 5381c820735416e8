"""Workers that are stopped, killed or starved of CPU: no answer waits for ever, and none pays for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import reasoning_gym

from harness.app import main
from harness.config.schema import RewardConfig
from harness.rewards import process
from harness.rewards.process import Worker
from harness.rewards.workers import Grader
from harness.types import Question

HALF = Question(id="half", text="", answer="1/2")
TOWER = "(" * 1900  # costs a worker its limit


def boxed(answer: str) -> str:
    return f"So it is \\boxed{{{answer}}}."


def gym(name: str) -> Question:
    entry = reasoning_gym.create_dataset(name, size=1, seed=0)[0]
    metadata = {"dataset": name, "entry": entry, "config": {}}
    return Question(id=name, text="", answer=entry["answer"], answer_type="reasoning_gym", metadata=metadata)


def child_processes() -> set[psutil.Process]:
    return {
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "harness.rewards.child" in child.cmdline()
    }


def verdicts(grader: Grader, items: list[tuple[str, Question]]) -> list[str]:
    return [grade.verdict for grade in grader.grade([(boxed(answer), question) for answer, question in items])]


@pytest.fixture
def short_wall_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SLEEP_SECONDS", 1.0)  # 10 * 0.2 + 1 = 3 s for a job


@pytest.mark.usefixtures("short_wall_limit")
def test_a_worker_that_is_stopped_or_killed_from_outside_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    before = child_processes()
    with Grader(RewardConfig(cpu_seconds=0.2)) as grader:
        verdicts(grader, [("0.5", HALF)])
        (worker,) = child_processes() - before
        worker.suspend()
        assert verdicts(grader, [("0.5", HALF), ("0.6", HALF)]) == ["correct", "wrong"]
        assert not worker.is_running()
        (worker,) = child_processes() - before
        worker.kill()  # while it is idle
        while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)
        assert verdicts(grader, [("0.5", HALF)]) == ["correct"]
        assert grader.num_replaced == 2
    assert caplog.messages == ["a grading worker was lost (exit code -9): its answer is graded once more"] * 2


@pytest.mark.usefixtures("short_wall_limit")
@pytest.mark.slow
@pytest.mark.parametrize("num_bytes", [100, 60_000])  # the second: 64 * 60,000 bytes at a time, a pipe holds 65,536
def test_a_stopped_worker_that_does_not_read_is_given_up(num_bytes: int) -> None:
    question = gym("chain_sum")
    items = [(f"{i} " + "x" * num_bytes, question) for i in range(200)] + [(question.answer, question)] * 56
    before = child_processes()
    with Grader(RewardConfig(cpu_seconds=0.2)) as grader:
        verdicts(grader, items[:1])
        (worker,) = child_processes() - before
        worker.suspend()
        started = time.monotonic()
        assert verdicts(grader, items) == ["wrong"] * 200 + ["correct"] * 56
        assert 3.0 <= time.monotonic() - started < 60.0
        assert grader.num_replaced == 1


def test_an_answer_that_meets_a_limit_of_the_worker_is_a_timeout_at_once(caplog: pytest.LogCaptureFixture) -> None:
    # The scorer reads the answer by json.loads, which meets Python's limit of recursion.
    deep, question = '{"a": ' + "[" * 100_000 + "}", gym("codeio")
    with Grader(RewardConfig(cpu_seconds=5.0)) as grader:
        items = [("0.5", HALF), (deep, question), ("0.6", HALF)]
        assert verdicts(grader, items) == ["correct", "timeout", "wrong"]
        assert grader.num_replaced == 1
    assert caplog.messages == []


@pytest.fixture
def kill_twice(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[int]]:
    """`kill_twice(kind)`: the first two workers that get jobs of this kind are killed by then. Returns their pids."""

    def kill_twice(kind: str) -> list[int]:
        killed: list[int] = []
        real = Worker.run

        def run(worker: Worker, jobs: Any) -> list[Any]:
            if jobs[0]["kind"] == kind and len(killed) < 2:
                killed.append(worker._process.pid)
                os.kill(killed[-1], signal.SIGKILL)
                worker._process.wait()
            return real(worker, jobs)

        monkeypatch.setattr(Worker, "run", run)
        return killed

    return kill_twice


@pytest.fixture
def answers(tmp_path: Path) -> str:
    """Two answers to 1/2: the first needs a library."""
    file = tmp_path / "answers.jsonl"
    rows = [{"id": i, "response": boxed(answer), "gold": "1/2"} for i, answer in enumerate(["0.5", "1/2"])]
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


@pytest.mark.slow
def test_a_worker_that_is_killed_twice_says_nothing_about_the_answer(
    kill_twice: Callable[[str], list[int]], answers: str, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    killed = kill_twice("grade")
    assert main(["grade", answers]) == 0
    found = [json.loads(line)["verdict"] for line in capsys.readouterr().out.splitlines()]
    assert found == ["ungraded", "correct"] and len(set(killed)) == 2
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "its answer is graded once more", "its answer stays ungraded",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_worker_that_is_killed_twice_says_nothing_about_the_time_of_a_gold_answer(
    kill_twice: Callable[[str], list[int]], answers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_twice("gold_error")
    assert main(["grade", answers]) == 2
    assert capsys.readouterr().err == f"error: {answers}:1: the gold answer has lost two grading workers, see the log\n"


@pytest.mark.slow  # hostile replies use up their time in the fast suite, and no more workers than they are
def test_an_answer_that_uses_up_its_time_is_not_graded_again(caplog: pytest.LogCaptureFixture) -> None:
    with Grader(RewardConfig(cpu_seconds=0.2)) as grader:
        assert verdicts(grader, [("0.5", HALF), (TOWER, HALF), ("0.5", HALF)]) == ["correct", "timeout", "correct"]
        assert grader.num_replaced == 1
    assert not caplog.messages


def test_workers_that_do_not_start(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    before = child_processes()

    def kill_one() -> None:
        while not (new := child_processes() - before):
            time.sleep(0.01)
        new.pop().kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    with Grader(RewardConfig()) as grader:
        assert verdicts(grader, [("0.5", HALF)]) == ["correct"]
        killer.join()
        assert caplog.messages == ["a grading worker did not start (exit code -9)"]
    monkeypatch.setattr(process, "START_SECONDS", 0.01)
    with Grader(RewardConfig()) as grader, pytest.raises(RuntimeError, match=r"^no grading worker starts"):
        verdicts(grader, [("0.5", HALF)])


@pytest.fixture
def three_busy_processes() -> Iterator[None]:
    """They, and the workers of a grader, share one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    yield
    os.sched_setaffinity(0, cores)
    for one in busy:
        one.send_signal(signal.SIGKILL)
        one.wait()


def sums(first: int) -> list[tuple[str, Question]]:
    """Answers of the same length, which take a parser a measurable time: n-1-1-...-1 = n - 300."""
    return [(f"{n}" + "-1" * 300, Question(id="q", text="", answer=f"{first - 300}.0")) for n in (first, first + 1)]


def cpu_seconds_of_sums() -> float:
    before = child_processes()
    with Grader(RewardConfig()) as grader:
        verdicts(grader, [("0.5", HALF)])
        (worker,) = child_processes() - before
        used = sum(worker.cpu_times()[:2])
        assert verdicts(grader, sums(500)) == ["correct", "wrong"]
        return (sum(worker.cpu_times()[:2]) - used) / 2


@pytest.mark.slow
def test_the_load_of_the_machine_changes_no_verdict(request: pytest.FixtureRequest) -> None:
    limit = 2.0 * cpu_seconds_of_sums()
    request.getfixturevalue("three_busy_processes")
    with Grader(RewardConfig(cpu_seconds=limit)) as grader:
        started = time.monotonic()
        items = [*sums(600), (TOWER, HALF), *sums(700), ("0.5", HALF)]
        assert verdicts(grader, items) == ["correct", "wrong", "timeout", "correct", "wrong", "correct"]
        # Four sums of half a limit and a tower of a whole one take three limits alone, and four times that here.
        assert time.monotonic() - started > 6 * limit
        assert grader.num_replaced == 1
