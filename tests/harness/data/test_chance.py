"""What chance alone graduates: numbers by hand, an identity, and policies that do not learn."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.chance import FrozenPolicy
from harness.data.replay import PromptReplayBuffer
from harness.types import Prompt, Question, Rollout, RolloutGroup


def policy(*accuracies: float, group_size: int = 2) -> FrozenPolicy:
    frozen = FrozenPolicy()
    for accuracy in accuracies:
        frozen.see(accuracy, group_size)
    return frozen


@pytest.mark.parametrize(
    ("seen", "accuracy", "num_groups", "chance"),
    [
        # 0 of 2 seen: p is 0 with weight 1, 0.5 with weight 1/4: 4/5 and 1/5. P(X >= 1) is 0 and 3/4.
        ((0.0, 0.5), 0.0, 1, 0.15),
        # Twice 0 of 2: weights 1 and 1/16, so 16/17 and 1/17.
        ((0.0, 0.5), 0.0, 2, 0.75 / 17),
        # Shown twice as often, p = 0 has twice the weight: 8/9 and 1/9.
        ((0.0, 0.0, 0.5), 0.0, 1, 0.75 / 9),
        # 1 of 4 right: neither 0 nor 1 explains it.
        ((0.0, 0.5, 1.0), 0.25, 2, 0.75),
        ((0.0, 1.0), 0.25, 2, 1 - 0.75**2),  # nothing does: p is the mean
        ((), 0.25, 2, 1 - 0.75**2),
        ((0.0,), 0.0, 1, 0.0),
    ],
)
def test_chances_by_hand(seen: Sequence[float], accuracy: float, num_groups: int, chance: float) -> None:
    found = policy(*seen).chance(accuracy, num_groups=num_groups, group_size=2, tau=0.5)
    assert found == pytest.approx(chance, rel=1e-12)


def test_the_notes_arithmetic() -> None:
    """Answers that are right with p = 0.3 pass 4 of 8 with probability 0.19 at a visit, 0.73 in six."""
    once = policy(0.3, group_size=10).chance(0.3, num_groups=1, group_size=8, tau=0.5)
    by_hand = sum(math.comb(8, m) * 0.3**m * 0.7 ** (8 - m) for m in (4, 5, 6, 7, 8))
    assert once == pytest.approx(by_hand) and round(once, 2) == 0.19 and round(1 - (1 - once) ** 6, 2) == 0.73


def test_hundreds_of_answers_do_not_underflow() -> None:
    assert policy(0.0, 0.25, 0.5, group_size=8).chance(0.25, num_groups=500, group_size=8, tau=0.5) == pytest.approx(
        policy(0.25, group_size=8).chance(0.25, num_groups=1, group_size=8, tau=0.5)
    )


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.integers(0, 4), st.integers(1, 3))
def test_a_chance_is_a_probability_that_grows_with_what_was_right(seen: list[int], right: int, num_groups: int) -> None:
    frozen = policy(*(k / 4 for k in [*seen, 1, 2]), group_size=4)
    chances = [frozen.chance(k / 4, num_groups=num_groups, group_size=4, tau=0.5) for k in range(5)]
    assert all(-1e-12 <= chance <= 1 + 1e-12 for chance in chances)
    assert chances == sorted(chances)
    assert (
        FrozenPolicy(json.loads(json.dumps(frozen.seen()))).chance(
            right / 4, num_groups=num_groups, group_size=4, tau=0.5
        )
        == chances[right]
    )


def group(name: str, rewards: Sequence[float], *, replayed: bool) -> RolloutGroup:
    rollouts = [
        Rollout(
            sampler="student", index=i, prompt_ids=[1], completion_ids=[2], rollout_logprobs=[0.0], text="",
            finish_reason="stop", reward=reward,
        )
        for i, reward in enumerate(rewards)
    ]  # fmt: skip
    prompt = Prompt(uid=name, question=Question(id=name, text=name, answer="1"), messages=())
    return RolloutGroup(uid=name, prompt=prompt, rollouts=rollouts, replayed=replayed)


def live(num_steps: int, gain: float, seed: int = 0) -> PromptReplayBuffer:
    """A run of 96 new questions and 24 replayed ones a step, with four chances of a right answer.

    Each time that a question is met again its chance is larger by `gain`.
    """
    rng, buffer = random.Random(seed), PromptReplayBuffer(capacity=1000, tau=0.5)
    chances: dict[str, float] = {}

    def answers(name: str) -> list[float]:
        return [float(rng.random() < chances[name]) for _ in range(8)]

    for step in range(num_steps):
        new = [f"{step}/{i}" for i in range(96)]
        chances |= {name: (0.0, 0.1, 0.3, 0.8)[i % 4] for i, name in enumerate(new)}
        drawn = buffer.draw(num_new=96, ratio=0.25, exclude=(), rng=np.random.default_rng([seed, step]))
        again = [entry.question.id for entry in drawn]
        chances |= {name: min(1.0, chances[name] + gain) for name in again}
        buffer.update(
            [group(name, answers(name), replayed=False) for name in new]
            + [group(name, answers(name), replayed=True) for name in again]
        )
    return buffer


def graduated(buffer: PromptReplayBuffer) -> int:
    return sum(number for (event, *_), number in buffer.totals.items() if event == "graduate")


def test_a_policy_that_does_not_learn_graduates_what_is_expected_of_it_and_one_that_learns_more() -> None:
    frozen = [live(30, 0.0, seed) for seed in range(2)]
    found, expected = sum(map(graduated, frozen)), sum(sum(buffer.chances.values()) for buffer in frozen)
    # A count of independent events has at most the variance of its mean. The accuracies of groups of 8 are spread a
    # little wider than the chances that they are drawn with: a tenth is left for that.
    assert found > 60 and abs(found - expected) < 2.5 * math.sqrt(expected) + 0.1 * expected
    learning = live(30, 0.2)
    assert graduated(learning) > 3 * sum(learning.chances.values())


def test_groups_are_as_large_as_what_is_graded_of_them() -> None:
    """One of 3 graded rollouts is right, and p = 1/3 is all that was seen: 2 or 3 of 3 have chance 6/27 + 1/27."""
    buffer = PromptReplayBuffer(capacity=9, tau=0.5)
    for replayed in (False, True):
        met = group("a", [1.0, 0.0, 0.0, 1.0], replayed=replayed)
        met.rollouts[3].verdict = "ungraded"
        buffer.update([met])
    assert buffer.state_dict()["seen"] == [[1 / 3, 1]]
    assert buffer.chances == {(1 / 3, 1): pytest.approx(7 / 27)}


def test_a_run_that_goes_on_expects_what_the_unbroken_one_does() -> None:
    buffer = live(4, 0.0)
    state = json.loads(json.dumps(buffer.state_dict()))
    copy = PromptReplayBuffer(capacity=1000, tau=0.5)
    names = [row["question"] for row in state["entries"]]
    copy.load_state_dict(state, {name: Question(id=name, text=name, answer="1") for name in names})
    assert copy.state_dict() == buffer.state_dict()
    step = [group(name, [1.0] * (i % 9) + [0.0] * (8 - i % 9), replayed=True) for i, name in enumerate(names[:40])]
    assert copy.update(step) == buffer.update(step) and copy.chances == buffer.chances


def test_the_state_of_an_earlier_version_is_taken() -> None:
    state = {
        "entries": [{"question": "a", "entry_accuracy": 0.25, "visits": 1}],
        "totals": [["admit", 0.25, 0, 1], ["revisit", 0.25, 1, 1]],
    }
    buffer = PromptReplayBuffer(capacity=4, tau=0.5)
    buffer.load_state_dict(state, {"a": Question(id="a", text="a", answer="1")})
    (event,) = buffer.update([group("a", [1.0] * 4 + [0.0] * 4, replayed=True)])
    # Nothing was seen of others: p is the mean of the two groups that it had, 1/4.
    by_hand = sum(math.comb(8, m) * 0.25**m * 0.75 ** (8 - m) for m in range(4, 9))
    assert (event.event, event.visits) == ("graduate", 2)
    assert buffer.chances == {(0.25, 2): pytest.approx(by_hand)}
