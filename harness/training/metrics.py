"""The numbers of a rollout step, one definition each (docs/run_folder.md lists them)."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import psutil

from harness.data.replay import BufferEvent, PromptReplayBuffer
from harness.rewards.match import match_counts
from harness.types import Rollout, RolloutGroup, TrainingSample, comparable

CUMULATIVE = {"admit": "admitted", "graduate": "graduated", "evict": "evicted"}
MAX_VISITS = 6
MAX_SOURCES = 32
"""Of more in a step, no accuracy of its own is kept: they are hardly sources."""


def group_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Accuracy, truncation and length of the student's rollouts. `rollout/*` are the plain groups of new questions.

    `rollout/entropy` is the mean of -log P over their sampled tokens, in nats: an unbiased estimate of the entropy of
    the distributions that they were drawn from. The prompts are the same for every method.
    An accuracy is over the groups that have one. There is `rollout/ungraded_frac` only where a rollout is ungraded.
    """
    plain = [g for g in groups if _plain(g)]
    new = [g for g in plain if not g.replayed]
    replayed = [g for g in plain if g.replayed]
    student = [g for g in groups if _sampled_by_student(g)]
    rewards = [{r.reward for r in comparable(g.rollouts)} for g in student]
    metrics = {
        "group/num_plain": float(len(plain)),
        "group/num_student": float(len(student)),
        "group/zero_std_frac": _mean([len(distinct) == 1 for distinct in rewards if distinct]),
        "group/all_right_frac": _mean([min(distinct) > 0.5 for distinct in rewards if distinct]),
        "group/all_wrong_frac": _mean([max(distinct) <= 0.5 for distinct in rewards if distinct]),
    }
    if new:
        rollouts = [r for g in new for r in g.rollouts if _by_student(r)]
        metrics |= {
            **_accuracy("rollout", new),
            **_accuracy_by_source(new),
            "rollout/truncated_frac": _mean([r.finish_reason == "length" for r in rollouts]),
            "rollout/unparsable_frac": _mean([r.verdict == "unparsable" for r in rollouts]),
            "rollout/timeout_frac": _mean([r.verdict == "timeout" for r in rollouts]),
            "rollout/response_tokens": _mean([len(r.completion_ids) for r in rollouts]),
        }
        sampled = [logprob for r in rollouts for logprob in r.rollout_logprobs[r.num_prefix :]]
        if known := [-logprob for logprob in sampled if math.isfinite(logprob)]:  # an engine may give none
            metrics["rollout/entropy"] = _mean(known)
        if num_ungraded := sum(not r.is_graded for r in rollouts):
            metrics["rollout/ungraded_frac"] = num_ungraded / len(rollouts)
    return metrics | _accuracy("replay", replayed) | match_counts(student)


def _accuracy(section: str, groups: Sequence[RolloutGroup]) -> dict[str, float]:
    known = [g.accuracy for g in groups if not math.isnan(g.accuracy)]
    return {f"{section}/accuracy": _mean(known)} if known else {}


def _accuracy_by_source(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """`rollout/accuracy@SOURCE`, in steps with several sources. A run may mix files, or a column names its sources."""
    by_source = defaultdict(list)
    for group in groups:
        by_source[group.prompt.question.source].append(group)
    if not 1 < len(by_source) <= MAX_SOURCES:
        return {}
    found = {name: _accuracy("rollout", of_source) for name, of_source in sorted(by_source.items())}
    return {
        f"{key}@{re.sub('[^A-Za-z0-9_.-]', '_', name)}": value
        for name, one in found.items()
        for key, value in one.items()
    }


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
    """Size, and admissions, graduations and evictions since the start; the same by accuracy at admission and by visits.

    `buffer/graduated@0.125` counts entries admitted at 1 right rollout of 8, `buffer/graduated@visits_3` those that
    graduated when they were met for the third time since; from `MAX_VISITS` on they are counted together.
    `graduated_by_chance`: what a policy that does not learn would have graduated (`harness.data.chance.FrozenPolicy`).
    """
    totals: Counter[str] = Counter(dict.fromkeys(("admitted", "graduated", "evicted"), 0))
    totals.update({f"size@{entry:g}": number for entry, number in buffer.occupancy.items()})
    for (event, entry, visits), number in buffer.totals.items():
        if event in CUMULATIVE:
            name = CUMULATIVE[event]
            totals.update({name: number, f"{name}@{entry:g}": number})
            if event != "admit":
                totals[f"{name}@visits_{min(visits, MAX_VISITS)}"] += number
    frozen = defaultdict(float, graduated_by_chance=0.0)
    for (entry, visits), chance in buffer.chances.items():
        for suffix in ("", f"@{entry:g}", f"@visits_{min(visits, MAX_VISITS)}"):
            frozen[f"graduated_by_chance{suffix}"] += chance
    sizes = {"size": len(buffer), "replayed": num_replayed, "events": len(events)}
    return {f"buffer/{name}": float(number) for name, number in (sizes | totals | frozen).items()}


def token_metrics(
    samples: Sequence[TrainingSample], *, num_updated: int, num_rescored: int, teacher_scores: bool
) -> dict[str, float]:
    """Tokens that went through the student's update and the teacher's scoring, prompts included; inert samples do not.

    A prompt that was read once for its group counts once. `num_rescored` are those that the student read once more for
    their old log-probabilities.
    """
    active = [sample for sample in samples if not sample.inert]
    return {
        "tokens/student_update": float(num_updated),
        "tokens/student_rescored": float(num_rescored),
        "tokens/teacher_scored": float(sum(_num_teacher_tokens(s) for s in active)) if teacher_scores else 0.0,
    }


def flops(
    tokens: Mapping[str, float], *, student: int, teacher: int, gradient_checkpointing: bool = False
) -> dict[str, float]:
    """What was computed, from the step's `tokens/*`: 2N a token for a forward pass, 6N for forward and backward, 8N
    where checkpointing repeats the forward; N = number of parameters.

    Generation counts each prompt once a group (it is prefilled once).
    """
    updated, rescored = tokens.get("tokens/student_update", 0.0), tokens.get("tokens/student_rescored", 0.0)
    per_token = 8.0 if gradient_checkpointing else 6.0
    return {
        "flops/student_generation": 2.0 * student * _tokens(tokens, "student"),
        "flops/student_update": student * (per_token * updated + 2.0 * rescored),
        "flops/teacher_generation": 2.0 * teacher * _tokens(tokens, "teacher"),
        "flops/teacher_scoring": 2.0 * teacher * tokens.get("tokens/teacher_scored", 0.0),
    }


def process() -> dict[str, float]:
    """What this process holds: resident memory in MiB, open file descriptors."""
    own = psutil.Process()
    return {"memory/resident_mb": own.memory_info().rss / 2**20, "process/num_open_files": float(own.num_fds())}


def plain_student_groups(groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    """The groups that decide mastery: the buffer reads nothing else."""
    return [group for group in groups if _plain(group)]


def _plain(group: RolloutGroup) -> bool:
    return group.prompt.kind == "plain" and _sampled_by_student(group)


def _sampled_by_student(group: RolloutGroup) -> bool:
    return any(_by_student(rollout) for rollout in group.rollouts)


def _by_student(rollout: Rollout) -> bool:
    return rollout.sampler == "student"


def _tokens(tokens: Mapping[str, float], name: str) -> float:
    return tokens.get(f"tokens/{name}_generated", 0.0) + tokens.get(f"tokens/{name}_prompt", 0.0)


def _num_teacher_tokens(sample: TrainingSample) -> int:
    """The teacher reads the same completion after its own prompt."""
    own = len(sample.token_ids)
    ids = sample.teacher_prompt_ids
    return own if ids is None else own - sample.num_prompt + len(ids)


def _mean(values: Sequence[float]) -> float:
    return float(sum(values)) / len(values) if values else 0.0
