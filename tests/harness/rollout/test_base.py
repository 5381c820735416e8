"""What all engines share: room for a completion, and the seeds of engines that draw by themselves."""

import dataclasses

import pytest

from harness.errors import UserError
from harness.rollout.base import Sampling, rollout_seed, room


def test_a_completion_ends_where_its_limit_or_the_window_does(prompt_of):
    prompt = prompt_of("q")
    assert room(prompt, 10, Sampling(max_new_tokens=5), 32) == 5
    assert room(prompt, 30, Sampling(max_new_tokens=5), 32) == 2
    prefixed = prompt_of("q", (7, 8, 9))  # the prefix is part of the completion
    assert room(prefixed, 28, Sampling(max_new_tokens=5), 32) == 4


def test_a_prompt_that_leaves_no_room_is_refused(prompt_of):
    with pytest.raises(UserError, match=r"has 32 tokens and the context window 32.*max_prompt_tokens"):
        room(prompt_of("q", (7, 8)), 30, Sampling(), 32)
    with pytest.raises(UserError, match=r"prefix.*has 2 tokens and a reply may have 2.*max_response_tokens"):
        room(prompt_of("q", (7, 8)), 3, Sampling(max_new_tokens=2), 32)


def test_a_groups_seed_follows_from_what_it_is_for():
    base = Sampling(seed=3, step=5)
    seed = rollout_seed(base, "student", "q/plain")
    assert 0 <= seed < 2**48
    others = [
        rollout_seed(dataclasses.replace(base, seed=4), "student", "q/plain"),
        rollout_seed(dataclasses.replace(base, step=6), "student", "q/plain"),
        rollout_seed(base, "teacher", "q/plain"),
        rollout_seed(base, "student", "q/bcq"),
    ]
    assert len({seed, *others}) == 5
    assert rollout_seed(dataclasses.replace(base, temperature=0.3, num_rollouts=9), "student", "q/plain") == seed
