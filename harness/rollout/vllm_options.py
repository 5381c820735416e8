"""What decides how vLLM is started, in this process or as a server. Imports no vLLM."""

from __future__ import annotations

CPU_CACHE_GIB = 1.0
"""Key-value cache without a GPU, where `rollout.vllm.cache_gib` is not set."""
CPU_BLOCK_SIZE = 32
"""Tokens of a block there; vLLM's default of 128 shares no prompt that is shorter. Its kernels want multiples of 32."""


def can_cache_prefixes(folder: str) -> bool:
    """vLLM takes every Qwen3.5 for a hybrid and fails to cache prefixes for one without linear-attention layers."""
    from transformers import AutoConfig

    text = AutoConfig.from_pretrained(folder).get_text_config()
    layers = getattr(text, "layer_types", None) or ()
    return not text.model_type.startswith("qwen3_5") or "linear_attention" in layers
