"""The advantages against numbers derived by hand, and what every method has to hold."""

import pytest
from zppo_maxrl import MaxRL, maxrl_advantages

from harness.testing import conformance_test
from harness.types import Question, Rollout, RolloutGroup
from methods.base import plain_prompt


def group(*rewards: float) -> RolloutGroup:
    prompt = plain_prompt(Question(id="q", text="Compute 1+1.", answer="2"))
    rollouts = [
        Rollout(
            sampler="student", index=index, prompt_ids=[5], completion_ids=[6, 2], rollout_logprobs=[-0.5, -0.25],
            text="", finish_reason="stop", reward=reward,
        )
        for index, reward in enumerate(rewards)
    ]  # fmt: skip
    return RolloutGroup(uid=prompt.uid, prompt=prompt, rollouts=rollouts)


@pytest.mark.parametrize(
    ("rewards", "advantages"),
    [
        ([1, 0, 0, 0], [3, -1, -1, -1]),  # mean 1/4: (1 - 1/4) / (1/4) = 3
        ([1, 1, 0, 0], [1, 1, -1, -1]),
        ([1, 1, 1, 1, 0], [0.25, 0.25, 0.25, 0.25, -1]),  # mean 4/5: (1/5) / (4/5) = 1/4
        ([1, 1], [0, 0]),
        ([0, 0, 0], [0, 0, 0]),
        ([], []),
    ],
)
def test_advantages_literal(rewards, advantages):
    assert maxrl_advantages(rewards) == pytest.approx(advantages)


def test_groups_do_not_mix_and_the_tokens_carry_the_advantage():
    method = MaxRL(MaxRL.Config())
    samples = method.credit([group(1, 0, 0, 0), group(0, 0)])
    assert [sample.advantages for sample in samples] == [
        [0, 3, 3], [0, -1, -1], [0, -1, -1], [0, -1, -1], [0, 0, 0], [0, 0, 0],
    ]  # fmt: skip
    assert [sample.inert for sample in samples] == [False] * 4 + [True] * 2


def test_a_rollout_without_a_verdict_is_in_no_mean():
    """Of four one is ungraded: the mean is 1/3, and (1 - 1/3) / (1/3) = 2."""
    four = group(1, 0, 0, 0)
    four.rollouts[3].verdict = "ungraded"
    samples = MaxRL(MaxRL.Config()).credit([four])
    assert [sample.advantages[-1] for sample in samples] == pytest.approx([2, -1, -1, 0])


test_conformance = conformance_test(MaxRL)
