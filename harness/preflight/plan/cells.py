"""A planned cell: everything that is known of a run before it starts, and why it cannot fit."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass

from harness.config.gpus import GPUS
from harness.config.schema import RunConfig
from harness.errors import UserError
from harness.models.shapes import ModelShape
from harness.preflight.plan.costs import Cost, cost_of
from harness.preflight.plan.counting import Assumptions, StepCount, count_step
from harness.training.memory import (
    GB,
    STATE_BYTES,
    Kernels,
    TeacherLoad,
    engine_needs,
    patches_of,
    phases,
    predict,
)
from methods.base import Method

Override = tuple[str, object]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of all seeds of one label and student."""

    label: str
    method: str
    num_seeds: int
    config: RunConfig
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
    """Plan one cell. `shapes` are those of the student and of the configured teacher."""
    student, teacher = shapes
    name = str(config.method["name"])
    if method is None:
        return Plan(
            label=label, method=name, num_seeds=num_seeds, config=config, student=student, teacher=None, count=None,
            memory=None, cost=None,
        )  # fmt: skip
    teacher = teacher if method.needs_teacher != "none" else None
    count = count_step(method, config, assumed)
    memory = memory_of(config, method, student, teacher, count, kernels)
    return Plan(
        label=label,
        method=name,
        num_seeds=num_seeds,
        config=config,
        student=student,
        teacher=teacher,
        count=count,
        memory=memory,
        cost=cost_of(config, student, teacher, count, assumed),
        problems=tuple(_problems(config, method, student, teacher, count, kernels)),
    )


def memory_of(
    config: RunConfig,
    method: Method,
    student: ModelShape,
    teacher: ModelShape | None,
    count: StepCount,
    kernels: Kernels,
) -> dict[str, dict[str, float]]:
    """Bytes by part on one of the student's GPUs."""
    world = config.cluster.world_size
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
        rollout=config.rollout,
        world_size=world,
        gpu_bytes=0.0 if gpu is None else gpu.memory_gb * GB,
        num_sequences=min(config.rollout.max_sequences, -(-count.num_student // world)),
        longest=count.longest,
        teacher=_beside(config, method, teacher),
    )


def may_have_media(config: RunConfig) -> bool:
    """Files are not read here."""
    data = config.data
    return data.source in ("jsonl", "parquet", "hub") or any(task != "arithmetic" for task in data.tasks)


def _beside(config: RunConfig, method: Method, teacher: ModelShape | None) -> TeacherLoad | None:
    """A teacher on the student's own GPU: one whose distribution is read, unless an endpoint scores, and one that
    samples where it has no GPUs of its own."""
    if teacher is None or config.teacher is None:
        return None
    if _scores_here(config, method):
        if _scores_on_teacher_gpus(config):
            return None
        samples = "teacher" in method.trained_samplers and not config.teacher.is_served
        return TeacherLoad(shape=teacher, samples=samples and config.rollout.engine != "vllm")
    if config.teacher.urls or config.cluster.teacher_gpus:
        return None
    in_vllm = config.teacher.serve or config.rollout.engine == "vllm"
    return TeacherLoad(shape=teacher, in_vllm=in_vllm, samples=True)


def _scores_here(config: RunConfig, method: Method) -> bool:
    """Whether every rank loads the teacher to read its distribution."""
    assert config.teacher is not None
    return method.needs_teacher == "distribution" and not (config.teacher.is_served and config.server.score)


def _scores_on_teacher_gpus(config: RunConfig) -> bool:
    return config.cluster.teacher_gpus > 0 and config.teacher_device is None


def _problems(
    config: RunConfig,
    method: Method,
    student: ModelShape,
    teacher: ModelShape | None,
    count: StepCount,
    kernels: Kernels,
) -> Iterator[str]:
    gpu = GPUS.get(config.cluster.gpu)
    if gpu is None:
        return
    room = gpu.memory_gb * GB
    memory = memory_of(config, method, student, teacher, count, kernels)
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
    yield from _engine_problems(config, method, student, teacher, count, room)


def _engine_problems(
    config: RunConfig, method: Method, student: ModelShape, teacher: ModelShape | None, count: StepCount, room: float
) -> Iterator[str]:
    """vLLM's share of a GPU has to hold the weights and at least one sequence."""
    fraction = config.rollout.vllm.memory_fraction
    if config.rollout.engine == "vllm":
        needs = engine_needs(student, longest=count.longest)
        if needs > fraction * room:
            yield (
                f"the student's engine needs {needs / GB:.1f} GB and rollout.vllm.memory_fraction={fraction:g} gives "
                f"{fraction * room / GB:.1f}: set rollout.vllm.memory_fraction={_up(needs / room):g} or more"
            )
    if teacher is None or config.teacher is None:
        return
    yield from _scoring_problems(config, method, teacher, room)
    scores = method.needs_teacher == "distribution"
    samples = not scores or "teacher" in method.trained_samplers
    served = config.teacher.serve and (samples or config.server.score)
    if not served and not (samples and config.rollout.engine == "vllm" and not config.teacher.urls):
        return
    own = config.cluster.teacher_gpus > 0
    name = "own_memory_fraction" if own else "memory_fraction"
    fraction = getattr(config.rollout.vllm, name)
    parallel = float(config.cluster.teacher_gpus or config.rollout.vllm.tensor_parallel_size)
    if served:
        fraction = _argument(config, "gpu-memory-utilization", fraction)
        parallel = _argument(config, "tensor-parallel-size", 1.0)
    needs = engine_needs(teacher, longest=count.longest, tensor_parallel=int(parallel))
    if needs <= fraction * room:
        return
    where = f"teacher {config.teacher.name} does not fit: {needs / GB:.1f} GB on each of its GPUs"
    given = f"its share is {fraction * room / GB:.1f} ({fraction:g} of {config.cluster.gpu})"
    option = "server.args=['--gpu-memory-utilization={}']" if served else f"rollout.vllm.{name}={{}}"
    gpus = config.cluster.teacher_gpus or config.cluster.student_gpus
    if needs <= 0.92 * room:
        yield f"{where}, {given}: set {option.format(_up(needs / room))}"
    elif needs * parallel / gpus <= 0.92 * room:
        cut = f"server.args=['--tensor-parallel-size={gpus}','--gpu-memory-utilization=0.92']"
        yield f"{where}, {given}: set {cut if served else f'rollout.vllm.tensor_parallel_size={gpus}'}"
    else:
        yield f"{where}, {given}: more or larger teacher GPUs (cluster.teacher_gpus, cluster.gpu), or an FP8 teacher"


def _scoring_problems(config: RunConfig, method: Method, teacher: ModelShape, room: float) -> Iterator[str]:
    """Methods that read the teacher's distribution."""
    assert config.teacher is not None
    if method.needs_teacher != "distribution":
        return
    if not _scores_here(config, method):
        if may_have_media(config):
            yield "a served teacher scores text only, and the data may have pictures: set server.score=false"
        return
    copies = -(-config.cluster.student_gpus // max(1, config.cluster.teacher_gpus))
    total = copies * teacher.weight_bytes
    if _scores_on_teacher_gpus(config) and total > room:
        yield (
            f"teacher {config.teacher.name} does not fit: {copies} ranks score on each teacher GPU, {total / GB:.1f} "
            "GB of weights: set teacher_device=cuda, so that each has its own beside its student"
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
        found = memory_of(changed, method, student, teacher, moved, kernels)
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
        yield (("cluster.teacher_gpus", 1),)
    for optimizer in ("adamw_bf16", "adamw_8bit", "adamw_offload"):
        if STATE_BYTES[optimizer] < STATE_BYTES[update.optimizer]:
            yield (("update.optimizer", optimizer),)
    for tokens in (8192, 4096, 2048, 1024):
        if tokens < rollout.max_response_tokens:
            micro = min(update.micro_batch_tokens, rollout.max_prompt_tokens + tokens)
            yield ("rollout.max_response_tokens", tokens), ("update.micro_batch_tokens", micro)


def _flat(changes: list[tuple[Override, ...]]) -> list[Override]:
    return [override for change in changes for override in change]


def _written(change: tuple[Override, ...]) -> str:
    return " ".join(f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in change)


def _changed(config: RunConfig, changes: tuple[Override, ...]) -> RunConfig:
    for key, value in changes:
        section, name = key.split(".")
        config = dataclasses.replace(
            config, **{section: dataclasses.replace(getattr(config, section), **{name: value})}
        )
        if section == "cluster" and config.teacher is not None:
            config = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, serve=True))
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
