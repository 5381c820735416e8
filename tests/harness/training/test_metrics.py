"""The numbers of a step, derived by hand."""

import pytest

from harness.training import metrics
from harness.types import Prompt, Question, Rollout, RolloutGroup, TrainingSample


def group(name, rewards, *, kind="plain", sampler="student", replayed=False, finish="stop", verdict="wrong"):
    prompt = Prompt(uid=f"{name}/{kind}", question=Question(id=name, text="", answer=""), messages=(), kind=kind)
    rollouts = [
        Rollout(
            sampler=sampler, index=i, prompt_ids=[1, 2], completion_ids=[3] * (i + 1), rollout_logprobs=[0.0] * (i + 1),
            text="", finish_reason=finish, reward=reward, verdict=verdict,
        )
        for i, reward in enumerate(rewards)
    ]  # fmt: skip
    return RolloutGroup(uid=prompt.uid, prompt=prompt, rollouts=rollouts, replayed=replayed)


def test_group_metrics_by_hand():
    groups = [
        group("a", [1.0, 0.0]),
        group("b", [0.0, 0.0], finish="length", verdict="unparsable"),
        group("c", [1.0, 1.0], replayed=True),
        group("a", [1.0, 0.0], kind="bcq"),
        group("b", [1.0, 1.0], sampler="teacher"),
    ]
    assert metrics.group_metrics(groups) == {
        "group/num_plain": 3.0,
        "group/num_student": 4.0,
        "group/zero_std_frac": 0.5,  # b and c of a, b, c, a/bcq
        "rollout/accuracy": 0.25,  # (1/2 + 0) / 2: the replayed group and the teacher's are not in it
        "rollout/truncated_frac": 0.5,
        "rollout/unparsable_frac": 0.5,
        "rollout/timeout_frac": 0.0,
        "rollout/response_tokens": 1.5,
        "replay/accuracy": 1.0,
    }
    assert [g.uid for g in metrics.plain_student_groups(groups)] == ["a/plain", "b/plain", "c/plain"]


def test_sample_metrics_and_flops_by_hand():
    samples = [
        TrainingSample(uid="a", token_ids=[1, 2, 3], loss_mask=[0, 1, 1], advantages=[0, 2.0, 2.0]),
        TrainingSample(uid="a", token_ids=[1, 2, 3, 4], loss_mask=[0, 1, 1, 1], advantages=[0, -1.0, -1.0, -1.0]),
        TrainingSample(uid="b", token_ids=[1, 2], loss_mask=[0, 1], advantages=[0, 0.0], inert=True),
    ]
    row = metrics.sample_metrics(samples)
    assert row["train/num_tokens"] == 6 and row["train/num_samples"] == 3
    assert row["train/inert_frac"] == pytest.approx(1 / 3) == row["train/positive_advantage_frac"]
    counts = {"tokens/student_generated": 10.0, "tokens/student_prompt": 5.0, "tokens/teacher_generated": 2.0}
    assert metrics.flops(counts, samples, student=100, teacher=1000, teacher_scores=True) == {
        "flops/student_generation": 2 * 100 * 15,
        "flops/teacher_generation": 2 * 1000 * 2,
        "flops/student_update": 6 * 100 * 7,  # 3 + 4 tokens; the inert sample is not computed
        "flops/teacher_scoring": 2 * 1000 * 7,
    }
