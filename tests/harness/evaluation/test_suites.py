from __future__ import annotations

import pytest

from harness.config import EvalConfig
from harness.data.arithmetic import make_questions
from harness.errors import UserError
from harness.evaluation.suites import SUITES, load_suite, mini_tasks


def test_mini_has_one_benchmark_a_level() -> None:
    benchmarks = load_suite(EvalConfig(suite="mini", levels=[1, 2, 3, 4], num_questions=5))
    assert [(b.name, b.family, len(b.questions)) for b in benchmarks] == [
        ("arithmetic_l1", "LLM", 5),
        ("arithmetic_l2", "LLM", 5),
        ("arithmetic_l3", "LLM", 5),
        ("arithmetic_l4", "LLM", 5),
    ]
    for level, benchmark in enumerate(benchmarks, start=1):
        assert {q.metadata["level"] for q in benchmark.questions} == {level}
        assert list(benchmark.questions) == make_questions([level], 5, seed=0, split="held_out")


def test_seed_and_number_of_questions_are_the_configurations() -> None:
    first, other = (mini_tasks(EvalConfig(suite="mini", levels=[3], num_questions=6, seed=s))[0] for s in (0, 1))
    assert len(first.questions) == len(other.questions) == 6
    assert first.questions != other.questions


def test_no_evaluated_question_is_ever_trained_on() -> None:
    held_out = {q.text for b in load_suite(EvalConfig(suite="mini")) for q in b.questions}
    train = {q.text for q in make_questions([1, 2, 3, 4], 1600, seed=0, split="train")}
    assert len(held_out) == 800
    assert not held_out & train


def test_default_suite_asks_each_question_once() -> None:
    texts = [q.text for b in load_suite(EvalConfig(suite="mini")) for q in b.questions]
    assert len(texts) == len(set(texts)) == 800


def test_unknown_suite_names_the_nearest() -> None:
    assert list(SUITES) == ["mini"]
    with pytest.raises(UserError, match=r"^eval.suite=mnii is not known. Did you mean 'mini'\?$"):
        load_suite(EvalConfig(suite="mnii"))
    with pytest.raises(UserError, match=r"^eval.suite=None is not known. Known: mini\.$"):
        load_suite(EvalConfig())


@pytest.mark.parametrize("levels", [[], [1, 1], [5]])
def test_levels_that_make_no_table_are_refused(levels: list[int]) -> None:
    with pytest.raises(UserError, match=r"^eval.levels must be some of 1, 2, 3, 4, each once"):
        load_suite(EvalConfig(suite="mini", levels=levels))
