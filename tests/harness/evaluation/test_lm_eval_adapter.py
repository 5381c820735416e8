from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from harness.config.schema import EvalConfig
from harness.evaluation.lm_eval_adapter import BenchmarkTask, StudentLM
from harness.evaluation.suites import load_suite
from harness.types import RolloutGroup

MakeEngine = Callable[..., Any]


def requests_of(task: BenchmarkTask) -> list[Any]:
    task.build_all_requests()
    return task.instances


def test_texts_come_back_in_the_order_of_the_requests(
    student_of: Any, two_levels: EvalConfig, make_engine: MakeEngine, grader: Any
) -> None:
    [first, _] = benchmarks = load_suite(two_levels).benchmarks
    student = student_of(make_engine(), grader, two_levels, benchmarks)
    texts = StudentLM(student).generate_until(requests_of(BenchmarkTask(first, student)))
    golds = [q.answer for q in first.questions]
    assert texts == [
        f"<think> ok </think> \\boxed{{{golds[0]}}}",
        "<think> no </think> \\boxed{7000}",
        "<think> so 12 + 9 =",
        f"<think> ok </think> \\boxed{{{golds[3]}}}",
    ]
    assert list(student.responses) == [f"eval/arithmetic_l1/{i}" for i in range(4)]


def test_a_task_cannot_bring_its_own_decoding(
    student_of: Any, two_levels: EvalConfig, make_engine: MakeEngine, grader: Any
) -> None:
    benchmarks = load_suite(two_levels).benchmarks
    other = student_of(make_engine(), grader, replace(two_levels, max_response_tokens=32), benchmarks)
    task = BenchmarkTask(benchmarks[0], other)
    student = student_of(make_engine(), grader, two_levels, benchmarks)
    with pytest.raises(AssertionError, match="arithmetic_l1 wants other decoding"):
        StudentLM(student).generate_until(requests_of(task))


def test_a_task_cannot_reword_a_question(
    student_of: Any, two_levels: EvalConfig, make_engine: MakeEngine, grader: Any
) -> None:
    benchmarks = load_suite(two_levels).benchmarks
    student = student_of(make_engine(), grader, two_levels, benchmarks)
    task = BenchmarkTask(benchmarks[0], student)
    task.set_config("description", "You are a calculator.")
    with pytest.raises(AssertionError, match="arithmetic_l1 changed the wording of a question"):
        StudentLM(student).generate_until(requests_of(task))


def test_a_lost_group_is_noticed(
    student_of: Any, two_levels: EvalConfig, make_engine: MakeEngine, grader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmarks = load_suite(two_levels).benchmarks
    engine = make_engine()
    generate = engine.generate

    def all_but_one(*arguments: Any) -> list[RolloutGroup]:
        return list(generate(*arguments))[1:]

    monkeypatch.setattr(engine, "generate", all_but_one)
    student = student_of(engine, grader, two_levels, benchmarks)
    with pytest.raises(AssertionError, match="the engine lost groups"):
        StudentLM(student).generate_until(requests_of(BenchmarkTask(benchmarks[0], student)))


def test_log_likelihood_tasks_are_refused_with_the_reason(
    student_of: Any, two_levels: EvalConfig, make_engine: MakeEngine, grader: Any
) -> None:
    student = StudentLM(student_of(make_engine(), grader, two_levels, []))
    for method in (student.loglikelihood, student.loglikelihood_rolling):
        with pytest.raises(NotImplementedError, match="scores generated answers only"):
            method([])
