"""Rollouts that nobody could grade: out of mean and sigma, advantage 0, their tokens still in the denominator."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from harness.types import Prompt, Question, Rollout, RolloutGroup, comparable
from methods.contract import MethodError
from methods.grpo import GRPO
from methods.hard import TeacherAidedConfig
from methods.policy import PolicyGradientConfig, PolicyGradientMethod, training_rewards
from methods.samples import kind_metrics, sampled_by_student, teacher_metrics
from methods.teacher_response import TeacherResponse


@pytest.fixture
def group(rollout):
    """`group("a", "10?t")`: a student's group, a character a rollout: its reward, `?` for ungraded, `t` for timeout."""

    def make(uid: str, replies: str, sampler: str = "student", kind: str = "plain") -> RolloutGroup:
        rollouts = []
        for index, reply in enumerate(replies):
            made = rollout(sampler, index, ("", None, float(reply == "1")))
            verdict = {"?": "ungraded", "t": "timeout"}.get(reply, made.verdict)
            rollouts.append(dataclasses.replace(made, verdict=verdict))
        prompt = Prompt(uid=uid, question=Question(id=uid, text="", answer=""), messages=(), kind=kind)
        return RolloutGroup(uid=uid, prompt=prompt, rollouts=rollouts)

    return make


def advantages(method: PolicyGradientMethod, *groups: RolloutGroup) -> list[float]:
    return [sample.advantages[-1] for sample in method.credit(groups)]


def grpo(normalization: str) -> GRPO:
    return GRPO(PolicyGradientConfig(advantage_normalization=normalization))


@pytest.mark.parametrize(
    ("normalization", "expected"),
    [
        # The three that are graded have mean 1/3; with the fourth as a wrong one it would be 1/4.
        ("none", [2 / 3, -1 / 3, -1 / 3, 0.0]),
        # sigma = sqrt((4/9 + 1/9 + 1/9) / 3) = sqrt(2) / 3
        ("nontrivial", [math.sqrt(2), -math.sqrt(0.5), -math.sqrt(0.5), 0.0]),
        ("group", [math.sqrt(2), -math.sqrt(0.5), -math.sqrt(0.5), 0.0]),
        ("all", [math.sqrt(2), -math.sqrt(0.5), -math.sqrt(0.5), 0.0]),
    ],
)
def test_a_group_of_4_with_one_ungraded(group, normalization, expected):
    assert advantages(grpo(normalization), group("a", "100?")) == pytest.approx(expected, abs=1e-5)


def test_a_timeout_trains_as_a_wrong_answer(group):
    assert advantages(grpo("none"), group("a", "10t0")) == [0.75, -0.25, -0.25, -0.25]


def test_the_ungraded_are_not_in_sigma(group):
    # Of `a` three are graded, of `b` none, of `c` (1, 0) two, of `d` three: S has 3 + 2 values, and 3 zeros with "all".
    # The squares add up to 6/9 + 2/4 = 7/6: sigma = sqrt(7/30), with the zeros sqrt(7/48).
    groups = [group("a", "100?"), group("b", "????"), group("c", "1?0?"), group("d", "000?")]
    for normalization, sigma in (("nontrivial", math.sqrt(7 / 30)), ("all", math.sqrt(7 / 48))):
        centred = [2 / 3, -1 / 3, -1 / 3, 0, 0, 0, 0, 0, 0.5, 0, -0.5, 0, 0, 0, 0, 0]
        expected = [value / sigma for value in centred]
        assert advantages(grpo(normalization), *groups) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("replies", ["1???", "0???", "????"])
def test_fewer_than_two_graded_are_no_group(group, replies):
    """Neither hard nor easy: the accuracy is on no side of any tau."""
    made = group("a", replies)
    assert advantages(grpo("none"), made, group("b", "10")) == [0.0, 0.0, 0.0, 0.0, 0.5, -0.5]
    assert math.isnan(made.accuracy) and not made.accuracy < 0.5 and not made.accuracy >= 0.5


def test_two_graded_are_a_group_and_one_of_one_is(group):
    assert group("a", "10??").accuracy == 0.5 and group("a", "0???0").accuracy == 0.0
    assert group("a", "1").accuracy == 1.0 and len(comparable(group("a", "1").rollouts)) == 1
    assert math.isnan(group("a", "?").accuracy)
    assert group("a", "11", sampler="teacher").accuracy == 0.0  # it has none of the student's


def test_their_tokens_stay_in_the_denominator(group):
    samples = grpo("nontrivial").credit([group("a", "100?"), group("b", "1???")])
    assert [sample.denominator for sample in samples] == [2.0] * 8
    assert [sample.inert for sample in samples] == [False, False, False, True, True, True, True, True]


def test_what_is_right_and_what_may_be_shown_as_wrong(group):
    made = group("a", "10?t")
    assert [[r.index for r in found] for found in (made.correct(), made.wrong(), made.wrong("student"))] == [
        [0], [1], [1],
    ]  # fmt: skip
    made.rollouts[2].reward = 1.0
    assert [r.index for r in made.correct("student")] == [0] and made.accuracy == 1 / 3


class OverTheMean(PolicyGradientMethod):
    """A plugin's own advantages: (r - mean) / mean. It knows nothing of verdicts."""

    def advantages(self, groups):
        found = []
        for one in groups:
            rewards = training_rewards(sampled_by_student(one))
            mean = sum(rewards) / len(rewards)
            found.append([(reward - mean) / mean if mean else 0.0 for reward in rewards])
        return found


def test_a_plugin_that_forms_its_own_advantages_is_given_the_graded_ones(group):
    # Mean 1/3: (1 - 1/3) / (1/3) = 2. The second group would divide by no rollouts.
    method = OverTheMean(PolicyGradientConfig())
    groups = [group("a", "1?00"), group("b", "????"), group("c", "11")]
    assert advantages(method, *groups) == pytest.approx([2.0, 0.0, -1.0, -1.0, 0, 0, 0, 0, 0, 0])
    assert [len(one.rollouts) for one in groups] == [4, 4, 2]  # the groups themselves keep all


def test_a_plugin_whose_numbers_do_not_fit_the_graded_ones_is_told(group):
    class Fixed(PolicyGradientMethod):
        def advantages(self, groups):
            return [[1.0] * 4 for _ in groups]

    with pytest.raises(MethodError, match="gives 4 numbers for the 3 rollouts of group 0"):
        Fixed(PolicyGradientConfig()).credit([group("a", "1?00")])


def test_the_teachers_response_joins_what_is_graded(group):
    # Hard by 0 of 2 graded; with the teacher's 1 the mean is 1/3.
    joined, unknown = group("a", "0?0"), group("b", "?0?")
    joined.rollouts.append(dataclasses.replace(group("a", "1", sampler="teacher").rollouts[0], index=3))
    method = TeacherResponse(TeacherAidedConfig(advantage_normalization="none"))
    samples = method.credit([joined, unknown, group("a/t", "1?", sampler="teacher")])
    assert [sample.rollout.sampler for sample in samples] == ["student"] * 3 + ["teacher"] + ["student"] * 3
    assert [sample.advantages[-1] for sample in samples] == pytest.approx([-1 / 3, 0.0, -1 / 3, 2 / 3, 0, 0, 0])


def test_only_hard_questions_get_the_teachers_response(actors, batch_of):
    right, wrong = ("yes", "42", 1.0), ("no", "7", 0.0)
    models = actors(
        {"a/plain": [wrong] * 4, "b/plain": [wrong] * 4, "a/teacher": [right, wrong], "b/teacher": [right, wrong]},
        verdicts={"a/plain": {0: "ungraded"}, "b/plain": dict.fromkeys(range(3), "ungraded")},
    )
    method = TeacherResponse(TeacherAidedConfig(teacher_group_size=2, group_size=4))
    groups = method.collect(batch_of("a b"), models, np.random.default_rng(0))
    assert [(one.uid, len(one.rollouts)) for one in groups] == [("a/plain", 5), ("b/plain", 4), ("a/teacher", 2)]


def test_accuracies_of_metrics_are_over_the_graded(group):
    bcq = [group("a", "10??", kind="bcq"), group("b", "1???", kind="bcq"), group("c", "00", kind="bcq")]
    assert kind_metrics(bcq, "bcq", "ncq") == {"bcq/prompts": 3, "bcq/accuracy": 0.25, "ncq/prompts": 0}
    assert kind_metrics(bcq[1:2], "bcq") == {"bcq/prompts": 1}
    assert teacher_metrics([group("t", "1?0?", sampler="teacher")]) == {"teacher/accuracy": 0.5}
    assert teacher_metrics([group("t", "??", sampler="teacher")]) == {}


def test_a_rollout_is_graded_unless_it_says_otherwise():
    made = Rollout(
        sampler="student", index=0, prompt_ids=[1], completion_ids=[2], rollout_logprobs=[0.0], text="",
        finish_reason="stop",
    )  # fmt: skip
    assert made.is_graded and not dataclasses.replace(made, verdict="ungraded").is_graded
