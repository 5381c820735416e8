"""GRPO with prefixes (Alg. 6) on scripted models: which tokens are given, and that they are not trained."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.prefix import Prefix, PrefixConfig, first_tokens
from methods.registry import MethodError, build

CLOSING = (
    "Work it out first in an inner monologue, which must stand inside <think> </think>. "
    "Then state the final answer, which must stand in \\boxed{}."
)
BOX = 99  # what the scripted actors read as a complete box
RIGHT, WRONG = ("yes", "42", 1.0), ("no", "7", 0.0)


def prefix(**options) -> Prefix:
    return Prefix(PrefixConfig(**({"group_size": 4, "teacher_group_size": 2, "augment_ratio": 0.5} | options)))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def example():
    """N = 4, two kept. The teacher's traces for b have 7 tokens and the end token 2, those for c one and the end."""
    return {
        "replies": {
            "a/plain": [RIGHT] * 4,
            "b/plain": [WRONG, RIGHT, WRONG, WRONG],
            "c/plain": [WRONG] * 4,
            "d/plain": [RIGHT] * 4,
            "b/teacher": [WRONG, RIGHT],
            "c/teacher": [RIGHT, RIGHT],
            "b/prefix": [RIGHT, RIGHT, RIGHT, WRONG],
        },
        "completions": {"b/teacher": [31, 32, 33, 34, 35, 36, 37, 2]},
    }


@pytest.mark.clause("C085")
def test_the_first_tokens_of_a_right_trace_are_given(actors, batch_of, example):
    models = actors(**example)
    groups = prefix().collect(batch_of("a b c d"), models, rng())
    assert models.log == [
        "student x4: a/plain b/plain c/plain d/plain",
        "student waited for",
        "teacher x2: c/teacher b/teacher",
        "teacher waited for",
        "student x4: b/prefix",
        "student waited for",
    ]
    assert [group.uid for group in groups[-3:]] == ["c/teacher", "b/teacher", "b/prefix"]
    prompt = models.prompts["b/prefix"]
    assert prompt.prefix_ids == (31, 32)  # floor(0.4 * 7): with the end token it would be floor(3.2)
    assert prompt.kind == "prefix"
    assert prompt.messages == ({"role": "user", "content": f"Q b?\n\n{CLOSING}"},)
    assert models.counts == {"prefix/empty": 1}  # c: floor(0.4 * 1)


@pytest.mark.clause("C080")
def test_the_teacher_is_asked_about_the_hardest_alone(actors, batch_of, example):
    """floor(0.25 * 4) = 1 of two hard questions: c has 0/4, b has 1/4."""
    models = actors(**example)
    prefix(augment_ratio=0.25).collect(batch_of("a b c d"), models, rng())
    assert models.log[2:] == ["teacher x2: c/teacher", "teacher waited for"]


@pytest.mark.clause("C086")
def test_the_prefix_of_every_rollout_is_masked(actors, batch_of, example):
    method = prefix(advantage_normalization="none")
    groups = method.collect(batch_of("a b c d"), actors(**example), rng())
    samples = [sample for sample in method.credit(groups) if sample.uid == "b/prefix"]
    assert [sample.token_ids for sample in samples] == [[5, 6, 31, 32, 10 + i, 2] for i in range(4)]
    assert [sample.loss_mask for sample in samples] == [[0, 0, 0, 0, 1, 1]] * 4
    # rewards 1 1 1 0
    assert [sample.advantages for sample in samples] == [[0, 0, 0, 0, 0.25, 0.25]] * 3 + [[0, 0, 0, 0, -0.75, -0.75]]
    assert [sample.rollout_logprobs for sample in samples] == [[0, 0, 0, 0, -0.5, -0.25]] * 4
    assert [sample.denominator for sample in samples] == [2.0] * 4
    # of the teacher's 4 rollouts 3 are right
    assert method.metrics(groups) == {"prefix/prompts": 1, "prefix/accuracy": 0.75, "teacher/accuracy": 0.75}


def test_a_prefix_that_leaves_no_room_is_counted(actors, batch_of, example):
    models = actors(**example, too_long=("b/prefix",))
    groups = prefix().collect(batch_of("a b c d"), models, rng())
    assert groups[-1].uid == "b/teacher" and models.log[-1] == "teacher waited for"
    assert models.counts == {"prefix/empty": 1, "prefix/over_window": 1}


@pytest.fixture
def two_traces(actors):
    """A teacher with two right traces of ten tokens: the box is the second token of the first, the last of the second;
    with `both`, the second of both."""

    def make(replies, *, both=False):
        class Teacher(actors):
            def teacher(self, prompts, num_rollouts):
                stream = super().teacher(prompts, num_rollouts)
                for group in stream.list():
                    early, late = [31, BOX, *range(32, 40), 2], [*range(41, 50), BOX, 2]
                    group.rollouts[0].completion_ids, group.rollouts[1].completion_ids = early, early if both else late
                return stream

        return Teacher(replies)

    return make


def test_a_trace_whose_prefix_is_an_answer_is_passed_over_for_another(two_traces, batch_of):
    """floor(0.4 * 10) = 4 tokens. Whatever is drawn, the second trace is used, and the first is counted once."""
    for seed in range(8):
        models = two_traces({"a/teacher": [RIGHT, RIGHT]})
        prefix(augment_ratio=1.0).collect(batch_of("a"), models, rng(seed))
        assert models.prompts["a/prefix"].prefix_ids == (41, 42, 43, 44)
        assert models.counts == {"prefix/boxed": 1}


def test_without_another_trace_there_is_no_prefix(two_traces, batch_of):
    models = two_traces({"a/teacher": [RIGHT, RIGHT]}, both=True)
    groups = prefix(augment_ratio=1.0).collect(batch_of("a"), models, rng())
    assert [group.uid for group in groups] == ["a/plain", "a/teacher"] and models.counts == {"prefix/boxed": 2}
    # a wrong trace is none to pass over, and one token of a share of 0.1 is no box yet
    models = two_traces({"a/teacher": [WRONG, RIGHT]})
    prefix(augment_ratio=1.0, prefix_ratio=0.1).collect(batch_of("a"), models, rng())
    assert models.prompts["a/prefix"].prefix_ids == (41,) and models.counts == {}


@pytest.mark.clause("C081")
def test_a_question_without_a_right_trace_gets_no_prefix(actors, batch_of, example):
    models = actors(example["replies"] | {"b/teacher": [WRONG, WRONG]}, completions=example["completions"])
    groups = prefix().collect(batch_of("a b c d"), models, rng())
    assert {group.prompt.kind for group in groups} == {"plain"} and models.counts == {"prefix/empty": 1}


@pytest.mark.clause("C085")
def test_first_tokens_by_hand(rollout):
    def tokens(ids, ratio, finish):
        return first_tokens(dataclasses.replace(rollout("teacher", 0, RIGHT, (), ids), finish_reason=finish), ratio)

    assert tokens([7, 8, 9, 5, 4, 2], 0.4, "stop") == (7, 8)  # the end token is none of L = 5
    assert tokens([7, 8, 9, 5, 4], 0.4, "length") == (7, 8)  # cut off: all five are
    assert tokens([7, 8, 9, 5, 4], 0.4, "stop") == (7,)
    assert tokens([2], 0.9, "stop") == ()
    assert tokens(list(range(100)), 0.29, "length") == tuple(range(29))  # 0.29 * 100 is 28.999999999999996


@pytest.mark.clause("C085")
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 99), st.sampled_from(["stop", "length"]))
def test_the_prefix_is_the_floor_of_its_share_and_never_the_whole_trace(rollout, length, percent, finish):
    ids = list(range(3, 3 + length)) + [2] * (finish == "stop")
    trace = dataclasses.replace(rollout("teacher", 0, RIGHT, (), ids), finish_reason=finish)
    assert first_tokens(trace, percent / 100) == tuple(ids[: percent * length // 100])
    assert len(first_tokens(trace, percent / 100)) < length


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_share_that_gives_nothing_or_everything_is_refused(ratio):
    limit = "less than 1" if ratio >= 1 else "greater than 0" if ratio <= 0 else "a number"
    with pytest.raises(MethodError, match=f"^method.prefix_ratio must be {limit}, got {ratio}$"):
        build({"name": "x", "class": "prefix", "prefix_ratio": ratio})
