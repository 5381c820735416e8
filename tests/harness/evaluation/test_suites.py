from __future__ import annotations

import dataclasses

import pytest

from harness.config.evaluation import MediaConfig, suites
from harness.config.schema import EvalConfig
from harness.data import synthetic
from harness.data.arithmetic import make_questions
from harness.errors import UserError
from harness.evaluation.suites import load_suite, mini_tasks
from harness.types import MediaLimits, Question

ALL_TASKS = list(synthetic.TASKS)


def test_mini_has_one_benchmark_a_level() -> None:
    benchmarks = load_suite(
        EvalConfig(suite="mini", mini_tasks=["arithmetic"], levels=[1, 2, 3, 4], num_questions=5)
    ).benchmarks
    assert [(b.name, b.family, len(b.questions)) for b in benchmarks] == [
        ("arithmetic_l1", "LLM", 5),
        ("arithmetic_l2", "LLM", 5),
        ("arithmetic_l3", "LLM", 5),
        ("arithmetic_l4", "LLM", 5),
    ]
    for level, benchmark in enumerate(benchmarks, start=1):
        assert {q.metadata["level"] for q in benchmark.questions} == {level}
        assert list(benchmark.questions) == make_questions([level], 5, seed=0, split="held_out")


def test_a_limit_takes_questions_of_all_of_mini() -> None:
    config = EvalConfig(suite="mini", mini_tasks=["arithmetic", "bar_chart"], levels=[1], num_questions=10, limit=4)
    every = load_suite(dataclasses.replace(config, limit=None)).benchmarks
    for some, all_of_it in zip(load_suite(config).benchmarks, every, strict=True):
        uids = list(all_of_it.uids().items())
        assert list(some.uids().items()) == [uids[i] for i in (0, 2, 5, 7)]


def test_tasks_make_three_families_in_their_order() -> None:
    tasks = ["bar_clip", "bar_cards", "arithmetic", "bar_chart"]
    benchmarks = load_suite(EvalConfig(suite="mini", mini_tasks=tasks, levels=[4, 2], num_questions=3)).benchmarks
    assert [(b.name, b.family) for b in benchmarks] == [
        ("bar_clip_l4", "Video"),
        ("bar_clip_l2", "Video"),
        ("bar_cards_l4", "VLM"),
        ("bar_cards_l2", "VLM"),
        ("arithmetic_l4", "LLM"),
        ("arithmetic_l2", "LLM"),
        ("bar_chart_l4", "VLM"),
        ("bar_chart_l2", "VLM"),
    ]
    for benchmark in benchmarks:
        assert [q.id.split("/")[0] for q in benchmark.questions] == [benchmark.name[:-3]] * 3
    cards = benchmarks[2].questions[0]
    assert len(cards.images) == 4 and cards.video is None
    assert benchmarks[0].questions[0].video is not None


def test_media_limits_are_the_configurations() -> None:
    media = MediaConfig(min_pixels=256, max_pixels=4096, fps=None, num_frames=6, max_frames=8)
    benchmarks = load_suite(
        EvalConfig(suite="mini", mini_tasks=["bar_clip"], levels=[1], num_questions=2, media=media)
    ).benchmarks
    assert [q.limits for q in benchmarks[0].questions] == [MediaLimits(256, 4096, None, 6, 8)] * 2


def test_other_tasks_beside_a_benchmark_do_not_change_it() -> None:
    alone = load_suite(EvalConfig(suite="mini", mini_tasks=["bar_chart"], levels=[3], num_questions=4)).benchmarks
    among = load_suite(EvalConfig(suite="mini", mini_tasks=ALL_TASKS, levels=[2, 3], num_questions=4)).benchmarks
    assert alone[0] in among


def test_seed_and_number_of_questions_are_the_configurations() -> None:
    first, other = (
        mini_tasks(EvalConfig(suite="mini", mini_tasks=["arithmetic"], levels=[3], num_questions=6, seed=s)).benchmarks[
            0
        ]
        for s in (0, 1)
    )
    assert len(first.questions) == len(other.questions) == 6
    assert first.questions != other.questions


def test_no_evaluated_question_is_ever_trained_on() -> None:
    config = EvalConfig(suite="mini", mini_tasks=["arithmetic"])
    held_out = {q.text for b in load_suite(config).benchmarks for q in b.questions}
    train = {q.text for q in make_questions([1, 2, 3, 4], 1600, seed=0, split="train")}
    assert len(held_out) == 800
    assert not held_out & train


def test_no_evaluated_chain_is_ever_trained_on_in_any_task() -> None:
    def chains(questions: list[Question]) -> set[str]:
        return {q.id.split("/")[2] for q in questions}

    config = EvalConfig(suite="mini", mini_tasks=ALL_TASKS, levels=[1, 2], num_questions=100)
    held_out = chains([q for b in load_suite(config).benchmarks for q in b.questions])
    train = chains(synthetic.make_questions(ALL_TASKS, [1, 2], 1600, seed=0, split="train"))
    assert len(held_out) > 200 and len(train) > 400
    assert not held_out & train


def test_default_suite_asks_each_question_once() -> None:
    ids = [q.id for b in load_suite(EvalConfig(suite="mini")).benchmarks for q in b.questions]
    assert len(ids) == len(set(ids)) == 200 * 4 * len(EvalConfig().mini_tasks)


def test_unknown_suite_names_the_nearest() -> None:
    assert set(suites()) == {"paper31", "llm10", "vlm16", "video5"}
    with pytest.raises(UserError, match=r"^eval.suite=mnii is not known. Did you mean 'mini'\? A suite of one's own "):
        load_suite(EvalConfig(suite="mnii"))
    with pytest.raises(
        UserError, match=r"^eval.suite=None is not known. Known: llm10, mini, paper31, video5, vlm16\. A suite"
    ):
        load_suite(EvalConfig())


@pytest.mark.parametrize("levels", [[], [1, 1], [5]])
def test_levels_that_make_no_table_are_refused(levels: list[int]) -> None:
    with pytest.raises(UserError, match=r"^eval.levels must be some of 1, 2, 3, 4, each once"):
        load_suite(EvalConfig(suite="mini", levels=levels))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "eval.mini_tasks must be some of arithmetic, bar_chart, bar_cards, bar_clip, each once, got"),
        (["bar_clip", "bar_clip"], "eval.mini_tasks must be some of .*, each once"),
        (["bar_clips"], "there is no task 'bar_clips'. Did you mean 'bar_clip'"),
    ],
)
def test_tasks_that_make_no_table_are_refused(tasks: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_suite(EvalConfig(suite="mini", mini_tasks=tasks))
