"""How vLLM is started, in this process or as a server: the same options either way. Imports no vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from harness.config.engines import RolloutConfig
from harness.config.schema import ModelConfig

ALWAYS = {
    "logprobs_mode": "processed_logprobs",  # of logits / temperature, as the harness has them
    "generation_config": "vllm",  # no sampling defaults from the model's folder
}
STUDENT: dict[str, Any] = {
    "load_format": "dummy",  # the trainer fills it
    "hf_overrides": {"head_dtype": "float32"},  # logits as the trainer has them: ratios are formed of the two
}
FITTING = -1
"""vLLM's word for the longest context, up to the model's own, of which its cache holds one."""
CPU_CACHE_GIB = 1.0
"""Key-value cache without a GPU, where `rollout.vllm.cache_gib` is not set."""
CPU_BLOCK_SIZE = 32
"""Tokens of a block there; vLLM's default of 128 shares no prompt that is shorter. Its kernels want multiples of 32."""


def model_options(model: ModelConfig) -> dict[str, Any]:
    """What may be run and read of a model's folder: vLLM by itself would fall back to pickles."""
    return {"load_format": "safetensors", "trust_remote_code": model.trust_remote_code}


def engine_options(config: RolloutConfig, folder: str, *, own_gpus: bool = False) -> dict[str, Any]:
    """Arguments of vLLM's `EngineArgs` for a model of `folder`; what is left to vLLM is not among them. `own_gpus`: the
    engine shares none with a trainer."""
    options = config.vllm
    chosen: dict[str, Any] = {
        "max_num_seqs": config.max_sequences,
        "gpu_memory_utilization": options.own_memory_fraction if own_gpus else options.memory_fraction,
        "max_model_len": options.max_model_len,
        "enforce_eager": options.enforce_eager or None,
        "enable_prefix_caching": options.prefix_caching and can_cache_prefixes(folder),
    }
    cache_gib = options.cache_gib
    if options.max_model_len is None and torch.cuda.is_available():
        chosen["max_model_len"] = FITTING  # the model's window may be more than the share holds even once
    if not torch.cuda.is_available():
        # Without a GPU vLLM cannot set back the generator of a request whose prompt it has read in parts.
        chosen |= {"enable_chunked_prefill": False, "block_size": CPU_BLOCK_SIZE}
        cache_gib = CPU_CACHE_GIB if cache_gib is None else cache_gib
    chosen["kv_cache_memory_bytes"] = None if cache_gib is None else int(cache_gib * 2**30)
    return {name: value for name, value in chosen.items() if value is not None}


def as_flags(options: Mapping[str, Any]) -> list[str]:
    """`options` as flags of vLLM's command line.

    Example: `as_flags({"block_size": 32, "enforce_eager": True, "enable_prefix_caching": False})` is
    `["--block-size=32", "--enforce-eager", "--no-enable-prefix-caching"]`.
    """
    flags = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        flags.append(f"--{'' if value else 'no-'}{flag}" if isinstance(value, bool) else f"--{flag}={value}")
    return flags


def can_cache_prefixes(folder: str) -> bool:
    """vLLM takes every Qwen3.5 for a hybrid and fails to cache prefixes for one without linear-attention layers.

    A model with code of its own is none of these: its configuration is not read.
    """
    from transformers import AutoConfig, PretrainedConfig

    if "auto_map" in PretrainedConfig.get_config_dict(folder)[0]:
        return True
    text = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    layers = getattr(text, "layer_types", None) or ()
    return not text.model_type.startswith("qwen3_5") or "linear_attention" in layers
