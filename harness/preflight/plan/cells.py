"""A planned cell: everything that is known of a run before it starts, and why it cannot fit."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness.config.deployment import Deployment, TeacherPlace
from harness.config.gpus import GPUS
from harness.config.schema import RunConfig
from harness.errors import UserError
from harness.models.kernels import Kernels
from harness.models.shapes import ModelShape
from harness.preflight.plan.costs import Cost, cost_of
from harness.preflight.plan.counting import Assumptions, StepCount, count_step
from harness.training.memory import (
    ENGINE_BYTES,
    GB,
    STATE_BYTES,
    TeacherLoad,
    engine_cache,
    engine_needs,
    patches_of,
    phases,
    predict,
)
from methods.base import Method

Override = tuple[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of all seeds of one label and student."""

    label: str
    method: str
    num_seeds: int
    config: RunConfig
    deployment: Deployment
    student: ModelShape
    teacher: ModelShape | None
    """None where the method needs none."""
    count: StepCount | None
    """None for a cell without training, as the rest."""
    memory: dict[str, dict[str, float]] | None
    """Bytes by part on a student's GPU, while it updates and while it samples."""
    cost: Cost | None
    problems: tuple[str, ...] = ()
    """What does not fit, and what to change."""
    notes: tuple[str, ...] = ()
    """What fits and is slow."""

    @property
    def peak(self) -> float:
        return 0.0 if self.memory is None else max(sum(parts.values()) for parts in self.memory.values())


def plan_cell(
    label: str,
    num_seeds: int,
    config: RunConfig,
    method: Method | None,
    shapes: tuple[ModelShape, ModelShape | None],
    assumed: Assumptions,
    kernels: Kernels,
) -> Plan:
    """Plan one cell. `shapes` are those of the student and of the teacher that the method needs."""
    student, teacher = shapes
    name, deployment = str(config.method["name"]), Deployment.of(config, method)
    if method is None:
        return Plan(
            label=label, method=name, num_seeds=num_seeds, config=config, deployment=deployment, student=student,
            teacher=None, count=None, memory=None, cost=None,
        )  # fmt: skip
    count = count_step(method, config, assumed)
    memory = memory_of(config, deployment, student, teacher, count, kernels)
    return Plan(
        label=label,
        method=name,
        num_seeds=num_seeds,
        config=config,
        deployment=deployment,
        student=student,
        teacher=teacher,
        count=count,
        memory=memory,
        cost=cost_of(config, deployment, student, teacher, count, assumed),
        problems=tuple(_problems(config, method, deployment, student, teacher, count, kernels)),
        notes=tuple(_cache_notes(config, deployment, student, count)),
    )


def memory_of(
    config: RunConfig,
    deployment: Deployment,
    student: ModelShape,
    teacher: ModelShape | None,
    count: StepCount,
    kernels: Kernels,
) -> dict[str, dict[str, float]]:
    """Bytes by part on one of the student's GPUs."""
    world = deployment.world_size
    parts = predict(
        student,
        update=config.update,
        world_size=world,
        dtype=config.student.dtype,
        longest=count.longest,
        num_patches=patches_of(student, config.data.media.max_pixels) if may_have_media(config) else 0,
        kernels=kernels,
    )
    gpu = GPUS.get(config.cluster.gpu)
    return phases(
        parts,
        student,
        deployment=deployment,
        rollout=config.rollout,
        gpu_bytes=0.0 if gpu is None else gpu.memory_gb * GB,
        num_sequences=_num_sequences(config, deployment, count),
        longest=count.longest,
        teacher=_load(config, deployment.teacher, teacher, count),
    )


def may_have_media(config: RunConfig) -> bool:
    """Files are not read here."""
    data = config.data
    return data.source in ("jsonl", "parquet", "hub") or any(task != "arithmetic" for task in data.tasks)


def _load(
    config: RunConfig, place: TeacherPlace | None, teacher: ModelShape | None, count: StepCount
) -> TeacherLoad | None:
    if place is None or teacher is None:
        return None
    asked = count.tokens.get("tokens/teacher_generated", 0.0) > 0
    return TeacherLoad(shape=teacher, samples=asked, vllm_share=_engine_share(config, place))


def _engine_share(config: RunConfig, place: TeacherPlace) -> float:
    """Share of a GPU's memory that the teacher's vLLM takes."""
    vllm = config.rollout.vllm
    fraction = vllm.own_memory_fraction if place.own_gpus else vllm.memory_fraction
    return _argument(config, "gpu-memory-utilization", fraction) if place.serves else fraction


def _problems(
    config: RunConfig,
    method: Method,
    deployment: Deployment,
    student: ModelShape,
    teacher: ModelShape | None,
    count: StepCount,
    kernels: Kernels,
) -> Iterator[str]:
    gpu = GPUS.get(config.cluster.gpu)
    if gpu is None:
        return
    room = gpu.memory_gb * GB
    memory = memory_of(config, deployment, student, teacher, count, kernels)
    for phase, parts in memory.items():
        total = sum(parts.values())
        if total > room:
            largest = sorted(parts, key=lambda part: -parts[part])[:2]
            named = " and ".join(f"{part} {parts[part] / GB:.1f}" for part in largest)
            yield (
                f"{phase} needs {total / GB:.1f} GB of {gpu.memory_gb:.1f} on {config.cluster.gpu} ({named}): "
                f"{_remedies(config, method, student, teacher, count, kernels, room)}"
            )
            break
    yield from _engine_problems(config, deployment, student, teacher, count, room)


def _num_sequences(config: RunConfig, deployment: Deployment, count: StepCount) -> int:
    """Sequences that a rank decodes at a time."""
    return min(config.rollout.max_sequences, -(-count.num_student // deployment.world_size))


def _cache_notes(config: RunConfig, deployment: Deployment, student: ModelShape, count: StepCount) -> Iterator[str]:
    """A cache that holds only some of a rank's sequences at a time: the others wait, or are read once more."""
    gpu = GPUS.get(config.cluster.gpu)
    if gpu is None or not deployment.student.in_vllm or config.rollout.vllm.cache_gib is not None:
        return
    fraction, room = config.rollout.vllm.memory_fraction, gpu.memory_gb * GB
    num, one = _num_sequences(config, deployment, count), student.cache_bytes(count.longest)
    held = engine_cache(student, share=fraction * room) / one
    if held >= num:
        return
    wanted = _up((student.weight_bytes + ENGINE_BYTES + num * one) / room)
    remedy = f"rollout.vllm.memory_fraction={wanted:g} holds all" if wanted <= 0.9 else "a larger GPU holds more"
    yield (
        f"{config.student.name}: the student's engine holds {held:.0f} of the {num} sequences of {count.longest} "
        f"tokens that a GPU decodes at a time ({held * one / GB:.1f} of {num * one / GB:.1f} GB of cache): {remedy}"
    )


def _engine_problems(
    config: RunConfig,
    deployment: Deployment,
    student: ModelShape,
    teacher: ModelShape | None,
    count: StepCount,
    room: float,
) -> Iterator[str]:
    """vLLM's share of a GPU has to hold the weights and at least one sequence."""
    fraction = config.rollout.vllm.memory_fraction
    if deployment.student.in_vllm:
        needs = engine_needs(student, longest=count.longest)
        if needs > fraction * room:
            yield (
                f"the student's engine needs {needs / GB:.1f} GB and rollout.vllm.memory_fraction={fraction:g} gives "
                f"{fraction * room / GB:.1f}: set rollout.vllm.memory_fraction={_up(needs / room):g} or more"
            )
    place = deployment.teacher
    if teacher is None or place is None:
        return
    assert config.teacher is not None
    yield from _copy_problems(config, place, teacher, room)
    if place.is_scored_by_server and may_have_media(config):
        yield "a served teacher scores text only, and the data may have pictures: set server.score=false"
    if not place.in_vllm:
        return
    name = "own_memory_fraction" if place.own_gpus else "memory_fraction"
    fraction = _engine_share(config, place)
    parallel = float(len(place.own_gpus) or config.rollout.vllm.tensor_parallel_size)
    if place.serves:
        parallel = _argument(config, "tensor-parallel-size", 1.0)
    needs = engine_needs(teacher, longest=count.longest, tensor_parallel=int(parallel))
    if needs <= fraction * room:
        return
    where = f"teacher {config.teacher.name} does not fit: {needs / GB:.1f} GB on each of its GPUs"
    given = f"its share is {fraction * room / GB:.1f} ({fraction:g} of {config.cluster.gpu})"
    option = "server.args=['--gpu-memory-utilization={}']" if place.serves else f"rollout.vllm.{name}={{}}"
    gpus = len(place.own_gpus) or config.cluster.student_gpus
    if needs <= 0.92 * room:
        yield f"{where}, {given}: set {option.format(_up(needs / room))}"
    elif needs * parallel / gpus <= 0.92 * room:
        cut = f"server.args=['--tensor-parallel-size={gpus}','--gpu-memory-utilization=0.92']"
        yield f"{where}, {given}: set {cut if place.serves else f'rollout.vllm.tensor_parallel_size={gpus}'}"
    else:
        yield f"{where}, {given}: more or larger teacher GPUs (cluster.teacher_gpus, cluster.gpu), or an FP8 teacher"


def _copy_problems(config: RunConfig, place: TeacherPlace, teacher: ModelShape, room: float) -> Iterator[str]:
    """Copies that ranks load on GPUs that are not the student's, and an engine that has its share of the same."""
    assert config.teacher is not None
    if place.beside or not any(device.startswith("cuda") for device in place.devices):
        return
    num_ranks = -(-(config.cluster.student_gpus if place.is_everywhere else 1) // len(place.devices))
    is_shared = place.in_vllm and place.has_copies_on_own_gpus
    total = num_ranks * place.num_copies * teacher.weight_bytes
    total += _engine_share(config, place) * room if is_shared else 0.0
    if total > room:
        more = f" with its engine's {_engine_share(config, place):g} of the memory" if is_shared else ""
        yield (
            f"teacher {config.teacher.name} does not fit: {num_ranks} ranks score on each teacher GPU{more}, "
            f"{total / GB:.1f} GB of weights: set teacher_device=cuda, so that each has its own next to its student"
        )


def _argument(config: RunConfig, name: str, default: float) -> float:
    """The value of an argument of `vllm serve` in `server.args`."""
    found = re.findall(rf"--{name}[= ]([0-9.]+)", " ".join(config.server.args).replace("_", "-"))
    return float(found[-1]) if found else float(default)


def _remedies(
    config: RunConfig,
    method: Method,
    student: ModelShape,
    teacher: ModelShape | None,
    count: StepCount,
    kernels: Kernels,
    room: float,
) -> str:
    """The changes that alone make it fit; else all of them together, if that does."""

    def fits(*changes: Override) -> bool:
        changed = _changed(config, changes)
        longest = count.longest - config.rollout.max_response_tokens + changed.rollout.max_response_tokens
        moved = dataclasses.replace(count, longest=longest)
        try:
            deployment = Deployment.of(changed, method)
        except UserError:
            return False
        found = memory_of(changed, deployment, student, teacher, moved, kernels)
        return all(sum(parts.values()) <= room for parts in found.values())

    changes = list(_changes(config, teacher))
    alone = [change for change in changes if fits(*change)]
    if alone:
        return "set " + " or ".join(map(_written, alone[:4]))
    together: list[tuple[Override, ...]] = []
    for change in changes:
        same = {key for key, _ in change}
        together = [other for other in together if not same & {key for key, _ in other}] + [change]
        if fits(*_flat(together)):
            break
    else:
        return (
            "no option makes it fit: more student GPUs (cluster.num_nodes, cluster.student_gpus), a larger GPU, or a "
            "smaller student"
        )
    for change in [*together]:
        if fits(*_flat([other for other in together if other is not change])):
            together.remove(change)
    return "set " + " ".join(map(_written, together))


def _changes(config: RunConfig, teacher: ModelShape | None) -> Iterator[tuple[Override, ...]]:
    """Cheapest first; each may be several options at a time."""
    update, rollout = config.update, config.rollout
    if not update.gradient_checkpointing:
        yield (("update.gradient_checkpointing", True),)
    if teacher is not None and config.cluster.teacher_gpus == 0:
        yield (("cluster.teacher_gpus", 1), *([("teacher_device", None)] if config.teacher_device else []))
    for optimizer in ("adamw_bf16", "adamw_8bit"):
        if STATE_BYTES[optimizer] < STATE_BYTES[update.optimizer]:
            yield (("update.optimizer", optimizer),)
    for tokens in (8192, 4096, 2048, 1024):
        if tokens < rollout.max_response_tokens:
            micro = min(update.micro_batch_tokens, rollout.max_prompt_tokens + tokens)
            yield ("rollout.max_response_tokens", tokens), ("update.micro_batch_tokens", micro)


def _flat(changes: list[tuple[Override, ...]]) -> list[Override]:
    return [override for change in changes for override in change]


def _written(change: tuple[Override, ...]) -> str:
    return " ".join(f"{key}={json.dumps(value) if value in (None, True) else value}" for key, value in change)


def _changed(config: RunConfig, changes: tuple[Override, ...]) -> RunConfig:
    for key, value in changes:
        section, _, name = key.rpartition(".")
        if section:
            name, value = section, dataclasses.replace(getattr(config, section), **{name: value})
        config = dataclasses.replace(config, **{name: value})
    return config


def _up(share: float) -> float:
    """The next hundredth."""
    return -(-share * 100 // 1) / 100


def refuse(plans: list[Plan]) -> None:
    """Raises UserError for the first cell that cannot fit, with the number of the others."""
    bad = [plan for plan in plans if plan.problems]
    if not bad:
        return
    first = bad[0]
    more = f" ({len(bad) - 1} more cells do not fit)" if len(bad) > 1 else ""
    raise UserError(f"{first.label} {first.config.student.name} does not fit: {'; '.join(first.problems)}{more}")
