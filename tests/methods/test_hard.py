"""Hard questions: which, in which order, how many, and what the teacher does on them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.types import Prompt, Question, RolloutGroup
from methods import hard
from methods.registry import MethodError, build


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def group(rollout):
    def make(name, num_right, *, size=4, sampler="student"):
        rollouts = [rollout(sampler, i, (f"{name}{i}", None, float(i < num_right))) for i in range(size)]
        prompt = Prompt(uid=f"{name}/plain", question=Question(id=name, text="", answer=""), messages=())
        return RolloutGroup(uid=prompt.uid, prompt=prompt, rollouts=rollouts)

    return make


@pytest.mark.clause("C002")
def test_hard_is_strictly_below_tau(group):
    groups = [group(f"q{i}", i) for i in range(5)]
    assert [g.uid for g in hard.hard_groups(groups, 0.5)] == ["q0/plain", "q1/plain"]
    assert [g.uid for g in hard.hard_groups(groups, 1.0)] == ["q0/plain", "q1/plain", "q2/plain", "q3/plain"]
    assert hard.hard_groups(groups, 0.0) == []


@pytest.mark.clause("C008")
@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=8), st.integers(0, 99))
def test_the_order_is_by_accuracy_and_depends_on_nothing_but_the_generator(group, accuracies, seed):
    groups = [group(f"q{i}", right) for i, right in enumerate(accuracies)]
    order = hard.ranked(groups, rng(seed))
    assert [g.accuracy for g in order] == sorted(right / 4 for right in accuracies)
    assert sorted(g.uid for g in order) == [g.uid for g in groups]
    assert [g.uid for g in order] == [g.uid for g in hard.ranked(groups, rng(seed))]


def test_every_order_of_a_tie_is_equally_likely(group):
    groups = [group(name, 0) for name in "abc"]
    seen = ["".join(g.uid[0] for g in hard.ranked(groups, rng(seed))) for seed in range(600)]
    assert len(set(seen)) == 6
    assert sum((seen.count(order) - 100) ** 2 / 100 for order in set(seen)) < 20.5  # 5 degrees of freedom, p = 0.001


@pytest.mark.clause("C008", "C012")
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100), st.integers(0, 400))
@example(29, 100)  # 0.29 * 100 is 28.999999999999996
def test_slots_are_the_floor_of_a_share_of_the_new_questions(batch_of, percent, num_new):
    batch = batch_of(" ".join(f"q{i}" for i in range(num_new)), "replayed questions do not count")
    assert hard.num_slots(percent / 100, batch) == percent * num_new // 100


def test_teacher_groups_are_fresh_and_in_the_order_given(actors, group):
    models = actors({})
    groups = hard.teacher_groups([group("b", 0), group("a", 1)], models, 3)
    assert models.log == ["teacher x3: b/teacher a/teacher", "teacher waited for"]
    assert [(g.uid, g.prompt.kind, len(g.rollouts)) for g in groups] == [
        ("b/teacher", "plain", 3), ("a/teacher", "plain", 3),
    ]  # fmt: skip
    assert hard.teacher_groups([], models, 3) == [] and len(models.log) == 2


@pytest.mark.clause("C007", "C085")
def test_a_right_trace_is_the_teachers(group):
    assert hard.right_trace(group("a", 0, sampler="teacher"), rng()) is None
    assert hard.right_trace(group("a", 4), rng()) is None  # the student's
    seen = [hard.right_trace(group("a", 3, sampler="teacher"), rng(seed)).text for seed in range(300)]
    assert sorted(set(seen)) == ["a0", "a1", "a2"]
    assert sum((seen.count(text) - 100) ** 2 / 100 for text in set(seen)) < 13.8  # 2 degrees of freedom, p = 0.001


def test_prompts_over_the_window_are_left_out_and_counted_by_kind(actors):
    question = Question(id="q", text="", answer="")
    prompts = [Prompt(uid=f"q/{kind}", question=question, messages=(), kind=kind) for kind in ("bcq", "ncq", "hint")]
    models = actors({}, too_long=("q/bcq", "q/hint"))
    assert hard.fitting(prompts, models) == [prompts[1]]
    assert models.counts == {"bcq/over_window": 1, "hint/over_window": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": -0.1}, "method.tau must be at least 0, got -0.1"),
        ({"tau": 1.1}, "method.tau must be at most 1, got 1.1"),
        ({"tau": math.nan}, "method.tau must be a number, got nan"),
        ({"replay_ratio": -0.1}, "method.replay_ratio must be at least 0, got -0.1"),
        ({"replay_ratio": 1.1}, "method.replay_ratio must be at most 1, got 1.1"),
        ({"group_size": 0}, "method.group_size must be greater than 0, got 0"),
        ({"updates_per_step": 0}, "method.updates_per_step must be greater than 0, got 0"),
        ({"buffer_capacity": 0}, "method.buffer_capacity must be greater than 0, got 0"),
        ({"dual_clip": 1.0}, "method.dual_clip must be greater than 1, got 1.0"),
        ({"teacher_group_size": 0}, "method.teacher_group_size must be greater than 0, got 0"),
        ({"augment_ratio": -0.1}, "method.augment_ratio must be at least 0, got -0.1"),
        ({"augment_ratio": 1.1}, "method.augment_ratio must be at most 1, got 1.1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    """Its own options, and those of each of its bases."""
    with pytest.raises(MethodError) as caught:
        build({"name": "x", "class": "grpo_equal_tokens"} | options)
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_ends_of_a_range_are_allowed(value):
    options = {"tau": value, "replay_ratio": value, "augment_ratio": value}
    config = build({"name": "x", "class": "grpo_equal_tokens"} | options).config
    assert (config.tau, config.replay_ratio, config.augment_ratio) == (value, value, value)
