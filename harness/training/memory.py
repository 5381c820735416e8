"""The memory of an update and of its rollouts by part, in bytes: the one definition, of `zppo plan` and a run's log.

What a layer keeps for its backward pass was counted with `torch.autograd.graph.saved_tensors_hooks` in transformers
5.23, for Qwen3.5's layers in fp32 and under bf16 autocast; llama-like layers keep a little less. Sharding is FSDP2's
full shard by decoder layer, all else in an outer group that is gathered during an update
(`tests/distributed/test_memory.py` measures it). Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.config.deployment import Deployment
from harness.config.engines import RolloutConfig
from harness.config.update import UpdateConfig
from harness.errors import UserError, first_line
from harness.models.kernels import Kernels, installed_kernels
from harness.models.shapes import FULL, LINEAR, ModelShape

if TYPE_CHECKING:
    from harness.models.forward import LanguageModel


LOGIT_BUFFERS = 4
"""Tensors of a tile's logits that exist at once: the student's, the teacher's, and two gradients."""
STATE_BYTES = {"adamw": 8.0, "adamw_bf16": 4.0, "adamw_8bit": 2.1}
"""Bytes of the optimizer's states, per weight."""
MIB = 2**20
GB = 1e9
RUNTIME_BYTES = 2 * GB
"""Assumed: CUDA's and NCCL's own, and what the allocator cannot use."""
ASLEEP_BYTES = 1.5 * GB
"""Assumed: what a sleeping vLLM keeps, its graphs and context."""
ENGINE_BYTES = 3 * GB
"""Assumed: a vLLM's graphs, and what its largest pass takes, a picture's included."""
CHUNK = 64
"""Tokens of a chunk of the gated delta rule."""


def tile_tokens(num_ids: int, logit_memory_mb: float) -> int:
    """Trained tokens whose fp32 logits, with everything else of their size, fit into the budget.

    Example: 512 MiB hold 512 * 2^20 / (4 buffers * 4 bytes * 248,320) = 135 tokens. Raises UserError where none fits.
    """
    row = LOGIT_BUFFERS * 4 * num_ids
    if (fitting := int(logit_memory_mb * MIB // row)) < 1:
        raise UserError(
            f"update.logit_memory_mb={logit_memory_mb:g} does not hold one token's logits over {num_ids} ids: "
            f"set {row / MIB:.3g} or more"
        )
    return fitting


def layer_activations(shape: ModelShape, kind: str, *, is_16bit: bool, kernels: Kernels = "torch") -> float:
    """Bytes a token that a layer keeps for its backward pass. fla's are derived from its sources, not counted."""
    h, i = shape.hidden, shape.intermediate
    if kind != LINEAR or shape.linear is None:
        width, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        small = 8 * shape.heads + 4 * shape.kv_heads + 8
        return (26 * h + 8 * i + 18 * width + 12 * kv if is_16bit else 24 * h + 16 * i + 32 * width + 16 * kv) + small
    linear, heads = shape.linear, shape.linear.value_heads
    keys, state = linear.repeated_keys, heads * linear.key_dim * linear.value_dim / CHUNK
    if kernels == "fla" and is_16bit:
        wide = 2 * linear.keys + linear.values
        return 28 * h + 8 * i + 4 * wide + 8 * linear.keys + 22 * linear.values + (2 * CHUNK + 12) * heads + 24
    if is_16bit:
        return 28 * h + 8 * i + 8 * linear.keys + 36 * (keys + linear.values) + 934 * heads + 8 * state + 24
    return 24 * h + 16 * i + 16 * linear.keys + 46 * keys + 44 * linear.values + 1320 * heads + 4 * state + 24


def vision_activations(shape: ModelShape, *, is_16bit: bool) -> float:
    """Bytes a patch that a block of the vision tower keeps, by the same count of its operations."""
    assert shape.vision is not None
    h, i = shape.vision.hidden, shape.vision.intermediate
    return 30 * h + 4 * i if is_16bit else 44 * h + 8 * i


def predict(
    shape: ModelShape,
    *,
    update: UpdateConfig,
    world_size: int = 1,
    dtype: str = "bfloat16",
    longest: int = 0,
    num_patches: int = 0,
    kernels: Kernels = "torch",
    num_ids: int | None = None,
    num_weights: int | None = None,
) -> dict[str, float]:
    """Bytes by part on one rank at the peak of an update, whose sum is that peak.

    `longest` are the tokens of the longest sequence (one above `update.micro_batch_tokens` has a pass for itself).
    `num_patches` are the patches of the pictures of a micro-batch, `num_ids` the rows of the head that are computed and
    `num_weights` the model's weights where they were counted.
    """
    is_16bit = dtype != "float32"
    compute = 2.0 if is_16bit else 4.0
    num = shape.num_parameters if num_weights is None else num_weights
    tokens = max(update.micro_batch_tokens, longest)
    ids = shape.vocab if num_ids is None else num_ids
    tile = float(min(tile_tokens(ids, update.logit_memory_mb), tokens) * LOGIT_BUFFERS * 4 * ids)
    layers = {kind: layer_activations(shape, kind, is_16bit=is_16bit, kernels=kernels) for kind in _kinds(shape)}
    # The last MLP's backward pass: the gradients of its three wide tensors and of two of the stream's width.
    backward = tokens * (3 * shape.intermediate + 2 * shape.hidden) * compute
    seen, block = _vision(shape, num_patches, is_16bit=is_16bit, checkpointing=update.gradient_checkpointing)
    if update.gradient_checkpointing:
        kept = 4.0 * tokens * shape.hidden * len(shape.layer_types)
        working = max(tokens * max(layers.values()), block) + backward
    else:
        kept = tokens * sum(shape.num_layers(kind) * layers[kind] for kind in layers)
        working = backward
    largest = max(shape.layer_parameters[kind] for kind in layers)
    embedding_gradient = 4.0 * shape.vocab * shape.hidden  # dense, when all activations are gone
    parts = {
        "weights": 4.0 * num / world_size,
        "gradients": 4.0 * num / world_size,
        "optimizer": STATE_BYTES[update.optimizer] * num / world_size,
        "activations": kept + seen + tokens * (compute + 4) * shape.hidden,
        "backward": working,
        "logits": tile,
    }
    if world_size == 1:
        parts["16-bit copies"] = 2.0 * (num - shape.vocab * shape.hidden) if is_16bit else 0.0
        missing = embedding_gradient - parts["activations"] - working
        parts["backward"] += max(0.0, missing)
        return parts
    by_part = shape.parameters
    root = 4.0 * sum(by_part[part] for part in ("embeddings", "head", "vision", "final norm"))
    # The outer group and the layer at work are complete, the next layer is on its way; so is a layer's gradient.
    parts["gathered weights"] = root + 2 * largest * compute
    parts["gathered gradients"] = root + (4.0 * largest if update.gradient_checkpointing else 0.0)
    return parts


@dataclass(frozen=True, kw_only=True)
class TeacherLoad:
    """The teacher of a plan: its dimensions, and what the method asks of it."""

    shape: ModelShape
    samples: bool = False
    """The method asks it."""
    vllm_share: float = 0.0
    """Share of a GPU's memory that its vLLM takes."""

    def scoring_bytes(self, tokens: float) -> float:
        """Bytes of a forward pass without gradients: what an MLP holds at once, 16-bit, and the stream."""
        return tokens * 2 * (3 * self.shape.intermediate + 4 * self.shape.hidden)


def phases(
    parts: Mapping[str, float],
    shape: ModelShape,
    *,
    deployment: Deployment,
    rollout: RolloutConfig,
    gpu_bytes: float,
    num_sequences: int,
    longest: int,
    teacher: TeacherLoad | None = None,
) -> dict[str, dict[str, float]]:
    """Bytes by part on a student's GPU while it updates and while it samples; `parts` are `predict`'s.

    `num_sequences` of at most `longest` tokens are decoded at a time. Of several GPUs it is the fullest, which is that
    of a node's first rank.
    """
    shared = {"runtime": RUNTIME_BYTES} if gpu_bytes else {}
    sampling_only: dict[str, float] = {}
    updating_only: dict[str, float] = {}
    fraction = rollout.vllm.memory_fraction * gpu_bytes
    cache = num_sequences * shape.cache_bytes(longest)
    if deployment.student.in_vllm:
        sampling_only["engine"] = fraction
        updating_only["engine"] = ASLEEP_BYTES if rollout.vllm.sleep else fraction
    else:
        sampling_only["cache"] = cache
        if deployment.world_size > 1:
            shared["engine"] = shape.weight_bytes
        else:
            sampling_only["16-bit copies"] = parts.get("16-bit copies", 0.0)
    if (place := deployment.teacher) is not None and teacher is not None:
        if place.in_vllm and not place.own_gpus:
            shared["teacher's engine"] = teacher.vllm_share * gpu_bytes
        if place.beside:
            shared["teacher"] = place.num_copies * teacher.shape.weight_bytes
        if place.beside and place.samples_here and teacher.samples:
            sampling_only["teacher's cache"] = num_sequences * teacher.shape.cache_bytes(longest)
        if place.beside and place.scores is not None:
            updating_only["scoring"] = teacher.scoring_bytes(longest)
        elif place.has_process:  # its head is applied here
            shared["teacher's head"] = 2.0 * teacher.shape.num_head
    lasting = {name: parts[name] for name in ("weights", "optimizer")}
    return {"update": {**parts, **shared, **updating_only}, "sampling": {**lasting, **shared, **sampling_only}}


def engine_needs(shape: ModelShape, *, longest: int, tensor_parallel: int = 1) -> float:
    """Least bytes of a vLLM engine on each of its GPUs: weights, one sequence's cache, and 5 % to work with."""
    return (1.05 * shape.weight_bytes + shape.cache_bytes(longest)) / tensor_parallel


def engine_cache(shape: ModelShape, *, share: float) -> float:
    """Bytes that an engine's `share` of a GPU leaves for the cache: without weights, graphs and a pass at work."""
    return max(0.0, share - shape.weight_bytes - ENGINE_BYTES)


def _vision(shape: ModelShape, num_patches: int, *, is_16bit: bool, checkpointing: bool) -> tuple[float, float]:
    """What the vision tower keeps, and what one of its blocks takes when it is computed again."""
    if shape.vision is None or not num_patches:
        return 0.0, 0.0
    block = num_patches * vision_activations(shape, is_16bit=is_16bit)
    kept = 4.0 * num_patches * shape.vision.hidden if checkpointing else block
    return shape.vision.depth * kept, block


def _kinds(shape: ModelShape) -> list[str]:
    return [kind for kind in (LINEAR, FULL) if shape.num_layers(kind)]


def patches_of(shape: ModelShape, max_pixels: int) -> int:
    """Patches of the largest picture."""
    return 0 if shape.vision is None else math.ceil(max_pixels / shape.vision.patch**2)


def memory_text(student: LanguageModel, config: UpdateConfig, num_ranks: int = 1) -> str:
    """The expected peak of an update with one full micro-batch of text, on one rank, in MiB; of an architecture whose
    layers are not known the logits alone."""
    text = (
        f"update: logits of at most {tile_tokens(student.num_tokens, config.logit_memory_mb)} trained tokens at a time "
        f"({student.num_tokens} ids), none of them computed twice"
    )
    try:
        parts = predict(
            ModelShape.read(student.module.config.to_dict()),
            update=config,
            world_size=num_ranks,
            dtype=str(student.compute_dtype).removeprefix("torch."),
            kernels=installed_kernels() if student.device.type == "cuda" else "torch",
            num_ids=student.num_tokens,
            num_weights=sum(p.numel() for p in student.module.parameters()),
        )
    except Exception as error:  # configurations of families differ without end, and no estimate is worth a run
        reason = f"{type(error).__name__}: {first_line(error)}"
        return f"{text}; {student.module.config.model_type} has layers whose memory is not estimated ({reason})"
    if student.path == "own":
        parts["its own logits"] = 2 * 4.0 * config.micro_batch_tokens * student.num_tokens
    sizes = ", ".join(f"{name} {size / MIB:.0f}" for name, size in parts.items() if size)
    return f"{text}; estimated peak {sum(parts.values()) / MIB:.0f} MiB ({sizes})"
