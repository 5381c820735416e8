"""The checks of the conformance kit. Each takes a method and a folder.

Its AssertionError says what is wrong and, after a colon, what the author of the method has to change.
"""

from __future__ import annotations

import ctypes
import gc
import json
import threading
import warnings
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
from harness.testing.witness import Origin
from harness.training.credited import check_groups, check_samples
from harness.training.metrics import plain_student_groups
from harness.training.nonfinite import NonFinite
from harness.types import Rollout, RolloutGroup, TeacherDistribution, TokenBatch, TrainingSample
from methods.base import Method, MethodError, plain_prompt

Check = Callable[[Case, Path], None]
NUM_SAMPLES = 12
NUM_TOKENS, VOCABULARY = 1024, 50_000
TILE_BYTES = 4 * NUM_TOKENS * VOCABULARY
MAX_TILES = 3
SLACK_BYTES = 64 << 20


def moves_the_student(case: Case, tmp_path: Path) -> None:
    """One update has a gradient, which is finite, and changes weights."""
    student = lab().fresh_student()
    updater, samples = case.updater(student, learning_rate=1e-3), case.first().samples
    assert samples, "credit makes no training samples: return one for each rollout to be trained (`rollout_sample`)"
    updater.fill_old_logprobs(samples)
    try:
        row = updater.update(samples)
    except NonFinite as error:
        raise AssertionError(
            f"{error}: keep `credit` and `loss` from a division by 0, the logarithm of 0 and overflow"
        ) from error
    assert row["grad_norm"] > 0, (
        "the gradient of a step is zero: let `credit` give advantages or weights that are not all 0, "
        "and let `loss` depend on logits_NV"
    )
    pairs = zip(student.module.parameters(), lab().student.module.parameters(), strict=True)
    assert any(not torch.equal(new, old) for new, old in pairs), (
        f"a step with a gradient of {row['grad_norm']:.0e} changes no weight: scale advantages or weights up"
    )


def same_seed_same_groups(case: Case, tmp_path: Path) -> None:
    """Two steps from one seed ask, sample and train the same. All chance has to come from the `rng` of `collect`."""
    first, second = case.first(), case.step()
    remedy = "draw all chance from the `rng` of collect, and none in credit"
    for name in ("groups", "samples"):
        sizes = [len(getattr(step, name)) for step in (first, second)]
        assert sizes[0] == sizes[1], f"two steps of the same seed have {sizes[0]} and {sizes[1]} {name}: {remedy}"
    for a, b in zip(first.groups, second.groups, strict=True):
        assert _plain(a) == _plain(b), f"group {a.uid} differs between two steps of the same seed: {remedy}"
    for s, t in zip(first.samples, second.samples, strict=True):
        assert _plain(s) == _plain(t), f"a sample of {s.uid} differs between two steps of the same seed: {remedy}"


def resume_equals_the_unbroken_run(case: Case, tmp_path: Path) -> None:
    """Three steps are one step, a resume and two more: a method keeps no state."""
    whole = case.run(tmp_path / "whole", steps=3)
    case.run(tmp_path / "parts", steps=1)
    parts = case.run(tmp_path / "parts", steps=3)
    try:
        assert_same_run(whole, parts)
    except AssertionError as error:
        raise AssertionError(
            f"{error}: a resumed run has to equal the uninterrupted one, so keep no state in the method or its module, "
            "and draw all chance from the `rng` of collect"
        ) from error


def trained_tokens_were_sampled_by_whom_it_declares(case: Case, tmp_path: Path) -> None:
    """Every sample names its rollout, every trained token was sampled by one of `trained_samplers`, where it stands.

    What every run refuses is refused here too. A rollout is known by its origin, whatever it is called by now.
    """
    step, method = case.first(), case.build()
    try:
        check_groups(method, step.groups)
        check_samples(method, step.groups, step.samples)
    except MethodError as error:
        raise AssertionError(str(error)) from error
    by_name = {(g.uid, r.sampler, r.index): step.witness.origin(g.uid, r) for g in step.groups for r in g.rollouts}
    for sample in step.samples:
        rollout = sample.rollout
        assert rollout is not None, (
            f"a sample of '{sample.uid}' names no rollout: give it its `rollout`, as `rollout_sample` does"
        )
        origin, name = step.origin(sample), _name(sample.uid, rollout)
        assert origin is not None, (
            f"{name} was not sampled: ask `actors` for it (student, teacher, demonstrate), and copy it with "
            "dataclasses.replace"
        )
        assert origin.sampler in method.trained_samplers, (
            f"{name} was not sampled by {' or '.join(sorted(method.trained_samplers))} but by the {origin.sampler}: "
            "declare that in trained_samplers, or leave it untrained, and keep the sampler of a rollout"
        )
        assert by_name[sample.uid, rollout.sampler, rollout.index] == origin, (
            f"a sample that names {name} is of {_name(origin.uid, origin)}: keep sampler and index of a rollout that "
            "is copied"
        )
        assert tuple(sample.token_ids) == origin.token_ids, (
            f"the tokens of {name} are not those that were sampled: train prompt_ids and completion_ids of the rollout "
            "as they are, never text that is encoded again"
        )
        assert len(sample.loss_mask) == len(sample.token_ids), (
            f"{name} has {len(sample.token_ids)} tokens and a loss mask of {len(sample.loss_mask)}: give one number a "
            "token, prompt included"
        )
        assert not any(sample.loss_mask[: origin.num_given]), (
            f"{name} trains tokens of its prompt or of a given prefix: set loss_mask to 0 before the first token that "
            "was sampled"
        )


def prefixes_get_no_gradient(case: Case, tmp_path: Path) -> None:
    """Completion tokens that were given (`num_prefix`) are masked."""
    step = case.first()
    num_given: dict[Origin | None, int] = {}
    for group in step.groups:
        for rollout in group.rollouts:
            rollout.num_prefix = len(rollout.completion_ids) // 2
            num_given[step.witness.origin(group.uid, rollout)] = len(rollout.prompt_ids) + rollout.num_prefix
    for sample in case.build().credit(step.groups):
        # A sample of no known rollout is the fault of the check above.
        given = sample.loss_mask[: num_given.get(step.origin(sample), 0)]
        assert not any(given), (
            f"{sample.uid} trains tokens of a given prefix: set loss_mask to 0 for the first `num_prefix` tokens of "
            "the completion, as `rollout_sample` does"
        )


def gradient_does_not_depend_on_micro_batches(case: Case, tmp_path: Path) -> None:
    """The gradient of a mini-batch is the same however it is cut into micro-batches and tiles of tokens."""
    whole = _gradients(case)
    scale = max(float(value.abs().max()) for value in whole.values())
    one_token = 16 * lab().student.num_tokens / 2**20  # MiB
    for cut in ({"micro_batch_tokens": 1}, {"micro_batch_tokens": 200, "logit_memory_mb": 7 * one_token}):
        for name, value in _gradients(case, **cut).items():
            worst = float((value - whole[name]).abs().max())
            assert worst <= 1e-4 * scale, (
                f"the gradient depends on {cut} ({worst / scale:.1e} of its size in {name}): let `loss` return one "
                "number a token, that depends on this token alone, without a sum or mean; the trainer divides by `norm`"
            )


def buffer_is_fed_by_plain_groups(case: Case, tmp_path: Path) -> None:
    """What reaches the replay buffer are the graded plain groups, one a question, and nothing else."""
    step = case.first()
    first_plain: dict[str, RolloutGroup] = {}
    for group in step.witness.student_groups:
        question = group.prompt.question
        if group.prompt.messages == plain_prompt(question).messages and not group.prompt.prefix_ids:
            first_plain.setdefault(question.id, group)
    fed = plain_student_groups(step.groups)
    for group in fed:
        question_id = group.prompt.question.id
        num_plain = len({other.uid for other in fed if other.prompt.question.id == question_id})
        assert num_plain == 1, (
            f"one step has {num_plain} groups of kind `plain` on question {question_id}: give further prompts on a "
            "question another kind (`kind='extra'`)"
        )
        plain = first_plain.get(question_id)
        assert plain is not None and plain.uid == group.uid, (
            f"{group.uid} is of kind `plain` but not on a plain prompt: make it with `plain_prompt`, or give it "
            "another kind"
        )
        assert plain.accuracy == group.accuracy, (
            f"the accuracy of {group.uid} is not that of its graded rollouts: leave `reward` and the student's "
            "rollouts as they are, and put another reward into `training_reward`"
        )


def every_kind_of_prompt_occurs(case: Case, tmp_path: Path) -> None:
    """The kinds of prompts that occur are among `prompt_kinds`, and of every kind of rewrite one is accepted.

    Prints what occurred (`pytest -rP` shows it), and warns of a declared kind that did not.
    """
    step, name, declared = case.first(), case.method_class.__name__, frozenset(case.build().prompt_kinds)
    print(f"prompts of one step of {name}: {step}")
    occurred = step.num_prompts | step.num_rewrites
    for kind in sorted(declared - occurred.keys()):
        warnings.warn(
            f"{name} declares prompts of kind `{kind}` and asked none in the step of the kit ({step}), so no check has "
            "seen them: give conformance_test options or a ScriptedTeacher that lead there, or take the kind out of "
            "prompt_kinds",
            stacklevel=2,
        )
    for kind in sorted(occurred.keys() - declared):
        raise AssertionError(
            f"{name} asks prompts of kind `{kind}` and declares {', '.join(sorted(declared))}: add the kind to "
            "prompt_kinds, so that a step without it is noticed"
        )
    for kind in sorted(occurred.keys() & set(step.unseen(declared))):
        asked = [asked for asked in step.witness.rewrites if asked.kind == kind]
        empty = sum(not one.rewrite.text for one in asked)
        raise AssertionError(
            f"none of {len(asked)} rewrites of kind `{kind}` was accepted ({empty} have no text between "
            f"<{asked[0].tag}> tags): give conformance_test a ScriptedTeacher with rewrites={{'{kind}': [...]}} that "
            f"{name} accepts. A rewrite that no prompt shows is counted: actors.count('{kind}/accepted')"
        )


def a_rollout_without_a_verdict_teaches_nothing(case: Case, tmp_path: Path) -> None:
    """The reward of an `ungraded` rollout changes no sample, and its advantage is 0. Its tokens may be trained."""
    made = []
    for reward in (0.0, 1.0):
        groups = case.first().groups
        for rollout in (group.rollouts[-1] for group in groups):
            rollout.verdict, rollout.reward = "ungraded", reward
        made.append(case.build().credit(groups))
    remedy = "leave rollouts whose `is_graded` is false out of every mean (`comparable`) and give them advantage 0"
    for sample in made[0]:
        if sample.rollout is not None and not sample.rollout.is_graded and sample.advantages is not None:
            assert not any(sample.advantages), (
                f"{sample.uid} trains a rollout without a verdict as a wrong one: {remedy}"
            )
    numbers = [[(s.uid, s.token_ids, s.advantages, s.weights, s.norm) for s in samples] for samples in made]
    assert numbers[0] == numbers[1], f"the reward of a rollout without a verdict changes what is trained: {remedy}"


def memory_stays_within_three_tiles(case: Case, tmp_path: Path) -> None:
    """`loss` and its backward raise resident memory by at most three tensors of the size of the logits."""
    rise = _memory_rise(case.method_class, json.dumps(case.options, sort_keys=True))
    assert rise <= MAX_TILES * TILE_BYTES + SLACK_BYTES, (
        f"loss and backward take {rise / TILE_BYTES:.1f} times the memory of the logits, more than {MAX_TILES}: form "
        "fewer tensors of their size, or build on `token_logprobs`, `policy_gradient_loss` and `distillation_loss`"
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
        every_kind_of_prompt_occurs,
        a_rollout_without_a_verdict_teaches_nothing,
        memory_stays_within_three_tiles,
    )
}


def assert_same_run(a: Path, b: Path) -> None:
    """Two run folders have the same metrics (but for clocks and memory), rollouts, buffer events and weights."""
    rows = run_metrics(a), run_metrics(b)
    assert rows[0] == rows[1], f"the metrics of {a} and {b} differ ({_first_difference(*rows)})"
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


def _first_difference(a: list[dict[str, float]], b: list[dict[str, float]]) -> str:
    """Example: `step 2: train/num_tokens is 96.0 and 98.0`."""
    for step, (left, right) in enumerate(zip(a, b, strict=False), start=1):
        for name in sorted(left.keys() | right.keys()):
            if left.get(name) != right.get(name):
                return f"step {step}: {name} is {left.get(name)} and {right.get(name)}"
    return f"{len(a)} and {len(b)} steps"


def _name(uid: str, rollout: Rollout | Origin) -> str:
    """Example: `rollout 3 of the student of 'q1/plain'`."""
    return f"rollout {rollout.index} of the {rollout.sampler} of '{uid}'"


def _plain(record: RolloutGroup | TrainingSample) -> Any:
    """A record as nested dictionaries, floats included, for exact comparison."""
    return json.dumps(record, default=lambda value: vars(value) if hasattr(value, "__dict__") else str(value))


def _gradients(case: Case, **cut: Any) -> dict[str, torch.Tensor]:
    """Gradients of at most `NUM_SAMPLES` samples, dealt from all groups; inert ones only where there are no others."""
    student, every = lab().fresh_student(), case.first().samples
    active = [sample for sample in every if not sample.inert] or every
    samples = active[:: -(-len(active) // NUM_SAMPLES)]
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
    with peak_memory() as peak:
        method.loss(logits_NV, batch, teacher).loss_N.sum().backward()
    return peak[0]


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The highest rise of resident memory inside, in bytes.

    Linux counts the peak itself. Elsewhere the memory is looked at every millisecond, since torch drops the GIL; a busy
    machine may then miss the peak. What glibc keeps of freed memory is given back before, so that its reuse counts.
    """
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
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
