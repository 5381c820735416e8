"""What the tests run on every rank."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from harness.config.deployment import Deployment
from harness.config.schema import RunConfig
from harness.data.sources import load_questions
from harness.distributed.balance import balanced
from harness.distributed.build import RankModels
from harness.distributed.ranks import Report
from harness.distributed.world import World
from harness.errors import UserError
from harness.models.chat import Chat
from harness.models.loading import load_tokenizer
from harness.process import preemption
from harness.process.step_clock import StepClock
from harness.training.models import LocalModels
from harness.training.nonfinite import NonFinite
from harness.training.update import Updater
from harness.types import Question, Rollout, TrainingSample
from methods.base import Method, plain_prompt

Shares = list[list[int]]


def make_samples(config: RunConfig, chat: Chat, *, num: int, seen: bool) -> list[TrainingSample]:
    """Different lengths, random ids and advantages; with `seen`, every second one has a picture."""
    rng = torch.Generator().manual_seed(1)
    questions = _questions(config, chat) if seen else []
    samples = []
    for i in range(num):
        length = 1 + int(torch.randint(14, (1,), generator=rng))
        completion = torch.randint(30, 90, (length,), generator=rng).tolist()
        packed = chat.pack(plain_prompt(questions[i])) if seen and i % 2 else None
        prompt = packed.ids if packed else torch.randint(30, 90, (3 + i % 4,), generator=rng).tolist()
        advantage = float(torch.randn(1, generator=rng))
        mask = [0] * len(prompt) + [1] * length
        rollout = Rollout(
            sampler="student",
            index=0,
            prompt_ids=prompt,
            completion_ids=completion,
            rollout_logprobs=[-4.0] * length,
            text="",
            finish_reason="stop",
            media=packed.media if packed else None,
        )
        samples.append(
            TrainingSample(
                uid=f"q{i // 2}/plain",
                token_ids=[*prompt, *completion],
                loss_mask=mask,
                advantages=[advantage * m for m in mask],
                rollout_logprobs=[-4.0 * m for m in mask],
                old_logprobs=[-4.0 * m for m in mask],
                rollout=rollout,
            )
        )
    return samples


def of_one_prompt(samples: list[TrainingSample]) -> list[TrainingSample]:
    """After 20 tokens that one process may read once for all."""
    for sample in samples:
        sample.token_ids, sample.loss_mask = [*range(40, 60), *sample.token_ids], [0] * 20 + sample.loss_mask
        for name in ("advantages", "rollout_logprobs", "old_logprobs"):
            setattr(sample, name, [0.0] * 20 + getattr(sample, name))
    return samples


def spoil(samples: list[TrainingSample], number: int) -> None:
    """Of this one the loss is not finite."""
    samples[number].advantages = [float("inf") * m if m else 0.0 for m in samples[number].loss_mask]


def untrained(samples: list[TrainingSample], numbers: list[int]) -> None:
    for number in numbers:
        samples[number].loss_mask = [0] * len(samples[number].token_ids)


def of_one_process(config: RunConfig, method: Method, *, num: int, seen: bool, masked: list[int]) -> dict[str, Any]:
    """Gradient and metrics of one update as a single process makes it."""
    chat = Chat(load_tokenizer(config.student), config.student)
    samples = make_samples(config, chat, num=num, seen=seen)
    untrained(samples, masked)
    with ExitStack() as stack:
        models = LocalModels(config, Deployment.of(config, method), chat, logs=Path("run"), stack=stack)
        updater = models.updater(method, models.open_teacher(method), StepClock())
        taken: dict[str, torch.Tensor] = {}

        def read(*args: Any) -> None:
            named = models.student.module.named_parameters()
            taken.update({n: p.grad.clone() for n, p in named if p.grad is not None})

        updater.optimizer.register_step_pre_hook(read)
        updater.fill_old_logprobs(samples)
        row = updater.update(samples, measure_gap=True)
        return {"gradient": taken, "row": row, "gap": updater.gap.finish()}


def of_ranks(
    config: RunConfig, method: Method, world: World, num: int, seen: bool, masked: list[int], shares: Shares | None
) -> dict[str, Any]:
    """This rank's rows of the gradient, and its report."""
    chat = Chat(load_tokenizer(config.student), config.student)
    samples = make_samples(config, chat, num=num, seen=seen)
    untrained(samples, masked)
    shares = shares or balanced([len(s.token_ids) for s in samples], world.size)
    with ExitStack() as stack:
        models = RankModels(config, Deployment.of(config, method), chat, world, logs=Path("run"), stack=stack)
        updater = models.updater(method, models.open_teacher(method))
        rows: dict[str, torch.Tensor] = {}

        def read(*args: Any) -> None:
            rows.update({n: p.grad.clone() for n, p in models.sharded.local.items() if p.grad is not None})

        updater.optimizer.register_step_pre_hook(read)
        own = [samples[i] for i in shares[world.rank]]
        report = updated(world, own, sum(s.denominator for s in samples))
        return {"rows": {n: t.numpy() for n, t in rows.items()}, "report": report}


def commanded(config: RunConfig, method: Method, world: World, masked: list[int]) -> dict[str, Any] | None:
    """What rank 0's updater gives a trainer, with the other ranks at its commands; theirs is None."""
    chat = Chat(load_tokenizer(config.student), config.student)
    with ExitStack() as stack:
        models = RankModels(config, Deployment.of(config, method), chat, world, logs=Path("run"), stack=stack)
        updater = models.updater(method, models.open_teacher(method))
        if world.rank:
            lane = world.follower.lanes["work"]
            while (command := lane.recv())[0] != "end":
                lane.send(world.commands[command[0]](**command[1]))
            return None
        world.commands = {**world.commands, "end": lambda: None}
        found = trained(updater, of_one_prompt(make_samples(config, chat, num=7, seen=False)), masked)
        for rank in range(1, world.size):
            world.leader.send("work", rank, ("end", {}))
        return found


def alone(config: RunConfig, method: Method, masked: list[int]) -> dict[str, Any]:
    """The same of one process."""
    chat = Chat(load_tokenizer(config.student), config.student)
    with ExitStack() as stack:
        models = LocalModels(config, Deployment.of(config, method), chat, logs=Path("run"), stack=stack)
        updater = models.updater(method, models.open_teacher(method), StepClock())
        return trained(updater, of_one_prompt(make_samples(config, chat, num=7, seen=False)), masked)


def trained(updater: Updater, samples: list[TrainingSample], masked: list[int]) -> dict[str, Any]:
    """Two steps, an update with a bad sample, and one that a signal meets."""
    found: dict[str, Any] = {"rows": [], "gaps": [], "old": []}
    untrained(samples, masked)
    samples[4].rollout_logprobs = samples[4].old_logprobs = samples[5].old_logprobs = None
    found["num_read"] = updater.fill_old_logprobs(samples)
    found["old"] = [sample.old_logprobs for sample in samples]
    for part in (samples[:4], samples[4:], samples):
        found["rows"].append(updater.update(part, measure_gap=True))
        found["gaps"].append(updater.gap.finish())
        updater.gap.start(samples)
    found["present"] = updater.logprobs(samples)
    good = samples[2].advantages
    spoil(samples, 2)
    try:
        updater.update(samples)
    except NonFinite as error:
        found["nonfinite"] = (next(i for i, sample in enumerate(samples) if sample is error.sample), str(error))
    samples[2].advantages = good
    preemption._state.received = signal.SIGTERM
    try:
        updater.update(samples)
    except preemption.Preempted:
        found["is_preempted"] = True
    finally:
        preemption._state.received = None
    found["after"] = updater.logprobs(samples)
    return found


def updated(world: World, samples: list[TrainingSample], denominator: float) -> Report:
    """This rank's report of an update, as rank 0 commands it."""
    return world.commands["update_share"](samples, denominator=denominator, measure=False)


def nonfinite(config: RunConfig, method: Method, world: World, shares: Shares, number: int) -> dict[str, Any]:
    """An update with one bad sample, then a good one."""
    chat = Chat(load_tokenizer(config.student), config.student)
    with ExitStack() as stack:
        models = RankModels(config, Deployment.of(config, method), chat, world, logs=Path("run"), stack=stack)
        models.updater(method, models.open_teacher(method))
        before = {n: p.detach().clone() for n, p in models.sharded.local.items()}
        samples = make_samples(config, chat, num=sum(map(len, shares)), seen=False)
        spoil(samples, number)
        bad = updated(world, [samples[i] for i in shares[world.rank]], 10.0)
        moved = any(not torch.equal(before[n], p) for n, p in models.sharded.local.items())
        samples = make_samples(config, chat, num=sum(map(len, shares)), seen=False)
        good = updated(world, [samples[i] for i in shares[world.rank]], 10.0)
        return {"bad": bad, "moved": moved, "good": good}


def refused(config: RunConfig, method: Method, world: World, shares: Shares) -> dict[str, Any]:
    """An update in which the teacher of rank 1 is lost, then one with all there."""
    chat = Chat(load_tokenizer(config.student), config.student)
    with ExitStack() as stack:
        models = RankModels(config, Deployment.of(config, method), chat, world, logs=Path("run"), stack=stack)
        teacher = models.open_teacher(method)
        models.updater(method, teacher)
        before = {n: p.detach().clone() for n, p in models.sharded.local.items()}
        samples = make_samples(config, chat, num=sum(map(len, shares)), seen=False)
        own, score = [samples[i] for i in shares[world.rank]], teacher.scorer.score

        def lost(micro_batches: Any) -> Any:
            yield from ()
            raise UserError("the teacher is lost")

        if world.rank == 1:
            teacher.scorer.score = lost
        bad = updated(world, own, 10.0)
        moved = any(not torch.equal(before[n], p) for n, p in models.sharded.local.items())
        teacher.scorer.score = score
        return {"bad": bad, "moved": moved, "good": updated(world, own, 10.0)}


def signalled(config: RunConfig, method: Method, world: World) -> list[Any]:
    """The reports of forward passes, and of an update, behind a signal to rank 0 alone."""
    chat = Chat(load_tokenizer(config.student), config.student)
    samples = make_samples(config, chat, num=4, seen=False)[world.rank :: world.size]
    with ExitStack() as stack:
        models = RankModels(config, Deployment.of(config, method), chat, world, logs=Path("run"), stack=stack)
        models.updater(method, models.open_teacher(method))
        before = {n: p.detach().clone() for n, p in models.sharded.local.items()}
        if world.rank == 0:
            preemption._state.received = signal.SIGTERM
        reports = [world.commands["read_share"](samples, is_old=is_old) for is_old in (False, True)]
        reports.append(updated(world, samples, 10.0))
        preemption._state.received = None
        assert all(torch.equal(before[n], p) for n, p in models.sharded.local.items())
        return reports


def _questions(config: RunConfig, chat: Chat) -> list[Question]:
    return load_questions(
        config.data,
        gold_errors=lambda questions: [None] * len(questions),
        measure=lambda question: chat.num_tokens_of(plain_prompt(question)),
        max_prompt_tokens=1000,
    ).questions


def slow_start(config: RunConfig, method: Method, world: World, folder: str, seconds: float) -> int:
    """As a run's start where rank 0 reads data, and later the last rank a teacher, for longer than any collective."""
    if world.rank == 0:
        time.sleep(seconds)
    chat = Chat(load_tokenizer(config.student), config.student)
    with ExitStack() as stack:
        models = RankModels(config, Deployment.of(config, method), chat, world, logs=Path(folder) / "log", stack=stack)
        if world.rank == world.size - 1:
            time.sleep(seconds)
        teacher = models.open_teacher(method)
        models.updater(method, teacher)
        assert world.meet(world.rank) == list(range(world.size))
        return world.maximum(len(models.engines))
