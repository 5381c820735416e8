"""Control arms: the same number of rollouts without candidates, and rewards that are coin flips."""

from __future__ import annotations

import numpy as np
import pytest

from methods.controls import EqualTokens, RandomReward, RandomRewardConfig
from methods.hard import AugmentConfig
from methods.registry import MethodError, build

RIGHT, WRONG = ("yes", "42", 1.0), ("no", "7", 0.0)


def equal_tokens(**options) -> EqualTokens:
    return EqualTokens(
        AugmentConfig(**({"group_size": 4, "teacher_group_size": 2, "augment_ratio": 0.5, "tau": 0.75} | options))
    )


def random_reward(**options) -> RandomReward:
    return RandomReward(RandomRewardConfig(**({"group_size": 4} | options)))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def example():
    """N = 4, cap 2. `a` is easy; c (0/4), b (1/4) and r (2/4) are hard."""
    return {
        "a/plain": [RIGHT] * 4,
        "b/plain": [WRONG, RIGHT, WRONG, WRONG],
        "c/plain": [WRONG] * 4,
        "d/plain": [RIGHT] * 4,
        "r/plain": [RIGHT, RIGHT, WRONG, WRONG],
    }


# equal tokens


def test_the_budget_goes_to_the_hard_questions_in_turn(actors, batch_of, example):
    """3 hard, cap 2: 2 * 3 teacher rollouts and 4 * 2 on candidates are 14, in groups of 4 rounded up 4."""
    models, method = actors(example), equal_tokens()
    groups = method.collect(batch_of("a b c d", "r"), models, rng())
    assert models.log == [
        "student x4: a/plain b/plain c/plain d/plain r/plain",
        "student waited for",
        "student x4: c/extra/0 b/extra/0 r/extra/0 c/extra/1",
        "student waited for",
    ]
    assert [group.prompt.kind for group in groups] == ["plain"] * 5 + ["extra"] * 4
    assert groups[5].prompt.messages == groups[2].prompt.messages
    assert groups[5].prompt.question is groups[2].prompt.question
    uids = [group.uid for group in groups]
    assert [sample.uid for sample in method.credit(groups)] == [uid for uid in uids for _ in range(4)]


def test_nothing_hard_nothing_extra(actors, batch_of):
    models = actors({"a/plain": [RIGHT] * 4})
    assert [group.uid for group in equal_tokens().collect(batch_of("a"), models, rng())] == ["a/plain"]
    assert models.log == ["student x4: a/plain", "student waited for"]


def test_ties_are_ordered_by_the_generator(actors, batch_of):
    def order(seed):
        models = actors({})
        equal_tokens().collect(batch_of("a b c d e f"), models, rng(seed))
        return models.log[-2]

    assert order(0) == order(0)
    assert len({order(seed) for seed in range(8)}) > 4


@pytest.mark.parametrize(
    ("options", "num_hard", "cap", "groups"),
    [
        ({}, 6, 3, 6),  # (4 * 6 + 8 * 3) / 8
        ({}, 1, 3, 3),  # one question has a BCQ and an NCQ at most: (4 + 8 * 2) / 8 = 2.5
        ({}, 3, 0, 2),  # the teacher's rollouts alone: 12 / 8
        ({}, 0, 3, 0),
        ({"teacher_group_size": 8}, 5, 5, 10),
        ({"group_size": 16}, 4, 2, 3),  # (16 + 32) / 16
    ],
)
def test_number_of_extra_groups_by_hand(options, num_hard, cap, groups):
    assert EqualTokens(AugmentConfig(**options)).extra_groups(num_hard, cap) == groups


def test_zppo_costs_at_most_a_group_less(actors, batch_of):
    """Where the teacher solves every hard question, ZPPO's extra rollouts rounded up to groups are the control's."""
    from methods.zppo import ZPPO, ZPPOConfig

    options = {"group_size": 4, "teacher_group_size": 3, "augment_ratio": 0.5}
    for num_hard in range(6):
        names = [f"q{i}" for i in range(6)]
        replies = {f"{name}/plain": [WRONG if i < num_hard else RIGHT] * 4 for i, name in enumerate(names)}
        replies |= {f"{name}/teacher": [RIGHT] * 3 for name in names}
        theirs = ZPPO(ZPPOConfig(**options)).collect(batch_of(" ".join(names)), actors(replies), rng())
        mine = EqualTokens(AugmentConfig(**options)).collect(batch_of(" ".join(names)), actors(replies), rng())
        spent, control = (sum(len(g.rollouts) for g in groups[6:]) for groups in (theirs, mine))
        assert spent <= control < spent + 4


# random rewards


def test_advantages_follow_the_coin_and_the_record_keeps_the_grade(actors, batch_of, example):
    method = random_reward(advantage_normalization="none")
    groups = method.collect(batch_of("a b"), actors(example), rng())
    # default_rng(0).random(8) = .64 .27 .04 .02 | .81 .91 .61 .73, heads below 1/2
    flips = [[0.0, 1.0, 1.0, 1.0], [0.0] * 4]
    assert [[r.training_reward for r in group.rollouts] for group in groups] == flips
    assert [[r.reward for r in group.rollouts] for group in groups] == [[1.0] * 4, [0.0, 1.0, 0.0, 0.0]]
    assert [group.accuracy for group in groups] == [1.0, 0.25]
    samples = method.credit(groups)
    assert [s.advantages[-1] for s in samples] == [-0.75, 0.25, 0.25, 0.25] + [0.0] * 4
    assert [s.inert for s in samples] == [False] * 4 + [True] * 4


def test_the_coin_is_the_steps_generator(actors, batch_of):
    def flips(seed):
        groups = random_reward().collect(batch_of("a b c d"), actors({}), rng(seed))
        return [r.training_reward for group in groups for r in group.rollouts]

    assert flips(0) == flips(0)
    assert len({tuple(flips(seed)) for seed in range(8)}) == 8


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_probability_is_honoured(actors, batch_of, probability):
    """2,000 flips: five standard deviations."""
    batch = batch_of(" ".join(f"q{i}" for i in range(250)))
    groups = random_reward(group_size=8, reward_probability=probability).collect(batch, actors({}), rng())
    heads = sum(rollout.training_reward for group in groups for rollout in group.rollouts)
    assert abs(heads - 2000 * probability) <= 5 * (2000 * probability * (1 - probability)) ** 0.5


@pytest.mark.parametrize("probability", [-0.1, 1.1])
def test_a_probability_lies_between_0_and_1(probability):
    limit = "at least 0" if probability < 0 else "at most 1"
    with pytest.raises(MethodError, match=f"^method.reward_probability must be {limit}, got {probability}$"):
        build({"name": "x", "class": "grpo_random_reward", "reward_probability": probability})
