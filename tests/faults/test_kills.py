"""Runs that are killed with SIGKILL, at every boundary of a step and at any time, end as the unbroken run does."""

from __future__ import annotations

import signal

import pytest

from harness.config.compose import compose
from harness.config.deployment import build_method
from harness.config.schema import from_hydra
from methods import registry
from tests.support.faults import Fault, Tally, random_faults, survive

METHODS = sorted(registry.built_in())
NUM_RANDOM, CHAIN = 50, 10
"""Kills at random times for each method, so many one after another in one run."""


RARE = ("checkpoint-pruned", "rollouts", "sampled-student", "sampled-teacher")
"""A relaunch need not come by these again: what was done before the kill is not done twice."""


def options(method: str) -> list[str]:
    """Two updates a step, teacher groups and candidate prompts out of few questions."""

    built = build_method(from_hydra(compose([f"method={method}", "student=tiny_xs"])))
    small = {
        "updates_per_step": 2, "group_size": 4, "teacher_group_size": 2, "augment_ratio": 0.5,
        "compress_max_tokens": 48, "hint_max_tokens": 48,
    }  # fmt: skip
    return [f"method={method}", *(f"method.{k}={v}" for k, v in small.items() if hasattr(built.config, k))]


PLACES = [("sampled-teacher", 2), ("stored", 3), ("update-1", 2), ("checkpoint-tensors", 1)]
"""While the teacher samples, after a stored step, between two updates, and while a checkpoint is written."""


@pytest.mark.parametrize(
    ("places", "steps"), [(PLACES[3:], 3), pytest.param(PLACES, 4, marks=pytest.mark.slow)], ids=["one", "four"]
)
def test_a_run_killed_several_times_is_the_unbroken_run(broken, places, steps):
    """`tests/faults/test_preempted_runs.py` kills between two updates, and those read a stored step."""
    run = broken(*options("zppo"), f"steps={steps}", "data.batch_size=3", "rollout.max_response_tokens=16")
    faults = [Fault(point=point, number=number) for point, number in places]
    assert survive(run.launcher, faults, run.folder, run.whole).kills == len(places)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_boundary_three_times(broken, method):
    """At the first time that a launch comes by it, three launches in a row, and in a run of its own at the last time.

    Two kills behind a stored step or a checkpoint are a step apart; others meet the same step again.
    """
    points = broken(*options(method)).points
    names = list(dict.fromkeys(points))
    assert {"stored", "update-1", "records", "checkpoint-tensors", "checkpoint-renamed", "model"} <= set(names)
    total = Tally()
    for point in names:
        faults = [[Fault(point=point)] * 3, [Fault(point=point, number=points.count(point))]]
        for chain in faults:
            run = broken(*options(method))
            tally = survive(run.launcher, chain, run.folder, run.whole)
            assert tally.kills == len(chain) or point in RARE, f"{point}: {tally}"
            total += tally
    print(f"\n{method}: {total} at {len(names)} boundaries ({', '.join(names)})")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_kills_at_random_times(broken, method):
    total = Tally()
    seed = 0
    while total.kills < NUM_RANDOM:
        run = broken(*options(method))
        total += survive(run.launcher, random_faults(CHAIN, 2.5, seed, [signal.SIGKILL]), run.folder, run.whole)
        seed += 1
    print(f"\n{method}: {total} at random times")
