"""Hostile replies through the real worker processes, and the grader beside the libraries that it uses."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from benchmarks.grading import LIBRARIES, agreement, as_expected
from benchmarks.grading_cases import COSTLY, PAIRS, Case, hostile
from harness.config.schema import RewardConfig
from harness.rewards.workers import Grader

CASES = hostile()
CHEAP = [case for case in CASES if case.kind not in COSTLY]
EXPENSIVE = [case for case in CASES if case.kind in COSTLY]


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(RewardConfig(cpu_seconds=0.5, num_workers=2)) as grader:
        yield grader


def unexpected(grader: Grader, cases: list[Case]) -> list[tuple[str, str, str]]:
    """Kind, reply and verdict of the cases whose verdict is another than theirs."""
    grades = grader.grade([(case.response, case.question) for case in cases])
    return [
        (case.kind, case.response[:80], grade.verdict)
        for case, grade in zip(cases, grades, strict=True)
        if not as_expected(case, grade.verdict)
    ]


def test_there_are_enough_of_them_and_no_two_are_the_same() -> None:
    assert len(CHEAP) >= 200 and len(EXPENSIVE) >= 40
    assert len({(case.response, case.question.answer) for case in CASES}) == len(CASES)
    assert {case.kind for case in CASES} == {
        "tower", "nesting", "1 MB answer", "look-alike", "macro", "infinity", "unit", "interval", "matrix",
        "multiple choice", "box",
    }  # fmt: skip


@pytest.mark.parametrize("cases", [CHEAP[::3], pytest.param(CHEAP, marks=pytest.mark.slow)], ids=["some", "all"])
def test_every_verdict_is_the_expected_one(cases: list[Case], grader: Grader) -> None:
    replaced = grader.num_replaced
    assert unexpected(grader, cases) == []
    assert grader.num_replaced == replaced
    assert {case.kind for case in cases} == {case.kind for case in CHEAP}


@pytest.mark.parametrize(
    "cases", [EXPENSIVE[::16], pytest.param(EXPENSIVE, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_replies_that_cost_a_worker_its_limit(cases: list[Case], grader: Grader) -> None:
    replaced = grader.num_replaced
    started = time.monotonic()
    assert unexpected(grader, cases) == []
    assert time.monotonic() - started < 20.0 * len(cases)
    assert 0 < grader.num_replaced - replaced <= len(cases)


@pytest.mark.parametrize(
    "library", [pytest.param(x, marks=[pytest.mark.slow] if x == "math_verify" else []) for x in LIBRARIES]
)
@pytest.mark.slow
def test_the_grader_is_right_wherever_the_library_it_uses_is(library: str) -> None:
    pytest.importorskip(library, reason="the library is not installed, so there is nothing to agree with")
    table = agreement(library)
    assert {kind: row[3] for kind, row in table.items()} == {kind: [] for kind in PAIRS}
    assert all(ours >= theirs > 0 for _, theirs, ours, _ in table.values())
