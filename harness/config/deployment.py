"""The method of a configuration, and whether the rest of the configuration can give what it needs. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harness.config.schema import RunConfig
from harness.errors import UserError
from harness.process.devices import has_gpus, visible_gpus
from methods import registry
from methods.base import Method


def build_method(config: RunConfig) -> Method | None:
    """The method of a run, None for a cell without training. Imports no torch.

    Raises UserError for unknown options and for what the rest of the configuration cannot give it.
    """
    try:
        method = registry.build(config.method)
    except registry.MethodError as error:
        raise UserError(str(error)) from error
    if method is None:
        return None
    if method.needs_teacher != "none" and config.teacher is None:
        raise UserError(
            f"method={config.method['name']} needs a teacher: set teacher=tiny_teacher, "
            "or teacher=hf teacher.path=FOLDER"
        )
    _check_served_teacher(config, method)
    if getattr(method.config, "importance_cap", None) is not None and config.update.old_logprobs == "engine":
        raise UserError(
            "method.importance_cap has no effect with update.old_logprobs=engine: old and rollout log-probabilities "
            "are then the same and every weight is 1; set update.old_logprobs=recompute"
        )
    return method


def resolved(config: RunConfig) -> RunConfig:
    """The configuration with every option of its method, defaults too: what a run records, and is compared by.

    Raises UserError as `build_method`.
    """
    method = build_method(config)
    return config if method is None else replace(config, method=registry.resolved(method, config.method))


def default_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the class of a `method` node has by default, as JSON values."""
    return dict(json.loads(json.dumps(registry.default_options(options))))


def _check_served_teacher(config: RunConfig, method: Method) -> None:
    """What an endpoint cannot give is known before it is asked."""
    teacher, name = config.teacher, config.method["name"]
    if teacher is None or not teacher.is_served or method.needs_teacher == "none":
        return
    reads = method.needs_teacher == "distribution" and config.server.score
    trains = "teacher" in method.trained_samplers
    if teacher.api == "text" and (reads or trains):
        what = "reads the teacher's distribution" if reads else "trains the teacher's tokens"
        raise UserError(
            f"method={name} {what}, and teacher.api=text gives text alone: use an endpoint that gives ids and "
            "log-probabilities (vLLM, teacher.api=tokens), or load the teacher beside the student"
        )
    if reads and method.logit_temperature(config.rollout.temperature) != 1.0:
        raise UserError(
            f"method={name} compares distributions at rollout.temperature={config.rollout.temperature:g}, and an "
            "endpoint scores at 1: set rollout.temperature=1, or load the teacher beside the student"
        )
    if config.teacher_process and config.server.score:
        raise UserError("teacher_process=true is for a teacher that this run loads: set teacher_process=false")


def run_label(config: RunConfig) -> str:
    return config.label or config.method["name"]


def check_ranks(config: RunConfig) -> None:
    """Raises UserError for what several ranks cannot do."""
    if config.cluster.world_size == 1:
        return
    if config.student.is_served:
        raise UserError("a student behind endpoints has nothing to share out: set cluster=local")
    if config.update.optimizer == "adamw_8bit":
        raise UserError(
            "update.optimizer=adamw_8bit keeps blocks of 256 numbers that a shard would cut, and its checkpoints would "
            "load on no other number of ranks: set update.optimizer=adamw_bf16, or cluster=local"
        )
    own_engine = config.rollout.engine == "vllm" and config.teacher is not None and not config.teacher.is_served
    if own_engine and not config.cluster.teacher_gpus and config.device != "cpu" and visible_gpus():
        raise UserError("a teacher on vLLM beside several ranks needs GPUs of its own: set cluster.teacher_gpus")
    for name in ("device", "teacher_device"):
        if (getattr(config, name) or "").startswith("cuda:"):
            raise UserError(f"{name}={getattr(config, name)} is one GPU for several ranks: set {name}=cuda")


def check_devices(config: RunConfig) -> None:
    """Raises UserError for GPUs that the configuration names where this machine has none.

    `device=cpu` says that a CPU is meant, whatever the cluster is.
    """
    if config.student.is_served or has_gpus():
        return
    for name in ("device", "teacher_device"):
        if (value := getattr(config, name) or "").startswith("cuda"):
            raise UserError(f"{name}={value} and this machine has no GPU: set {name}=cpu, or see zppo doctor")
    cluster = config.cluster
    names_gpus = cluster.gpu or cluster.world_size > 1 or cluster.teacher_gpus
    if names_gpus and config.device == "auto":
        raise UserError(
            f"cluster={cluster.name} names GPUs and this machine has none (zppo doctor says why): "
            "set cluster=local, or device=cpu where a CPU is meant"
        )
