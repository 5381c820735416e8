"""The checks of the conformance kit. Each takes a method and a folder, and raises AssertionError with the reason."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from safetensors.torch import load_file

from harness.testing.lab import Case, lab
from harness.training.metrics import plain_student_groups
from harness.types import RolloutGroup, TeacherDistribution, TokenBatch, TrainingSample
from methods.base import Method, plain_prompt

Check = Callable[[Case, Path], None]
NUM_TOKENS, VOCABULARY = 4096, 50_000
TILE_BYTES = 4 * NUM_TOKENS * VOCABULARY
MAX_TILES = 3
SLACK_BYTES = 64 << 20


def moves_the_student(case: Case, tmp_path: Path) -> None:
    """One update has a gradient, and changes weights to finite ones."""
    student = lab().fresh_student()
    updater, samples = case.updater(student, learning_rate=1e-3), case.first().samples
    assert samples, "credit made no training samples"
    updater.fill_old_logprobs(samples)
    row = updater.update(samples)
    assert row["grad_norm"] > 0, "the gradient of a step is zero"
    pairs = list(zip(student.module.parameters(), lab().student.module.parameters(), strict=True))
    assert any(not torch.equal(new, old) for new, old in pairs), "a step changed no weight"
    assert all(torch.isfinite(new).all() for new, _ in pairs), "a step made weights that are not finite"


def same_seed_same_groups(case: Case, tmp_path: Path) -> None:
    """Two steps from one seed ask, sample and train the same. All chance has to come from the `rng` of `collect`."""
    first, second = case.step(), case.step()
    for name in ("groups", "samples"):
        sizes = [len(getattr(step, name)) for step in (first, second)]
        assert sizes[0] == sizes[1], f"two steps of the same seed have {sizes[0]} and {sizes[1]} {name}"
    for a, b in zip(first.groups, second.groups, strict=True):
        assert _plain(a) == _plain(b), f"group {a.uid} differs between two steps of the same seed"
    for s, t in zip(first.samples, second.samples, strict=True):
        assert _plain(s) == _plain(t), f"a sample of {s.uid} differs between two steps of the same seed"


def resume_equals_the_unbroken_run(case: Case, tmp_path: Path) -> None:
    """Three steps are one step, a resume and two more: a method keeps no state."""
    whole = case.run(tmp_path / "whole", steps=3)
    case.run(tmp_path / "parts", steps=1)
    assert_same_run(whole, case.run(tmp_path / "parts", steps=3))


def trained_tokens_were_sampled_by_whom_it_declares(case: Case, tmp_path: Path) -> None:
    """Every trained token was sampled by one of `trained_samplers`, and sits where it was sampled."""
    step, declared = case.first(), case.method_class.trained_samplers
    for sample in step.samples:
        ids = tuple(sample.token_ids)
        assert len(sample.loss_mask) == len(ids), f"the loss mask of {sample.uid} has another length than its tokens"
        given = [
            known[ids] for sampler, known in step.witness.num_given.items() if sampler in declared and ids in known
        ]
        assert given, f"tokens of {sample.uid} were not sampled by {' or '.join(sorted(declared))}"
        trained = [t for t, is_trained in enumerate(sample.loss_mask) if is_trained]
        assert all(t >= min(given) for t in trained), f"{sample.uid} trains tokens of its prompt or of a given prefix"


def prefixes_get_no_gradient(case: Case, tmp_path: Path) -> None:
    """Completion tokens that were given (`num_prefix`) are masked."""
    groups = case.first().groups
    for rollout in (rollout for group in groups for rollout in group.rollouts):
        rollout.num_prefix = len(rollout.completion_ids) // 2
    for sample in case.build().credit(groups):
        assert sample.rollout is not None, f"a sample of {sample.uid} names no rollout"
        given = len(sample.rollout.prompt_ids) + sample.rollout.num_prefix
        assert not any(sample.loss_mask[:given]), f"{sample.uid} trains tokens of a given prefix"


def gradient_does_not_depend_on_micro_batches(case: Case, tmp_path: Path) -> None:
    """The gradient of a mini-batch is the same however it is cut into micro-batches and tiles of tokens."""
    whole = _gradients(case)
    scale = max(float(value.abs().max()) for value in whole.values())
    one_token = 16 * lab().student.num_tokens / 2**20  # MiB
    for cut in ({"micro_batch_tokens": 1}, {"micro_batch_tokens": 200, "logit_memory_mb": 7 * one_token}):
        for name, value in _gradients(case, **cut).items():
            worst = float((value - whole[name]).abs().max())
            assert worst <= 1e-4 * scale, f"the gradient depends on {cut}: {worst / scale:.1e} of its size in {name}"


def buffer_is_fed_by_plain_groups(case: Case, tmp_path: Path) -> None:
    """What reaches the replay buffer are the graded plain groups, one a question, and nothing else."""
    step = case.first()
    fed = plain_student_groups(step.groups)
    for group in step.groups:
        assert sum(other.uid == group.uid for other in step.groups) == 1, f"two groups are called {group.uid}"
    first_plain: dict[str, RolloutGroup] = {}
    for group in step.witness.student_groups:
        question = group.prompt.question
        if group.prompt.messages == plain_prompt(question).messages and not group.prompt.prefix_ids:
            first_plain.setdefault(question.id, group)
    for group in fed:
        question_id = group.prompt.question.id
        num_plain = sum(other.prompt.question.id == question_id for other in fed)
        assert num_plain == 1, f"one step has {num_plain} groups of kind `plain` on question {question_id}"
        plain = first_plain.get(question_id)
        assert plain is not None and plain.uid == group.uid, f"{group.uid} is of kind `plain` but not on a plain prompt"
        assert plain.accuracy == group.accuracy, f"the accuracy of {group.uid} is not that of its graded rollouts"


def a_rollout_without_a_verdict_teaches_nothing(case: Case, tmp_path: Path) -> None:
    """The reward of an `ungraded` rollout changes no sample, and its advantage is 0. Its tokens may be trained."""
    made = []
    for reward in (0.0, 1.0):
        groups = case.first().groups
        for rollout in (group.rollouts[-1] for group in groups):
            rollout.verdict, rollout.reward = "ungraded", reward
        made.append(case.build().credit(groups))
    for sample in made[0]:
        if sample.rollout is not None and not sample.rollout.is_graded and sample.advantages is not None:
            assert not any(sample.advantages), f"{sample.uid} trains a rollout without a verdict as a wrong one"
    numbers = [[(s.uid, s.token_ids, s.advantages, s.weights, s.norm) for s in samples] for samples in made]
    assert numbers[0] == numbers[1], "the reward of a rollout without a verdict changes what is trained"


def memory_stays_within_three_tiles(case: Case, tmp_path: Path) -> None:
    """`loss` and its backward raise resident memory by at most three tensors of the size of the logits."""
    rise = _memory_rise(case.method_class, json.dumps(case.options, sort_keys=True))
    assert rise <= MAX_TILES * TILE_BYTES + SLACK_BYTES, (
        f"loss and backward take {rise / TILE_BYTES:.1f} times the memory of the logits, more than {MAX_TILES}"
    )


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        moves_the_student,
        same_seed_same_groups,
        resume_equals_the_unbroken_run,
        trained_tokens_were_sampled_by_whom_it_declares,
        prefixes_get_no_gradient,
        gradient_does_not_depend_on_micro_batches,
        buffer_is_fed_by_plain_groups,
        a_rollout_without_a_verdict_teaches_nothing,
        memory_stays_within_three_tiles,
    )
}


def assert_same_run(a: Path, b: Path) -> None:
    """Two run folders have the same metrics (but for clocks and memory), rollouts, buffer events and weights."""
    assert run_metrics(a) == run_metrics(b), f"the metrics of {a} and {b} differ"
    files = sorted(p.name for p in (a / "rollouts").iterdir())
    assert files == sorted(p.name for p in (b / "rollouts").iterdir())
    for name in files:
        pd.testing.assert_frame_equal(pd.read_parquet(a / "rollouts" / name), pd.read_parquet(b / "rollouts" / name))
    assert (a / "buffer.jsonl").read_text() == (b / "buffer.jsonl").read_text(), "the buffer events differ"
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (a, b)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0]), "the final weights differ"


def run_metrics(folder: Path) -> list[dict[str, float]]:
    """Rows of `metrics.jsonl` without clocks and memory."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "busy/", "memory/", "process/"))} for row in rows
    ]


def _plain(record: RolloutGroup | TrainingSample) -> Any:
    """A record as nested dictionaries, floats included, for exact comparison."""
    return json.dumps(record, default=lambda value: vars(value) if hasattr(value, "__dict__") else str(value))


def _gradients(case: Case, **cut: Any) -> dict[str, torch.Tensor]:
    student, samples = lab().fresh_student(), case.first().samples
    updater = case.updater(student, **cut)
    taken: dict[str, torch.Tensor] = {}

    for name, parameter in student.module.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: taken.update({name: p.grad.clone()}))
    updater.fill_old_logprobs(samples)
    updater.update(samples)
    return taken


@cache
def _memory_rise(method_class: type[Method], options: str) -> int:
    """Bytes by which resident memory rises above the logits, the teacher's where they are read, and their batch."""
    method = Case(method_class, json.loads(options)).build()
    row_V = torch.linspace(-3, 3, VOCABULARY)
    logits_NV = row_V.repeat(NUM_TOKENS, 1).requires_grad_()
    teacher = None
    if method.needs_teacher == "distribution":
        teacher = TeacherDistribution(logits_NV=row_V.flip(0).repeat(NUM_TOKENS, 1))
    ids_N = torch.arange(NUM_TOKENS)
    batch = TokenBatch(
        ids_N=ids_N,
        advantages_N=torch.where(ids_N % 2 == 0, 1.0, -1.0),
        old_logprobs_N=torch.full((NUM_TOKENS,), -10.0),
        rollout_logprobs_N=torch.full((NUM_TOKENS,), -10.0),
        sequence_N=ids_N // 64,
    )
    gc.collect()
    with peak_memory() as peak:
        method.loss(logits_NV, batch, teacher).loss_N.sum().backward()
    return peak[0]


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The highest rise of resident memory inside, in bytes.

    Linux counts the peak itself. Elsewhere the memory is looked at every millisecond, since torch drops the GIL; a busy
    machine may then miss the peak.
    """
    process, rise, done = psutil.Process(), [0], threading.Event()
    counts = _reset_peak()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.001):
            rise[0] = max(rise[0], process.memory_info().rss - before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield rise
    finally:
        done.set()
        thread.join()
        rise[0] = max(rise[0], process.memory_info().rss - before, _peak() - before if counts else 0)


def _reset_peak() -> bool:
    """Let the system count the peak of resident memory anew; returns whether it does."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
