"""The gradient of an update over 2 and 4 ranks, with FSDP2 sharding on, is that of one process."""

from __future__ import annotations

import numpy as np
import pytest

from harness.config.compose import compose
from harness.config.deployment import build_method
from harness.config.schema import RunConfig, from_hydra
from tests.distributed import bodies
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.dist

SMALL = ["data.num_questions=40", "data.pool_size=null", "update.micro_batch_tokens=60", "update.max_grad_norm=1e9"]
GRPO, KD = ["method=grpo"], ["method=on_policy_kd"]
HYBRID_SEES = ["student=tiny_hybrid", "data.tasks=[bar_chart]"]
EVERY = [list(range(9)), []]


def config_of(overrides: list[str]) -> RunConfig:
    return from_hydra(compose([*overrides, "data.batch_size=8", "device=cpu"]))


def check(
    overrides: list[str],
    num_ranks: int,
    *,
    num: int = 9,
    masked: list[int] | None = None,
    shares: list[list[int]] | None = None,
    tolerance: float = 1e-5,
) -> None:
    """`masked` samples train no token; `shares` are the ranks', by default balanced ones."""
    seen = any("bar_chart" in line for line in overrides)
    config = config_of(overrides)
    method = build_method(config)
    one = bodies.of_one_process(config, method, num=num, seen=seen, masked=masked or [])
    ranks = run_ranks(num_ranks, bodies.of_ranks, overrides, num, seen, masked or [], shares)
    assert set().union(*(rank["rows"] for rank in ranks)) == set(one["gradient"])
    scale = max(float(value.abs().max()) for value in one["gradient"].values())
    assert scale > 0
    for name, expected in one["gradient"].items():
        found = np.concatenate([rank["rows"][name] for rank in ranks if name in rank["rows"]])
        assert found.shape == tuple(expected.shape), name
        assert np.abs(found - expected.numpy()).max() < tolerance * max(1.0, scale), name
    norms = [rank["report"].grad_norm for rank in ranks]
    assert len(set(norms)) == 1 and norms[0] == pytest.approx(one["row"]["grad_norm"], rel=max(tolerance, 1e-5))
    total = sum(rank["report"].sums.get("loss", 0.0) for rank in ranks)
    assert total == pytest.approx(one["row"]["loss"], abs=tolerance)


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize(
    "overrides",
    [["student=tiny_xs", *GRPO], ["student=tiny_xs", *KD], [*HYBRID_SEES, *GRPO], [*HYBRID_SEES, *KD]],
    ids=["policy_gradient", "jsd", "policy_gradient-hybrid-images", "jsd-hybrid-images"],
)
def test_gradient_of_one_process(overrides, num_ranks):
    check([*overrides, *SMALL], num_ranks)


def test_a_rank_with_an_empty_shard_takes_part():
    check(["student=tiny_xs", *GRPO, *SMALL], 2, shares=EVERY)


def test_a_rank_whose_samples_train_no_token_takes_part():
    check(["student=tiny_xs", *KD, *SMALL], 2, masked=[1, 3, 5], shares=[[0, 2, 4, 6, 7, 8], [1, 3, 5]])


def test_more_ranks_than_samples():
    check(["student=tiny_xs", *GRPO, *SMALL], 4, num=2)


@pytest.mark.parametrize("masked", [[], [0, 1, 3]], ids=["all trained", "some untrained"])
@pytest.mark.parametrize("old_logprobs", ["engine", "recompute"])
def test_rank_0_gives_the_trainer_what_one_process_does(old_logprobs, masked):
    """Old and present log-probabilities, metrics, the gap to the engine, the bad sample, and weights that have moved as
    often and no oftener. Ranks read every prompt for itself, whatever `update.share_prompts` says."""
    overrides = ["student=tiny_xs", *GRPO, *SMALL, f"update.old_logprobs={old_logprobs}", "update.max_grad_norm=0.05"]
    config = config_of(overrides)
    config.update.share_prompts = False
    one = bodies.alone(config, build_method(config), masked)
    first, second = run_ranks(2, bodies.commanded, overrides, masked)
    assert second is None and first.keys() == one.keys() and one["is_preempted"] and one["nonfinite"][0] == 2
    assert first["num_read"] == one["num_read"] and first["nonfinite"] == one["nonfinite"]
    for name in ("old", "present", "after"):
        assert first[name] == [pytest.approx(row, abs=2e-4) for row in one[name]], name
    assert first["present"] == first["after"] and one["present"] == one["after"]
    for ours, theirs in zip([*first["rows"], *first["gaps"]], [*one["rows"], *one["gaps"]], strict=True):
        ours, theirs = ({k: v for k, v in row.items() if k != "num_padded"} for row in (ours, theirs))
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    assert [bool(gap) for gap in one["gaps"]] == [True, True, True]


def test_gradient_checkpointing():
    check(["student=tiny_xs", *GRPO, *SMALL, "update.gradient_checkpointing=true"], 2)


def test_bf16_compute_has_fp32_gradients():
    """Layers are gathered in bf16: 8 significant bits. The sums over ranks are fp32."""
    check(["student=tiny_xs", "student.dtype=bfloat16", *GRPO, *SMALL], 2, tolerance=0.02)


@pytest.mark.parametrize("optimizer", ["adamw_bf16"])
def test_other_optimizers_work_on_shards(optimizer):
    check(["student=tiny_xs", *GRPO, *SMALL, f"update.optimizer={optimizer}"], 2)


def test_what_is_not_finite_on_one_rank_is_left_on_all_and_named():
    """Number 1 of rank 1 is bad: no weight moves anywhere, and the next update works."""
    shares = [[0, 2, 4], [1, 3]]
    first, second = run_ranks(2, bodies.nonfinite, ["student=tiny_xs", *GRPO, *SMALL], shares, 3)
    assert first["bad"].is_left and second["bad"].is_left
    assert first["bad"].nonfinite is None and second["bad"].nonfinite[0] == 1
    assert not first["moved"] and not second["moved"]
    assert first["good"].grad_norm == second["good"].grad_norm > 0


def test_a_teacher_that_one_rank_loses_leaves_the_update_on_all():
    """The others would wait for its backward pass."""
    overrides = ["student=tiny_xs", *KD, *SMALL]
    first, second = run_ranks(2, bodies.refused, overrides, [[0, 2, 4, 6], [1, 3, 5, 7]])
    assert first["bad"].is_left and second["bad"].is_left
    assert first["bad"].error is None and str(second["bad"].error) == "the teacher is lost"
    assert not first["moved"] and not second["moved"]
    assert first["good"].grad_norm == second["good"].grad_norm > 0


def test_a_signal_stops_all_ranks_where_weights_have_not_moved():
    """What is read behind a step's updates, by the probe and by alarms, is read to its end: half a step is no state."""
    for whole, begun, update in run_ranks(2, bodies.signalled, ["student=tiny_xs", *GRPO, *SMALL]):
        assert not whole.is_left and all(whole.logprobs) and len(whole.logprobs) == 2
        assert begun.is_left and update.is_left
        assert update.nonfinite is None and update.error is None
