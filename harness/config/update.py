"""Configuration of the optimizer update: rates, memory, and what happens to numbers that are not finite."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class UpdateConfig:
    learning_rate: float = 1e-6
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    optimizer: str = "adamw"
    """adamw: fp32 states; adamw_bf16: the paper's bf16 states, rounded at random; adamw_8bit: blocks of 8 bits;
    adamw_offload: fp32 states in the host's memory (needs a GPU). Weights are fp32 with all of them."""
    micro_batch_tokens: int = 16_384
    """Tokens, padding included, of a forward and backward pass; a longer sequence has one for itself. Changes speed and
    memory, never the gradient."""
    logit_memory_mb: float = 512.0
    """MiB for everything of a vocabulary's width: logits, the teacher's, and gradients. Decides how many trained tokens
    are projected at a time; changes speed and memory, never the gradient."""
    share_prompts: bool = True
    """Read a prompt once for all rollouts of its group, or what all prompts begin with once, where the architecture has
    nothing but attention layers."""
    old_logprobs: str = "engine"
    """engine: those returned with the rollouts; recompute: one forward pass before the step's first update."""
    gradient_checkpointing: bool = False
    on_nonfinite: str = "stop"
    """What a reward, log-probability, loss or gradient that is not finite does before the optimizer moves: stop ends
    the run, skip leaves this update (of a reward: the step's) out and counts it; both save the sample."""


@dataclass
class AlarmConfig:
    """What methods with a policy gradient are watched for. An alarm is logged and its samples are saved in `alarms/`;
    it stops nothing."""

    min_entropy: float | None = 0.01
    """nats a token: least mean entropy of the distributions of an update's tokens; null is no alarm."""
    max_ratio: float | None = 2.0
    """Largest mean of exp(logprobs - old_logprobs) over an update's tokens, which is about 1 while the policy is near
    the one that sampled; null is no alarm."""


CHOICES = {
    "update.optimizer": ("adamw", "adamw_bf16", "adamw_8bit", "adamw_offload"),
    "update.old_logprobs": ("engine", "recompute"),
    "update.on_nonfinite": ("stop", "skip"),
}


POSITIVE = ("update.max_grad_norm", "update.micro_batch_tokens", "update.logit_memory_mb")
