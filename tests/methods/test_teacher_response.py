"""GRPO with a teacher's response in the group: who joins, and how nine rewards are centred."""

from __future__ import annotations

import math

import numpy as np
import pytest

from methods.hard import TeacherAidedConfig
from methods.teacher_response import TeacherResponse

RIGHT, WRONG = ("yes", "42", 1.0), ("no", "7", 0.0)


def method(**options) -> TeacherResponse:
    return TeacherResponse(TeacherAidedConfig(**({"teacher_group_size": 2} | options)))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def example():
    """`a` is easy, `b` has 2/8 and the teacher solves it, `c` 1/8 and it does not."""
    return {
        "replies": {
            "a/plain": [RIGHT] * 8,
            "b/plain": [RIGHT] * 2 + [WRONG] * 6,
            "c/plain": [RIGHT] + [WRONG] * 7,
            "b/teacher": [WRONG, ("theirs", "42", 1.0)],
            "c/teacher": [WRONG, WRONG],
        },
        "completions": {"b/teacher": [20, 21, 2]},
    }


def test_a_right_teacher_response_joins_as_the_ninth_member(actors, batch_of, example):
    models = actors(**example)
    groups = method().collect(batch_of("a b", "c"), models, rng())
    assert models.log == [
        "student x8: a/plain b/plain c/plain",
        "teacher x2: b/teacher c/teacher",
        "student waited for",
        "teacher waited for",
    ]
    assert [(group.uid, len(group.rollouts)) for group in groups] == [
        ("a/plain", 8), ("b/plain", 9), ("c/plain", 8), ("b/teacher", 2), ("c/teacher", 2),
    ]  # fmt: skip
    ninth = groups[1].rollouts[8]
    assert (ninth.sampler, ninth.index, ninth.text, ninth.reward) == ("teacher", 8, "theirs", 1.0)
    assert groups[3].rollouts[1].index == 1  # the teacher's own record is a copy
    assert groups[1].accuracy == 0.25  # mastery is the student's alone


def test_its_tokens_are_trained_with_the_advantage_of_nine(actors, batch_of, example):
    learner = method(advantage_normalization="none")
    samples = learner.credit(learner.collect(batch_of("a b", "c"), actors(**example), rng()))
    assert [sample.uid for sample in samples] == ["a/plain"] * 8 + ["b/plain"] * 9 + ["c/plain"] * 8
    # b: three right of nine, so 2/3 and -1/3; c: one right of eight, so 7/8 and -1/8
    found = [sample.advantages[-1] for sample in samples]
    assert found == pytest.approx([0.0] * 8 + [2 / 3] * 2 + [-1 / 3] * 6 + [2 / 3] + [7 / 8] + [-1 / 8] * 7)
    ninth = samples[16]
    assert ninth.token_ids == [5, 6, 20, 21, 2]
    assert ninth.loss_mask == [0, 0, 1, 1, 1]
    assert ninth.advantages == pytest.approx([0, 0, 2 / 3, 2 / 3, 2 / 3])
    assert ninth.rollout_logprobs is None and ninth.old_logprobs is None  # the student's own are computed
    assert samples[15].rollout_logprobs == [0, 0, -0.5, -0.25]
    assert not ninth.inert and ninth.rollout.sampler == "teacher"


def test_the_default_normalisation_pools_all_members(actors, batch_of, example):
    learner = method()
    samples = learner.credit(learner.collect(batch_of("a b", "c"), actors(**example), rng()))
    # sum of squares: b 3 * 4/9 + 6 * 1/9 = 2, c 49/64 + 7/64 = 7/8, over 9 + 8 rollouts; both sum to 0
    sigma = math.sqrt((2 + 7 / 8) / 17)
    assert samples[16].advantages[-1] == pytest.approx(2 / 3 / sigma, rel=1e-5)
    assert samples[17].advantages[-1] == pytest.approx(7 / 8 / sigma, rel=1e-5)


def test_a_group_of_wrong_rollouts_learns_from_the_teacher_alone(actors, batch_of):
    """Eight wrong and one right: 8/9 and -1/9. Without the teacher the group would be trivial."""
    learner = method(advantage_normalization="none")
    samples = learner.credit(learner.collect(batch_of("a"), actors({"a/teacher": [RIGHT, RIGHT]}), rng()))
    assert [s.advantages[-1] for s in samples] == pytest.approx([-1 / 9] * 8 + [8 / 9])


def test_which_right_response_joins_is_drawn_uniformly(actors, batch_of):
    replies = {"a/teacher": [(f"t{i}", "42", float(i != 1)) for i in range(4)]}
    seen = [
        method(teacher_group_size=4).collect(batch_of("a"), actors(replies), rng(seed))[0].rollouts[8].text
        for seed in range(300)
    ]
    assert sorted(set(seen)) == ["t0", "t2", "t3"]
    # 100 each; chi-square, 2 degrees of freedom, p = 0.001
    assert sum((seen.count(text) - 100) ** 2 / 100 for text in set(seen)) < 13.8


def test_metrics_by_hand(actors, batch_of, example):
    learner = method()
    groups = learner.collect(batch_of("a b", "c"), actors(**example), rng())
    assert learner.metrics(groups) == {"teacher/joined": 1.0, "teacher/accuracy": 0.25}  # 1 of 4
    assert learner.metrics(groups[:1]) == {"teacher/joined": 0.0}


def test_teacher_tokens_are_declared():
    assert TeacherResponse.trained_samplers == {"student", "teacher"}
