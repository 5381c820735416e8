"""Scorers of others, in the worker processes. `test_workers.py` has one in its workers in the fast suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.config.schema import RewardConfig
from harness.errors import UserError
from harness.rewards import scorer
from harness.rewards.workers import Grader
from harness.types import Question


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(RewardConfig(cpu_seconds=0.5)) as grader:
        yield grader


def asked(name: str, *others: str) -> Question:
    name = f"tests.support.scorers:{name}"
    return Question(id="q1", text="Why?", answer="7", other_answers=others, scorer=name, extra={"unit": "kg"})


PAIRS = [
    ("abc", asked("length"), (0.3, "wrong", "ABC")),
    ("abcdefgh", asked("length"), (0.8, "correct", "ABCDEFGH")),
    ("is 7", asked("contains"), (1.0, "correct", None)),
    (r"is \boxed{9}", asked("contains", "8", "9"), (1.0, "correct", "9")),
    ("is 9", asked("contains"), (0.0, "unparsable", None)),
    (r"\boxed{9}", asked("contains"), (0.0, "wrong", "9")),
    ("7 kg", asked("has_unit"), (1.0, "correct", None)),
    ("7 lb", asked("has_unit"), (0.0, "unparsable", None)),
    ("raise", asked("fragile"), (0.0, "ungraded", None)),
    ("text", asked("fragile"), (0.0, "ungraded", None)),
    ("nan", asked("fragile"), (0.0, "ungraded", None)),
    ("two", asked("fragile"), (0.0, "ungraded", None)),
    ("none", asked("fragile"), (0.0, "ungraded", None)),
]
FAULTS = [
    ("raises", r"data.reward=tests.support.scorers:raises raised RuntimeError: no luck \(.*scorers.py:\d+\)"),
    ("gives_text", "gave '1.0', a str, as its reward"),
    ("gives_nan", r"gave the reward nan: rewards lie in \[0, 1\]"),
]


def test_what_a_scorer_gives_is_reward_and_answer() -> None:
    for response, question, wanted in PAIRS:
        job = scorer.job_of(response, question)
        grade = scorer.grade_of(scorer.score(scorer.load(question.scorer), job))
        assert (grade.reward, grade.verdict, grade.answer) == wanted, response


@pytest.mark.parametrize(("name", "said"), FAULTS)
def test_a_failure_is_one_line_with_its_place(name: str, said: str) -> None:
    question = asked(name)
    result = scorer.score(scorer.load(question.scorer), scorer.job_of("7", question))
    failure = scorer.failure(result, question.scorer)
    assert failure is not None and "\n" not in failure
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(failure)


@pytest.mark.slow
def test_the_workers_say_the_same(grader: Grader) -> None:
    grades = grader.grade([(response, question) for response, question, _ in PAIRS])
    assert [(g.reward, g.verdict, g.answer) for g in grades] == [wanted for _, _, wanted in PAIRS]
    assert grader.are_right([(asked("contains"), "7"), (asked("contains"), "8")]) == [True, False]
    assert [g.verdict for g in grader.grade([("spin", asked("fragile"))])] == ["timeout"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        *FAULTS,
        ("spins", "does not end on a right reply to question q1"),
        ("absent", "nothing to call by the name absent"),
    ],
)
def test_a_scorer_that_does_not_work_is_refused_before_the_run(grader: Grader, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        grader.gold_errors([asked(name)])
    assert "\n" not in str(error.value)
