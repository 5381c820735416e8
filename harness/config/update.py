"""Configuration of the optimizer update: rates, memory, and what happens to numbers that are not finite."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt


@dataclass
class UpdateConfig:
    """The optimizer, and how an update is cut into pieces that fit into memory."""

    learning_rate: NonNegativeFloat = 1e-6
    """Learning rate of AdamW, constant, without warm-up or decay (Table 8: 1e-6)."""
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = field(
        default_factory=lambda: [0.9, 0.999]
    )
    """AdamW's two decay rates, of the gradient's mean and of its square (Table 8: 0.9 and 0.999)."""
    eps: NonNegativeFloat = 1e-8
    """AdamW's constant in the denominator, against division by zero (Table 8: 1e-8)."""
    weight_decay: NonNegativeFloat = 0.1
    """AdamW's decoupled weight decay (Table 8: 0.1). 0 is none."""
    max_grad_norm: PositiveFloat = 1.0
    """Longest gradient: a gradient with a larger norm over all parameters is scaled down to it (Table 8: 1.0)."""
    optimizer: Literal["adamw", "adamw_bf16", "adamw_8bit"] = "adamw"
    """Where AdamW keeps its states. `adamw`: fp32; `adamw_bf16`: the published bf16, rounded at random; `adamw_8bit`:
    blocks of 8 bits. Trained weights are always fp32."""
    micro_batch_tokens: PositiveInt = 16_384
    """Tokens of a forward and backward pass, padding included. A longer sequence has a pass for itself. Changes speed
    and memory, never the gradient."""
    logit_memory_mb: PositiveFloat = 512.0
    """MiB for tensors as wide as the vocabulary: logits, the teacher's, and gradients. Decides how many tokens are
    projected at a time. Changes speed and memory, never the gradient."""
    share_prompts: bool = True
    """Read a prompt once for all rollouts of its group, or a beginning that all prompts share once. Only for models
    that have attention layers alone, in one process, without `update.gradient_checkpointing`."""
    old_logprobs: Literal["engine", "recompute"] = "engine"
    """Log-probabilities that the ratio is formed with. `engine`: those returned with the rollouts; `recompute`: the
    trainer's own, from a forward pass before the step's first update."""
    gradient_checkpointing: bool = False
    """Compute the layers' activations again in the backward pass and store none: needs less memory, more time."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What happens to a reward, log-probability, loss or gradient that is not finite, before the optimizer moves.
    `stop` ends the run; `skip` leaves this update out (for a reward, all of the step's) and counts it. Both save the
    sample."""


@dataclass
class AlarmConfig:
    """Limits for methods with a policy gradient. An alarm is logged and its samples are saved in `alarms/`; the run
    goes on."""

    min_entropy: PositiveFloat | None = 0.01
    """Least mean entropy of an update's tokens, in nats a token, above 0. `null` is no alarm."""
    max_ratio: Annotated[float, Field(gt=1)] | None = 2.0
    """Largest mean of `exp(logprobs - old_logprobs)` over an update's tokens, above 1. It is about 1 while the policy
    is near the one that sampled. `null` is no alarm."""
