import pytest

from harness.data import arithmetic
from harness.data.bars import split_of_question
from harness.data.synthetic import TASKS, make_questions
from harness.errors import UserError
from harness.types import MediaLimits

ALL = list(TASKS)


def test_tasks_take_turns_and_in_each_the_levels():
    questions = make_questions(ALL, [1, 3], 8, seed=0, split="train")
    assert [q.source for q in questions] == ALL * 2
    assert [q.metadata["level"] for q in questions] == [1] * 4 + [3] * 4


def test_arithmetic_alone_is_what_it_always_was():
    made = make_questions(["arithmetic"], [1, 2], 20, seed=3, split="train")
    assert made == arithmetic.make_questions([1, 2], 20, seed=3, split="train")


def test_questions_repeat_with_the_seed_and_are_distinct():
    made = make_questions(ALL, [1, 2, 3, 4], 400, seed=0, split="train")
    assert [q.id for q in made] == [q.id for q in make_questions(ALL, [1, 2, 3, 4], 400, seed=0, split="train")]
    assert len({q.id for q in made}) == 400
    assert {q.id for q in made} != {q.id for q in make_questions(ALL, [1, 2, 3, 4], 400, seed=1, split="train")}


def test_no_chain_is_in_both_splits():
    for split in ("train", "held_out"):
        made = make_questions(ALL[1:], [1, 2], 200, seed=0, split=split)
        assert {split_of_question(q) for q in made} == {split}


def test_families_are_told_by_what_a_question_shows():
    for name, task in TASKS.items():
        (question,) = make_questions([name], [2], 1, seed=0, split="train")
        shown = "Video" if question.video else "VLM" if question.images else "LLM"
        assert task.family == shown


def test_limits_reach_the_questions():
    limits = MediaLimits(min_pixels=256)
    (question,) = make_questions(["bar_clip"], [1], 1, seed=0, split="train", limits=limits)
    assert question.limits == limits


@pytest.mark.parametrize(
    ("tasks", "levels", "number", "message"),
    [
        (["bar_chat"], [1], 4, "no generated task 'bar_chat'. Did you mean 'bar_chart'"),
        ([], [1], 4, "no generated task 'none'"),
        (["bar_chart"], [5], 4, "bar_chart levels must be some of 1, 2, 3, 4"),
        (["bar_cards"], [1], 10_000, r"bar_cards level 1 has no more held_out questions after \d+: ask for fewer"),
    ],
)
def test_what_does_not_exist_is_refused(tasks, levels, number, message):
    with pytest.raises(UserError, match=message):
        make_questions(tasks, levels, number, seed=0, split="held_out")
