"""What `credit` has returned, held against the step that it was given: whose samples they are, and who sampled them."""

from __future__ import annotations

from collections.abc import Sequence

from harness.types import RolloutGroup, Sampler, TrainingSample
from methods.base import Method, MethodError

Key = tuple[str, Sampler, int]
"""Uid of a group, sampler, and index of a rollout among those of its sampler."""


def check_groups(method: Method, groups: Sequence[RolloutGroup]) -> None:
    """Raises MethodError where two groups of a method, or two rollouts of a group, have the same name."""
    uids: set[str] = set()
    for group in groups:
        keys = [(rollout.sampler, rollout.index) for rollout in group.rollouts]
        if group.uid in uids or len(set(keys)) < len(keys):
            what = "two groups" if group.uid in uids else "two rollouts of one sampler and index in the group"
            raise MethodError(
                f"{_name(method)}.collect returns {what} '{group.uid}': give each prompt a uid of its own in the step"
            )
        uids.add(group.uid)


def check_samples(
    method: Method, groups: Sequence[RolloutGroup], samples: Sequence[TrainingSample]
) -> dict[str, float]:
    """`train/unrecorded_samples`: how many samples name no rollout, so that the records cannot say it was trained.

    Raises MethodError for a sample of a group or a rollout that the step does not have. So it does for trained tokens
    of a sampler that the method does not declare (`trained_samplers`).
    """
    known: set[Key] = {(group.uid, r.sampler, r.index) for group in groups for r in group.rollouts}
    uids = {group.uid for group in groups}
    dealt = {group.uid for group in groups if method.is_trained(group)}
    for sample in samples:
        rollout = sample.rollout
        if sample.uid not in uids:
            raise MethodError(
                f"{_name(method)}.credit trains a sample of '{sample.uid}', and the step has no group of this uid: "
                "give a sample the uid of its group"
            )
        if rollout is not None and (sample.uid, rollout.sampler, rollout.index) not in known:
            raise MethodError(
                f"{_name(method)}.credit trains rollout {rollout.index} of the {rollout.sampler} of '{sample.uid}', "
                "which the step does not have: keep sampler and index of a rollout that is copied"
            )
        if rollout is not None and sample.num_trained and rollout.sampler not in method.trained_samplers:
            raise MethodError(
                f"{_name(method)}.credit trains tokens of the {rollout.sampler}: declare it in trained_samplers "
                f"(now {', '.join(sorted(method.trained_samplers))}), or mask them"
            )
        if sample.uid not in dealt:
            raise MethodError(
                f"{_name(method)}.credit trains a sample of '{sample.uid}', a group that {_name(method)}.is_trained "
                "leaves out, so that it is in no mini-batch: let is_trained say yes to it"
            )
    return {"train/unrecorded_samples": float(sum(sample.rollout is None for sample in samples))}


def _name(method: Method) -> str:
    return type(method).__name__
