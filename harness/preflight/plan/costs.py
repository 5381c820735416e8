"""FLOPs, hours and disk of a run, from the tokens of a step."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from harness.config.deployment import Deployment, Engine
from harness.config.gpus import GPUS, Gpu
from harness.config.schema import RunConfig
from harness.models.shapes import ModelShape
from harness.preflight.plan.counting import OF_OTHERS, STEPS_PER_SECOND, Assumptions, StepCount
from harness.training.memory import STATE_BYTES
from harness.training.metrics import flops

STORED_TOKEN = 24
"""Bytes of a sampled token in `pending/`: its id, its log-probability, and a share of text."""
RECORD_TOKEN = 2.0
"""Bytes of a token of text in the rollouts' parquet, compressed; assumed."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one run."""

    num_steps: int
    step_flops: dict[str, float]
    step_seconds: dict[str, float] | None
    """rollout (with the teacher's work at the same time), update, scoring; None where the GPU is not stated."""
    disk_bytes: float

    @property
    def run_flops(self) -> float:
        return self.num_steps * sum(self.step_flops.values())

    @property
    def hours(self) -> float | None:
        if self.step_seconds is None:
            return None
        return self.num_steps * sum(self.step_seconds.values()) / 3600


def cost_of(
    config: RunConfig,
    deployment: Deployment,
    student: ModelShape,
    teacher: ModelShape | None,
    count: StepCount,
    assumed: Assumptions,
) -> Cost:
    """What a run computes by the harness's own definition (`harness.training.metrics.flops`), and takes."""
    num_teacher = 0 if teacher is None else teacher.num_parameters
    step = flops(
        count.tokens,
        student=student.num_parameters,
        teacher=num_teacher,
        gradient_checkpointing=config.update.gradient_checkpointing,
    )
    gpu = GPUS.get(config.cluster.gpu)
    num_steps = _num_steps(config, assumed)
    return Cost(
        num_steps=num_steps,
        step_flops=step,
        step_seconds=None if gpu is None else _seconds(config, deployment, student, teacher, count, step, gpu, assumed),
        disk_bytes=_disk(config, student, count, num_steps),
    )


def decode_rate(
    shape: ModelShape, gpu: Gpu, *, num_sequences: float, mean_tokens: float, engine: str, assumed: Assumptions
) -> float:
    """Tokens a second of one GPU that decodes `num_sequences` at a time: each step reads the weights and all caches."""
    read = shape.weight_bytes + num_sequences * shape.cache_bytes(mean_tokens)
    limit = assumed.max_steps_per_second or STEPS_PER_SECOND.get(engine, OF_OTHERS)
    steps = min(limit, assumed.bandwidth * gpu.bandwidth_tb * 1e12 / read)
    return num_sequences * steps


def published(label: str, config: RunConfig, cost: Cost | None) -> tuple[float, float] | None:
    """Hours on 64 H100 and total FLOPs of the paper's Table 9, for a row, a student and a setting that it has."""
    setting = (config.data.batch_size, config.rollout.max_response_tokens, None if cost is None else cost.num_steps)
    return _table9().get((label, config.student.name)) if setting == (384, 12_288, 200) else None


@cache
def _table9() -> dict[tuple[str, str], tuple[float, float]]:
    text = files("harness.preflight.plan").joinpath("table9.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return {(row["method"], row["student"]): (float(row["hours"]), float(row["flops"])) for row in rows}


def _num_steps(config: RunConfig, assumed: Assumptions) -> int:
    if config.steps is not None:
        return config.steps
    is_generated = config.data.source in ("synthetic", "reasoning_gym")
    questions = config.data.pool_size or (config.data.num_questions if is_generated else assumed.num_questions)
    return questions * config.data.epochs // config.data.batch_size


def _seconds(
    config: RunConfig,
    deployment: Deployment,
    student: ModelShape,
    teacher: ModelShape | None,
    count: StepCount,
    step: dict[str, float],
    gpu: Gpu,
    assumed: Assumptions,
) -> dict[str, float]:
    useful, ranks = assumed.mfu * gpu.bf16_tflops * 1e12, deployment.world_size
    place, engine = deployment.teacher, deployment.student.engine
    together = _generation(config, student, count, "student", count.num_student, engine, gpu, ranks, assumed)
    if teacher is not None and place is not None and place.samples is not None:
        theirs = deployment.sampling_gpus
        asking = _generation(config, teacher, count, "teacher", count.num_teacher, place.samples, gpu, theirs, assumed)
        together = max(together, asking) if place.is_aside else together + asking
    return {
        "rollout": together,
        "update": step["flops/student_update"] / (useful * ranks),
        "scoring": step["flops/teacher_scoring"] / (useful * (deployment.scoring_gpus or ranks)),
    }


def _generation(
    config: RunConfig,
    shape: ModelShape,
    count: StepCount,
    name: str,
    num_rollouts: int,
    engine: Engine,
    gpu: Gpu,
    num_gpus: int,
    assumed: Assumptions,
) -> float:
    """Seconds: prompts at the MFU, and tokens at what one GPU decodes with its share of the sequences."""
    generated = count.tokens.get(f"tokens/{name}_generated", 0.0)
    prompts = count.tokens.get(f"tokens/{name}_prompt", 0.0)
    if not generated:
        return 0.0
    prefill = 2.0 * shape.num_parameters * prompts / (assumed.mfu * gpu.bf16_tflops * 1e12 * num_gpus)
    if name == "student" and assumed.rollout_rate:
        return prefill + generated / (assumed.rollout_rate * num_gpus)
    share = max(1.0, num_rollouts / num_gpus)
    mean = (assumed.response_tokens or config.rollout.max_response_tokens) / 2 + assumed.prompt_tokens
    at_a_time = min(share, config.rollout.max_sequences)
    rate = decode_rate(shape, gpu, num_sequences=at_a_time, mean_tokens=mean, engine=engine, assumed=assumed)
    return prefill + generated / (rate * num_gpus)


def _disk(config: RunConfig, student: ModelShape, count: StepCount, num_steps: int) -> float:
    """Checkpoints (one more while the next is written), the model, rollouts of all kept steps, and stored steps."""
    num, checkpoint = student.num_parameters, config.checkpoint
    states = STATE_BYTES[config.update.optimizer]
    kept = checkpoint.keep_last + 1
    if checkpoint.keep_every:
        kept += num_steps // math.lcm(checkpoint.keep_every, checkpoint.every)
    text = sum(count.tokens.get(f"tokens/{name}_generated", 0.0) for name in ("student", "teacher"))
    recorded = num_steps if config.rollouts.keep is None else min(num_steps, config.rollouts.keep)
    stored = min(num_steps, checkpoint.every)
    return kept * (4.0 + states) * num + 2.0 * num + text * (RECORD_TOKEN * recorded + STORED_TOKEN * stored)
