"""The grader's worker processes: limits, order, threads, and that nothing outlives its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import reasoning_gym

from harness.config.schema import RewardConfig
from harness.errors import UserError
from harness.rewards.rules import Grade
from harness.rewards.workers import Grader
from harness.types import Question

ROOT = Path(__file__).parents[3]
HALF = Question(id="half", text="", answer="1/2")


def boxed(answer: str) -> str:
    return f"So it is \\boxed{{{answer}}}."


def child_processes(pid: int | None = None) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(pid).children()
        if child.status() != psutil.STATUS_ZOMBIE and "harness.rewards.child" in child.cmdline()
    ]


def wait_until_gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=20)
    return not alive


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(RewardConfig(cpu_seconds=0.5, num_workers=2)) as grader:
        yield grader


HOSTILE = {
    "(" * 1900: "timeout",
    "{" * 950 + "}" * 950: "timeout",
    # Their size tells, without their digits.
    r"10^{10^{10}}": "wrong",
    "99999999999!": "wrong",
    # The library gives up on these at once.
    "5^(5^(5^(5^5)))": "wrong",
    "9**9**9**9": "wrong",
    # Nobody reads these.
    "(" * 5000: "wrong",
    "{" * 3000 + "}" * 3000: "wrong",
}


@pytest.mark.slow
def test_hostile_answers_cost_themselves_only(grader: Grader) -> None:
    items: list[tuple[str, Question]] = []
    for answer in HOSTILE:
        items += [(boxed(answer), HALF), (boxed("0.5"), HALF), (boxed("0.6"), HALF)]
    grades = grader.grade(items)
    assert [grade.verdict for grade in grades[1::3]] == ["correct"] * len(HOSTILE)
    assert [grade.verdict for grade in grades[2::3]] == ["wrong"] * len(HOSTILE)
    hostile = {answer: grade.verdict for answer, grade in zip(HOSTILE, grades[::3], strict=True)}
    assert hostile == HOSTILE
    assert grades[0] == Grade(answer="(" * 1900, verdict="timeout", reward=0.0)


def test_a_scorer_of_others_grades_in_the_workers(grader: Grader) -> None:
    def asked(name: str) -> Question:
        return Question(id="q1", text="", answer="7", scorer=f"tests.support.scorers:{name}")

    assert grader.gold_errors([asked("fragile"), asked("contains")]) == [None, None]
    said = grader.grade([("spin", asked("fragile")), ("raise", asked("fragile")), ("is 7", asked("contains"))])
    assert [grade.verdict for grade in said] == ["timeout", "ungraded", "correct"]
    with pytest.raises(UserError, match=r"scorers:gives_nan gave the reward nan.*on a right reply to question q1"):
        grader.gold_errors([asked("gives_nan")])


def test_order_is_kept_over_batches_and_kinds(grader: Grader) -> None:
    entry = reasoning_gym.create_dataset("chain_sum", size=1, seed=0)[0]
    gym = Question(
        id="gym",
        text="",
        answer=entry["answer"],
        answer_type="reasoning_gym",
        metadata={"dataset": "chain_sum", "entry": entry, "config": {}},
    )
    word = Question(id="w", text="", answer="Paris", answer_type="text", images=(object(),))
    items: list[tuple[str, Question]] = [("no box", HALF), (boxed(entry["answer"]), gym), (boxed("paris"), word)]
    expected = ["unparsable", "correct", "correct"]
    for i in range(1, 91):
        items.append((boxed(f"\\frac{{{i}}}{{2}}"), Question(id=str(i), text="", answer=f"{i // 3 * 3 / 2}")))
        expected.append("correct" if i % 3 == 0 else "wrong")
    assert [grade.verdict for grade in grader.grade(items)] == expected


def test_same_and_gold_errors(grader: Grader) -> None:
    pairs = [(None, None), ("1", None), ("5", "x=5"), ("10^{10^{10}}", "1"), ("0.5", "1/2"), ("1/3", "1/2")]
    assert grader.same(pairs) == [True, False, True, False, True, False]
    golds = ["5", "", "(" * 5000, r"\frac{1}{2}", "**"]
    assert grader.gold_errors([Question(id=gold, text="", answer=gold) for gold in golds]) == [
        None,
        "the gold answer is empty",
        "the gold answer takes more than 0.5 s to read",
        None,
        "math_verify reads no value in the gold answer '**'",
    ]


@pytest.mark.slow
def test_two_threads_may_grade_at_the_same_time(grader: Grader) -> None:
    results: dict[int, list[str]] = {}

    def work(offset: int) -> None:
        items = [(boxed(f"\\frac{{{i}}}{{7}}"), Question(id="q", text="", answer=f"{i - offset}/7")) for i in range(20)]
        if offset == 0:
            items[10] = (boxed("(" * 1900), HALF)
        results[offset] = [grade.verdict for grade in grader.grade(items)]

    threads = [threading.Thread(target=work, args=(offset,)) for offset in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {
        0: ["correct"] * 10 + ["timeout"] + ["correct"] * 9,
        1: ["wrong"] * 20,
    }


def test_quick_answers_need_no_process() -> None:
    before = child_processes()
    with Grader(RewardConfig()) as grader:
        items = [(boxed(str(i)), Question(id="q", text="", answer="7")) for i in range(1000)]
        assert [i for i, grade in enumerate(grader.grade(items)) if grade.reward] == [7]
        assert grader.same([("5", "5"), (None, None)]) == [True, True]
        assert grader.gold_errors([item[1] for item in items]) == [None] * 1000
        assert child_processes() == before


def test_workers_are_gone_after_close() -> None:
    before = set(child_processes())
    with Grader(RewardConfig()) as grader:
        grader.grade([(boxed("0.5"), HALF)])
        workers = [child for child in child_processes() if child not in before]
        assert len(workers) == 1
        assert workers[0].rlimit(psutil.RLIMIT_AS)[0] == 4 * 2**30
        mapped = {Path(region.path).name for region in workers[0].memory_maps()}
        assert not any(name.startswith("libtorch") for name in mapped)
    assert not any(worker.is_running() for worker in workers)
    with pytest.raises(RuntimeError):
        grader.grade([(boxed("0.5"), HALF)])
    assert grader.grade([("no box", HALF)])[0].verdict == "unparsable"


def test_close_fails_calls_that_are_under_way() -> None:
    errors: list[str] = []
    before = set(child_processes())
    grader = Grader(RewardConfig(cpu_seconds=1e5))  # no limit would end it
    grader.grade([(boxed("0.5"), HALF)])
    (worker,) = set(child_processes()) - before

    def work() -> None:
        try:
            grader.grade([(boxed("(" * 1900), HALF)])
        except RuntimeError as error:
            errors.append(str(error))

    used = worker.cpu_times().user
    thread = threading.Thread(target=work)
    thread.start()
    while worker.cpu_times().user < used + 0.2:
        time.sleep(0.02)
    grader.close()
    thread.join()
    assert errors == ["the grader was closed while it was grading"]
    assert not worker.is_running()


PROGRAM = """
import sys, time
from harness.config.schema import RewardConfig
from harness.rewards.workers import Grader
from harness.types import Question
print("ran main", file=sys.stderr)
assert "torch" not in sys.modules
grader = Grader(RewardConfig())
half = Question(id="", text="", answer="1/2")
print([g.verdict for g in grader.grade([("\\\\boxed{0.5}", half)] * 3)], flush=True)
time.sleep(float(sys.argv[1]))
"""


def start_program(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,
    )


def test_from_a_script_without_main_guard_and_without_close(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    (tmp_path / "json.py").write_text("raise ImportError('shadowed by the working directory')")
    output, errors = start_program(str(script), "0", cwd=tmp_path).communicate(timeout=120)
    assert output == f"{['correct'] * 3}\n"
    assert errors == "ran main\n"


def test_from_the_command_line_and_workers_die_with_a_killed_parent() -> None:
    program = start_program("-c", PROGRAM, "600")
    assert program.stdout is not None
    assert program.stdout.readline() == f"{['correct'] * 3}\n"
    workers = child_processes(program.pid)
    assert len(workers) == 1
    program.kill()
    program.communicate()
    assert wait_until_gone(workers)
