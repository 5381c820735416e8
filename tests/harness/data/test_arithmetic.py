import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.arithmetic import (
    LEVELS,
    carries,
    clean_trace,
    count_questions,
    make_questions,
    qualifies,
    question,
    render_trace,
    split_of,
)
from harness.errors import UserError

ROOT = Path(__file__).parents[3]
TERMS = st.tuples(
    st.integers(10, 99), st.integers(1, 9), st.lists(st.integers(1, 9), max_size=3).map(tuple)
).map(lambda t: (t[0], t[1], *t[2]))  # fmt: skip


def test_question_of_a_chain():
    q = question((37, 8, 5))
    assert (q.id, q.text, q.answer) == ("arithmetic/L2/37+8+5", "Compute 37+8+5.", "50")
    assert (q.source, q.answer_type, q.metadata) == ("arithmetic", "math", {"level": 2})


def test_traces():
    assert clean_trace((37, 8, 5, 9)) == r"<think>37+8=45+5=50+9=59</think>\boxed{59}"
    # A slip goes on from the wrong value: 37+8 written as 44, then 44+5=49.
    assert render_trace(37, [(8, 44), (5, 49)]) == r"<think>37+8=44+5=49</think>\boxed{49}"


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ((31, 2), True),  # level 1 asks for no carry
        ((31, 2, 3), False),  # 1+2, 3+3: none carries, level 2 asks for one
        ((38, 2, 3), True),  # 8+2 carries
        ((38, 2, 3, 9), True),  # 8+2 carries, 0+3 does not, 3+9 does: two of three
        ((38, 2, 3, 4), False),  # one of three
    ],
)
def test_level_k_has_k_minus_one_carries(terms, expected):
    assert qualifies(terms) is expected
    assert carries(38, 2) and not carries(37, 2)


def test_level_one_has_810_questions():
    assert count_questions(1) == {"train": 590, "held_out": 220}
    assert count_questions(1).total() == 810  # 90 first terms x 9 addends


@pytest.mark.parametrize("level", LEVELS)
def test_more_than_one_chain_in_twenty_qualifies(level):
    # `make_questions` counts a level only where more than a twentieth of all chains is asked for.
    assert min(count_questions(level).values()) * 20 > 90 * 9**level


@given(st.lists(st.sampled_from(LEVELS), min_size=1, max_size=4, unique=True), st.integers(0, 60), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_questions_are_distinct_right_and_of_their_split(levels, num_questions, seed):
    for split in ("train", "held_out"):
        questions = make_questions(levels, num_questions, seed=seed, split=split)
        assert len({q.id for q in questions}) == num_questions
        # Levels take turns, so each has its even share.
        assert [q.metadata["level"] for q in questions] == [levels[i % len(levels)] for i in range(num_questions)]
        for q in questions:
            terms = [int(term) for term in q.text.removeprefix("Compute ").removesuffix(".").split("+")]
            assert q.answer == str(sum(terms)) and split_of(q.text) == split
            assert len(terms) == q.metadata["level"] + 1 and qualifies(tuple(terms))
        assert questions == make_questions(levels, num_questions, seed=seed, split=split)


def test_splits_share_no_question_even_where_both_are_exhausted():
    train = {q.text for q in make_questions([1], 590, seed=0, split="train")}
    held_out = {q.text for q in make_questions([1], 220, seed=1, split="held_out")}
    assert len(train | held_out) == 810


def test_another_seed_draws_other_questions():
    ids = [tuple(q.id for q in make_questions([3], 20, seed=seed, split="train")) for seed in (0, 1)]
    assert ids[0] != ids[1]


@given(TERMS)
@settings(max_examples=50)
def test_split_depends_on_the_text_alone(terms):
    assert split_of(question(terms).text) == split_of("Compute " + "+".join(map(str, terms)) + ".")


def test_split_and_draws_are_the_same_in_another_process():
    script = (
        "from harness.data.arithmetic import *;"
        "print([split_of(f'Compute {a}+7.') for a in range(10, 30)]);"
        "print([q.text for q in make_questions([1, 4], 6, seed=5, split='train')])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout.decode()
        for seed in ("1", "2")
    }
    here = "\n".join(
        str(value)
        for value in (
            [split_of(f"Compute {a}+7.") for a in range(10, 30)],
            [q.text for q in make_questions([1, 4], 6, seed=5, split="train")],
        )
    )
    assert outputs == {here + "\n"}


def test_split_is_pinned():
    # The shipped weights were trained on this split. `printf "Compute 12+7." | sha256sum` starts with 58 (88 = 4 x 22).
    assert [a for a in range(10, 40) if split_of(f"Compute {a}+7.") == "held_out"] == [12, 13, 28, 32, 35, 38]


@pytest.mark.parametrize(
    ("levels", "num_questions", "split", "message"),
    [
        ([1], 221, "held_out", "level 1 has 220 held_out questions, 221 asked for"),
        ([1, 2], 1400, "train", "level 1 has 590 train questions, 700 asked for"),
        ([2], 10_000, "train", "level 2 has 4539 train questions"),
        ([5], 1, "train", "levels must be some of 1, 2, 3, 4"),
        ([], 1, "train", "levels must be some of 1, 2, 3, 4"),
        ([1], 1, "test", "split must be train or held_out"),
    ],
)
def test_impossible_requests_are_refused(levels, num_questions, split, message):
    with pytest.raises(UserError, match=message):
        make_questions(levels, num_questions, seed=0, split=split)
