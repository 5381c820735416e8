"""How much memory an update needs, and how many trained tokens are projected to the vocabulary at a time."""

from __future__ import annotations

from dataclasses import dataclass

from harness.config import UpdateConfig
from harness.errors import UserError
from harness.models.forward import LanguageModel

LOGIT_BUFFERS = 4
"""Tensors of a tile's logits that exist at once: the student's, the teacher's, and two gradients."""
STATE_BYTES = {"adamw": 8.0, "adamw_bf16": 4.0, "adamw_8bit": 2.1, "adamw_offload": 0.0}
"""Of the optimizer, a weight."""
MIB = 2**20


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


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """An estimate in MiB of an update's peak; its activations are those of one full micro-batch."""

    num_tile: int
    num_ids: int
    weights: float
    gradients: float
    optimizer: float
    logits: float
    activations: float

    @property
    def peak(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.logits + self.activations

    def __str__(self) -> str:
        parts = ("weights", "gradients", "optimizer", "logits", "activations")
        sizes = ", ".join(f"{name} {getattr(self, name):.0f}" for name in parts)
        return (
            f"update: logits of at most {self.num_tile} trained tokens at a time ({self.num_ids} ids), none of them "
            f"computed twice; estimated peak {self.peak:.0f} MiB ({sizes})"
        )


def plan(student: LanguageModel, config: UpdateConfig, num_ranks: int = 1) -> MemoryPlan:
    """What an update of `student` will take on each of the ranks that share its weights out. Activations are a rule of
    thumb: what a layer keeps for its backward."""
    num_weights = sum(p.numel() for p in student.module.parameters()) / num_ranks
    text = student.config
    wide = (getattr(text, "intermediate_size", None) or 4 * text.hidden_size) * 4
    layer = (10 * text.hidden_size + wide) * student.compute_dtype.itemsize
    layers = text.num_hidden_layers
    if config.gradient_checkpointing:  # the input of every layer, and one layer in full
        token = layers * text.hidden_size * student.compute_dtype.itemsize + layer
    else:
        token = layers * layer
    num_tile = tile_tokens(student.num_tokens, config.logit_memory_mb)
    num_tokens = config.micro_batch_tokens
    return MemoryPlan(
        num_tile=num_tile,
        num_ids=student.num_tokens,
        weights=num_weights * 4 / MIB,
        gradients=num_weights * 4 / MIB,
        optimizer=num_weights * STATE_BYTES[config.optimizer] / MIB,
        logits=min(num_tile, num_tokens) * LOGIT_BUFFERS * 4 * student.num_tokens / MIB,
        activations=num_tokens * token / MIB,
    )
