"""Off-policy and on-policy distillation, and supervised training: what is sampled and how tokens weigh."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from harness.data.replay import PromptReplayBuffer
from harness.training.metrics import plain_student_groups
from harness.types import Prompt, Question, RolloutGroup, TeacherDistribution, TokenBatch
from methods.distill import DistillConfig, OffPolicyKD, OffPolicyKDConfig, OnPolicyKD
from methods.losses import jsd_loss
from methods.registry import MethodError, build
from methods.sft import SFT, SFTConfig

RIGHT, WRONG = ("", None, 1.0), ("", None, 0.0)


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def tokens(ids: list[int]) -> TokenBatch:
    zeros_N = torch.zeros(len(ids))
    return TokenBatch(
        ids_N=torch.tensor(ids),
        advantages_N=zeros_N,
        old_logprobs_N=zeros_N,
        rollout_logprobs_N=zeros_N,
        sequence_N=zeros_N.long(),
    )


def of_length(rollout, length: int):
    return dataclasses.replace(rollout, completion_ids=[7] * length, rollout_logprobs=[-1.0] * length)


@pytest.mark.clause("C073", "C079")
def test_off_policy_starts_both_models_before_it_waits(actors, batch_of, generator):
    models = actors({})
    groups = OffPolicyKD(OffPolicyKDConfig(group_size=2)).collect(batch_of("a b", "r"), models, generator)
    assert models.log == [
        "student x2: a/plain b/plain r/plain",
        "teacher x4: a/teacher b/teacher r/teacher",
        "student waited for",
        "teacher waited for",
    ]
    assert [g.uid for g in groups] == ["a/plain", "b/plain", "r/plain", "a/teacher", "b/teacher", "r/teacher"]


@pytest.mark.clause("C074", "C075", "C076")
def test_off_policy_weights_by_hand(rollout):
    """Question a: right traces of 2 and 4 tokens; b: one of 1 token; c: none. Student rollouts are not trained."""

    def group(name, rollouts):
        prompt = Prompt(uid=name, question=Question(id=name, text="", answer=""), messages=())
        return RolloutGroup(uid=name, prompt=prompt, rollouts=rollouts)

    def teacher(index, reply, length):
        return of_length(rollout("teacher", index, reply), length)

    method = OffPolicyKD(OffPolicyKDConfig())
    groups = [
        group("a/plain", [rollout("student", 0, RIGHT)]),
        group("a/teacher", [teacher(0, RIGHT, 2), teacher(1, WRONG, 9), teacher(2, RIGHT, 4)]),
        group("b/teacher", [teacher(0, RIGHT, 1)]),
        group("c/teacher", [teacher(0, WRONG, 3)]),
    ]
    samples = method.credit(groups)
    assert [s.uid for s in samples] == ["a/teacher", "a/teacher", "b/teacher"]
    assert samples[0].weights == [0, 0, 1 / 4, 1 / 4]  # 1 / (2 tokens * 2 traces)
    assert samples[1].weights == [0, 0, 1 / 8, 1 / 8, 1 / 8, 1 / 8]
    assert samples[2].weights == [0, 0, 1.0]
    assert [s.norm for s in samples] == [0.5, 0.5, 1.0]
    assert [s.advantages for s in samples] == [None] * 3 and not any(s.inert for s in samples)
    # a teacher's log-probabilities are not the policy's
    assert [s.rollout_logprobs for s in samples] == [None] * 3
    # with token losses 1 and 3 in a's traces and 5 in b's: ((1 + 3) / 2 + 5) / 2 questions = 3.5
    total = sum(loss * sum(s.weights) for loss, s in zip([1, 3, 5], samples, strict=True))
    assert total / sum(s.denominator for s in samples) == 3.5
    assert method.metrics(groups) == {"teacher/accuracy": 3 / 5}


@pytest.mark.clause("C028")
@pytest.mark.parametrize(
    "method", [OffPolicyKD(OffPolicyKDConfig(group_size=2)), OnPolicyKD(DistillConfig(group_size=2))]
)
def test_the_students_own_rollouts_decide_what_is_replayed(actors, batch_of, generator, method):
    """a: the student is wrong and the teacher right; b: both are wrong; c: the student is right, the teacher wrong."""
    replies = {"a/plain": [WRONG, WRONG], "b/plain": [WRONG, WRONG], "c/plain": [RIGHT, WRONG]}
    replies |= {"a/teacher": [RIGHT] * 4, "b/teacher": [WRONG] * 4, "c/teacher": [WRONG] * 4}
    groups = method.collect(batch_of("a b c"), actors(replies), generator)
    buffer = PromptReplayBuffer(capacity=9, tau=0.5)
    events = buffer.update(plain_student_groups(groups))
    assert [(event.event, event.question_id) for event in events] == [("admit", "a"), ("admit", "b")]


@pytest.mark.clause("C077", "C079")
def test_on_policy_trains_every_student_rollout(actors, batch_of, generator):
    models, method = (
        actors({"a/plain": [RIGHT, RIGHT], "r/plain": [RIGHT, WRONG]}),
        OnPolicyKD(DistillConfig(group_size=2)),
    )
    groups = method.collect(batch_of("a", "r"), models, generator)
    assert models.log == ["student x2: a/plain r/plain", "student waited for"]
    samples = method.credit(groups)
    assert [s.token_ids for s in samples] == [[5, 6, 10, 2], [5, 6, 11, 2]] * 2
    assert [s.loss_mask for s in samples] == [[0, 0, 1, 1]] * 4
    assert [(s.weights, s.norm, s.advantages, s.inert) for s in samples] == [(None, None, None, False)] * 4


@pytest.mark.clause("C075", "C077")
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_both_distillations_use_the_configured_divergence(beta):
    torch.manual_seed(0)
    logits_NV, teacher_NV = torch.randn(3, 5), torch.randn(3, 5)
    for method in (OnPolicyKD(DistillConfig(jsd_beta=beta)), OffPolicyKD(OffPolicyKDConfig(jsd_beta=beta))):
        output = method.loss(logits_NV, tokens([0, 1, 2]), TeacherDistribution(logits_NV=teacher_NV))
        torch.testing.assert_close(output.loss_N, jsd_loss(logits_NV, teacher_NV, beta))
        entropy = torch.distributions.Categorical(logits=logits_NV).entropy().sum()
        torch.testing.assert_close(output.sums["entropy"], entropy)


def test_distillation_options_are_checked():
    with pytest.raises(MethodError, match=r"^method.jsd_beta must be at most 1, got 1.5$"):
        build({"name": "x", "class": "on_policy_kd", "jsd_beta": 1.5})
    with pytest.raises(MethodError, match=r"^method.teacher_group_size must be greater than 0, got 0$"):
        build({"name": "x", "class": "off_policy_kd", "teacher_group_size": 0})


# supervised training


def test_sft_demonstrates_the_boxed_gold_answer(actors, batch_of, generator):
    models, method = actors({}), SFT(SFTConfig())
    samples = method.credit(method.collect(batch_of("a b"), models, generator))
    assert models.log == ["demonstrate: \\boxed{gold a} | \\boxed{gold b}"]
    assert [s.loss_mask for s in samples] == [[0, 0, 1, 1]] * 2
    assert [(s.weights, s.norm, s.advantages, s.inert) for s in samples] == [(None, None, None, False)] * 2


def test_sft_template_is_an_option(actors, batch_of, generator):
    models = actors({})
    SFT(SFTConfig(template="<think></think>{answer} = \\boxed{{answer}}")).collect(batch_of("a"), models, generator)
    assert models.log == ["demonstrate: <think></think>gold a = \\boxed{gold a}"]


def test_sft_loss_is_cross_entropy():
    output = SFT(SFTConfig()).loss(torch.zeros(2, 4), tokens([0, 3]), None)
    assert output.loss_N.tolist() == pytest.approx([np.log(4)] * 2)
    assert float(output.sums["entropy"]) == pytest.approx(2 * np.log(4))


def test_sft_options_are_checked():
    with pytest.raises(ValueError, match=r"template must contain \{answer\}"):
        SFTConfig(template="\\boxed{}")
    with pytest.raises(ValueError, match="set replay=false"):
        SFTConfig(replay=True)
