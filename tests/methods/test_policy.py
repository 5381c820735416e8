"""GRPO: which tokens are trained, with which advantage."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from harness.types import Prompt, Question, RolloutGroup, TokenBatch
from methods.grpo import GRPO
from methods.policy import PolicyGradientConfig
from methods.registry import MethodError, build


def grpo(**options) -> GRPO:
    return GRPO(PolicyGradientConfig(**options))


def group(uid, rollouts):
    question = Question(id=uid, text="", answer="")
    return RolloutGroup(uid=f"{uid}/plain", prompt=Prompt(uid=uid, question=question, messages=()), rollouts=rollouts)


@pytest.mark.clause("C069")
def test_samples_as_literal_lists(rollout):
    mixed = [rollout("student", 0, ("", None, 1.0)), rollout("student", 1, ("", None, 0.0))]
    trivial = [rollout("student", 0, ("", None, 1.0)), rollout("student", 1, ("", None, 1.0))]
    samples = grpo(advantage_normalization="none").credit([group("a", mixed), group("b", trivial)])
    assert [s.uid for s in samples] == ["a/plain", "a/plain", "b/plain", "b/plain"]
    assert [s.token_ids for s in samples] == [[5, 6, 10, 2], [5, 6, 11, 2]] * 2
    assert [s.loss_mask for s in samples] == [[0, 0, 1, 1]] * 4
    assert [s.advantages for s in samples] == [[0, 0, 0.5, 0.5], [0, 0, -0.5, -0.5], [0.0] * 4, [0.0] * 4]
    assert [s.rollout_logprobs for s in samples] == [[0, 0, -0.5, -0.25]] * 4
    assert [s.inert for s in samples] == [False, False, True, True]
    assert [s.denominator for s in samples] == [2.0] * 4  # tokens of trivial groups stay in the denominator
    assert samples[0].rollout is mixed[0] and samples[0].old_logprobs is None


@pytest.mark.clause("C086")
def test_a_prefix_is_masked(rollout):
    given = dataclasses.replace(
        rollout("student", 0, ("", None, 1.0)),
        completion_ids=[7, 8, 9, 2],
        rollout_logprobs=[0.0, 0.0, -1.0, -2.0],
        num_prefix=2,
    )
    other = rollout("student", 1, ("", None, 0.0))
    sample, _ = grpo(advantage_normalization="none").credit([group("a", [given, other])])
    assert sample.token_ids == [5, 6, 7, 8, 9, 2]
    assert sample.loss_mask == [0, 0, 0, 0, 1, 1]
    assert sample.advantages == [0, 0, 0, 0, 0.5, 0.5]
    assert sample.rollout_logprobs == [0, 0, 0, 0, -1.0, -2.0]


def test_a_completion_that_is_all_prefix_is_inert(rollout):
    given = dataclasses.replace(rollout("student", 0, ("", None, 1.0)), num_prefix=2)
    sample, _ = grpo(advantage_normalization="none").credit(
        [group("a", [given, rollout("student", 1, ("", None, 0.0))])]
    )
    assert sample.inert and sample.num_trained == 0


def test_teacher_rollouts_are_neither_trained_nor_centred(rollout):
    teacher = rollout("teacher", 0, ("", None, 1.0))
    students = [rollout("student", 0, ("", None, 1.0)), rollout("student", 1, ("", None, 0.0))]
    method = grpo(advantage_normalization="none")
    samples = method.credit([group("t", [teacher] * 3), group("a", [*students, teacher])])
    assert [s.advantages[-1] for s in samples] == [0.5, -0.5]


def in_batch(number, uid, rewards, rollout, sampler="student"):
    made = group(uid, [rollout(sampler, i, ("", None, float(r))) for i, r in enumerate(rewards)])
    made.mini_batch = number
    return made


def test_advantages_of_a_mini_batch_alone(rollout):
    """Batch 0: +-1/2 over sigma 1/2. Batch 1: 3/4 and -1/4 over sqrt(3)/4. Over the step sigma is sqrt(1.25 / 6)."""
    rewards = [(0, "a", [1, 0]), (1, "b", [1, 0, 0, 0]), (None, "t", [1, 1]), (0, "c", [1, 1])]

    def advantages(**options):
        samplers = {"t": "teacher"}
        groups = [in_batch(n, uid, r, rollout, samplers.get(uid, "student")) for n, uid, r in rewards]
        return [sample.advantages[-1] for sample in grpo(**options).credit(groups)]

    root = math.sqrt(3)
    assert advantages(advantage_scope="mini_batch") == pytest.approx(
        [1, -1, root, -1 / root, -1 / root, -1 / root, 0, 0], rel=1e-5
    )
    # `all` counts the zeros of c: four values of squares 1/4, 1/4, 0, 0 give sigma sqrt(1/8)
    every = advantages(advantage_scope="mini_batch", advantage_normalization="all")
    assert every[:3] == pytest.approx([math.sqrt(2), -math.sqrt(2), root], rel=1e-5)
    sigma = math.sqrt(1.25 / 6)
    assert advantages() == pytest.approx(
        [0.5 / sigma, -0.5 / sigma, 0.75 / sigma, *[-0.25 / sigma] * 3, 0, 0], rel=1e-5
    )


def test_a_scope_shows_a_method_the_groups_that_are_not_trained(rollout):
    class Seen(GRPO):
        def advantages(self, groups):
            seen.append(" ".join(group.uid[0] for group in groups))
            return super().advantages(groups)

    for scope, expected in (("mini_batch", ["a t", "b t"]), ("step", ["a b t"])):
        seen: list[str] = []
        groups = [in_batch(0, "a", [1, 0], rollout), in_batch(1, "b", [1, 0], rollout)]
        groups.append(in_batch(None, "t", [1, 1], rollout, "teacher"))
        Seen(Seen.Config(advantage_scope=scope)).credit(groups)
        assert seen == expected


@pytest.mark.clause("C001")
def test_collect_is_one_plain_group_a_question(actors, batch_of):
    models = actors({})
    groups = grpo(group_size=3).collect(batch_of("a b", "r"), models, np.random.default_rng(0))
    assert [group.uid for group in groups] == ["a/plain", "b/plain", "r/plain"]
    assert models.log == ["student x3: a/plain b/plain r/plain", "student waited for"]


@pytest.mark.clause("C063", "C064")
def test_the_configured_clips_reach_the_loss():
    # ratio 1.5, A = 1: clipped at 1 + high; ratio 20, A = -1: bounded by the dual clip
    log_half = math.log(0.5)
    batch = TokenBatch(
        ids_N=torch.tensor([0, 0, 0]),
        advantages_N=torch.tensor([1.0, -1.0, -1.0]),
        old_logprobs_N=torch.tensor([log_half - math.log(1.5), log_half - math.log(20), log_half - math.log(0.5)]),
        rollout_logprobs_N=torch.zeros(3),
        sequence_N=torch.zeros(3, dtype=torch.long),
    )
    method = grpo(clip_ratio_low=0.1, clip_ratio_high=0.4, dual_clip=3.0)
    output = method.loss(torch.zeros(3, 2), batch, None)
    assert output.loss_N.tolist() == pytest.approx([-1.4, 3.0, 0.9], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 1}, "group_size must be at least 2: the advantage of a single rollout is always 0"),
        ({"dual_clip": 1.0}, "dual_clip must be greater than 1, got 1.0"),
        ({"clip_ratio_low": -0.1}, "clip_ratio_low must be at least 0, got -0.1"),
        ({"clip_ratio_high": -0.1}, "clip_ratio_high must be at least 0, got -0.1"),
        (
            {"advantage_normalization": "batch"},
            "normalization must be 'nontrivial', 'all', 'none' or 'group', got",
        ),
        ({"advantage_scope": "batch"}, "advantage_scope must be 'step' or 'mini_batch', got 'batch'"),
        ({"tau": 1.5}, "tau must be at most 1, got 1.5"),
    ],
)
def test_incoherent_options_are_refused(options, message):
    with pytest.raises(MethodError, match=message):
        build({"name": "x", "class": "grpo"} | options)


@pytest.mark.parametrize(
    ("given", "message"),
    [([[0.5]], "gives 1 numbers for the 2 rollouts of group 0"), ([], "gives 0 lists for 1 groups")],
)
def test_a_method_with_too_few_advantages_is_named(rollout, given, message):
    class Short(GRPO):
        def advantages(self, groups):
            return given

    sampled = group("q", [rollout("student", i, ("", None, 1.0)) for i in range(2)])
    with pytest.raises(MethodError, match=f"Short.advantages {message}"):
        Short(Short.Config()).credit([sampled])
