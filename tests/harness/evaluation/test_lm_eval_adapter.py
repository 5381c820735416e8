from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from harness.config import EvalConfig
from harness.evaluation.lm_eval_adapter import BenchmarkTask, StudentLM, questions_by_uid
from harness.evaluation.suites import load_suite
from harness.types import RolloutGroup

MakeEngine = Callable[..., Any]


def requests_of(task: BenchmarkTask) -> list[Any]:
    task.build_all_requests()
    return task.instances


def test_texts_come_back_in_the_order_of_the_requests(
    two_levels: EvalConfig, make_engine: MakeEngine, grader: Any
) -> None:
    [first, _] = benchmarks = load_suite(two_levels)
    student = StudentLM(make_engine(), grader, two_levels, questions_by_uid(benchmarks))
    texts = student.generate_until(requests_of(BenchmarkTask(first, two_levels, student.responses)))
    golds = [q.answer for q in first.questions]
    assert texts == [
        f"<think> ok </think> \\boxed{{{golds[0]}}}",
        "<think> no </think> \\boxed{7000}",
        "<think> so 12 + 9 =",
        f"<think> ok </think> \\boxed{{{golds[3]}}}",
    ]
    assert list(student.responses) == [f"eval/arithmetic_l1/{i}" for i in range(4)]


def test_a_task_cannot_bring_its_own_decoding(two_levels: EvalConfig, make_engine: MakeEngine, grader: Any) -> None:
    benchmarks = load_suite(two_levels)
    task = BenchmarkTask(benchmarks[0], replace(two_levels, max_response_tokens=32), {})
    student = StudentLM(make_engine(), grader, two_levels, questions_by_uid(benchmarks))
    with pytest.raises(AssertionError, match="arithmetic_l1 wants another decoding"):
        student.generate_until(requests_of(task))


def test_a_task_cannot_reword_a_question(two_levels: EvalConfig, make_engine: MakeEngine, grader: Any) -> None:
    benchmarks = load_suite(two_levels)
    task = BenchmarkTask(benchmarks[0], two_levels, {})
    task.set_config("description", "You are a calculator.")
    student = StudentLM(make_engine(), grader, two_levels, questions_by_uid(benchmarks))
    with pytest.raises(AssertionError, match="arithmetic_l1 changed the wording of a question"):
        student.generate_until(requests_of(task))


def test_a_lost_group_is_noticed(
    two_levels: EvalConfig, make_engine: MakeEngine, grader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmarks = load_suite(two_levels)
    engine = make_engine()
    generate = engine.generate

    def all_but_one(*arguments: Any) -> list[RolloutGroup]:
        return list(generate(*arguments))[1:]

    monkeypatch.setattr(engine, "generate", all_but_one)
    student = StudentLM(engine, grader, two_levels, questions_by_uid(benchmarks))
    with pytest.raises(AssertionError, match="lost or invented groups"):
        student.generate_until(requests_of(BenchmarkTask(benchmarks[0], two_levels, {})))


def test_log_likelihood_tasks_are_refused_with_the_reason(
    two_levels: EvalConfig, make_engine: MakeEngine, grader: Any
) -> None:
    student = StudentLM(make_engine(), grader, two_levels, {})
    for method in (student.loglikelihood, student.loglikelihood_rolling):
        with pytest.raises(NotImplementedError, match="scores generated answers only"):
            method([])
