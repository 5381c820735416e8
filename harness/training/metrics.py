"""The numbers of a rollout step, one definition each (METHOD section 9; docs/run_folder.md lists them)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import psutil

from harness.replay import BufferEvent, PromptReplayBuffer
from harness.types import Rollout, RolloutGroup, TrainingSample


def group_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Accuracy, truncation and length of the student's rollouts. `rollout/*` are the plain groups of new questions."""
    plain = [g for g in groups if _plain(g)]
    new = [g for g in plain if not g.replayed]
    replayed = [g for g in plain if g.replayed]
    student = [g for g in groups if _sampled_by_student(g)]
    metrics = {
        "group/num_plain": float(len(plain)),
        "group/num_student": float(len(student)),
        "group/zero_std_frac": _mean([len({r.reward for r in g.rollouts}) == 1 for g in student]),
    }
    if new:
        rollouts = [r for g in new for r in g.rollouts]
        metrics |= {
            "rollout/accuracy": _mean([g.accuracy for g in new]),
            "rollout/truncated_frac": _mean([r.finish_reason == "length" for r in rollouts]),
            "rollout/unparsable_frac": _mean([r.verdict == "unparsable" for r in rollouts]),
            "rollout/timeout_frac": _mean([r.verdict == "timeout" for r in rollouts]),
            "rollout/response_tokens": _mean([len(r.completion_ids) for r in rollouts]),
        }
    if replayed:
        metrics["replay/accuracy"] = _mean([g.accuracy for g in replayed])
    return metrics


def sample_metrics(samples: Sequence[TrainingSample]) -> dict[str, float]:
    """What `credit` made of the groups."""
    metrics = {
        "train/num_samples": float(len(samples)),
        "train/num_tokens": float(sum(s.num_trained for s in samples)),
        "train/inert_frac": _mean([s.inert for s in samples]),
    }
    advantages = [s.advantages[-1] for s in samples if s.advantages is not None]
    if advantages:
        metrics["train/positive_advantage_frac"] = _mean([a > 0 for a in advantages])
    return metrics


def buffer_metrics(buffer: PromptReplayBuffer, events: Sequence[BufferEvent], num_replayed: int) -> dict[str, float]:
    """Size, and cumulative admissions, graduations and evictions."""
    return {
        "buffer/size": float(len(buffer)),
        "buffer/replayed": float(num_replayed),
        "buffer/admitted": float(buffer.totals["admit"]),
        "buffer/graduated": float(buffer.totals["graduate"]),
        "buffer/evicted": float(buffer.totals["evict"]),
        "buffer/events": float(len(events)),
    }


def flops(
    counts: Mapping[str, float], samples: Sequence[TrainingSample], *, student: int, teacher: int, teacher_scores: bool
) -> dict[str, float]:
    """What was computed: 2N a token for a forward pass, 6N for forward and backward; N = number of parameters.

    Generation counts each prompt once a group (it is prefilled once). Inert samples are not computed.
    """
    trained = sum(len(s.token_ids) for s in samples if not s.inert)
    return {
        "flops/student_generation": 2.0 * student * _tokens(counts, "student"),
        "flops/teacher_generation": 2.0 * teacher * _tokens(counts, "teacher"),
        "flops/student_update": 6.0 * student * trained,
        "flops/teacher_scoring": 2.0 * teacher * trained if teacher_scores else 0.0,
    }


def resident_mb() -> float:
    """Resident memory of this process in MiB."""
    return psutil.Process().memory_info().rss / 2**20


def plain_student_groups(groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    """The groups that decide mastery: the buffer reads nothing else."""
    return [group for group in groups if _plain(group)]


def _plain(group: RolloutGroup) -> bool:
    return group.prompt.kind == "plain" and _sampled_by_student(group)


def _sampled_by_student(group: RolloutGroup) -> bool:
    return any(_by_student(rollout) for rollout in group.rollouts)


def _by_student(rollout: Rollout) -> bool:
    return rollout.sampler == "student"


def _tokens(counts: Mapping[str, float], name: str) -> float:
    return counts.get(f"tokens/{name}_generated", 0.0) + counts.get(f"tokens/{name}_prompt", 0.0)


def _mean(values: Sequence[float]) -> float:
    return float(sum(values)) / len(values) if values else 0.0
