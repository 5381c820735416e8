"""How vLLM is told what the configuration says: the same in this process and on a command line."""

from __future__ import annotations

import pytest

from harness.config.engines import RolloutConfig, VllmConfig
from harness.config.schema import ModelConfig
from harness.models.loading import resolve_path
from harness.serving import vllm_options
from harness.serving.vllm_options import as_flags, can_cache_prefixes, engine_options


def folder_of(size: str) -> str:
    return resolve_path(ModelConfig(name=size, path=f"tiny:{size}"))


def test_prefixes_are_cached_where_vllm_can():
    assert not can_cache_prefixes(folder_of("s"))  # a Qwen3.5 of full attention alone
    assert can_cache_prefixes(folder_of("hybrid"))


@pytest.mark.parametrize("on_gpu", [False, True])
def test_the_options_of_a_machine(monkeypatch, on_gpu):
    monkeypatch.setattr(vllm_options.torch.cuda, "is_available", lambda: on_gpu)
    options = engine_options(RolloutConfig(max_sequences=7, vllm=VllmConfig(max_model_len=512)), folder_of("hybrid"))
    shared = {
        "max_num_seqs": 7, "gpu_memory_utilization": 0.3, "max_model_len": 512, "enable_prefix_caching": True,
    }  # fmt: skip
    cpu = {"enable_chunked_prefill": False, "block_size": 32, "kv_cache_memory_bytes": 2**30}
    assert options == shared | ({} if on_gpu else cpu)


def test_an_engine_with_gpus_of_its_own_has_most_of_them():
    assert engine_options(RolloutConfig(), folder_of("s"), own_gpus=True)["gpu_memory_utilization"] == 0.9


@pytest.mark.parametrize(("on_gpu", "expected"), [(False, None), (True, -1)])
def test_without_a_limit_the_context_is_what_a_gpu_holds(monkeypatch, on_gpu, expected):
    """9B has 262,144 tokens, 8 GiB of cache, and vLLM does not start where one such sequence does not fit."""
    monkeypatch.setattr(vllm_options.torch.cuda, "is_available", lambda: on_gpu)
    assert engine_options(RolloutConfig(), folder_of("s")).get("max_model_len") == expected


def test_what_is_asked_for_comes_before_what_fits_a_machine():
    asked = VllmConfig(cache_gib=0.25, enforce_eager=True, prefix_caching=False)
    options = engine_options(RolloutConfig(vllm=asked), folder_of("hybrid"))
    assert (options["kv_cache_memory_bytes"], options["enforce_eager"]) == (2**28, True)
    assert options["enable_prefix_caching"] is False and "max_model_len" not in options


def test_flags():
    options = {"block_size": 32, "enforce_eager": True, "enable_prefix_caching": False, "generation_config": "vllm"}
    assert as_flags(options) == [
        "--block-size=32", "--enforce-eager", "--no-enable-prefix-caching", "--generation-config=vllm",
    ]  # fmt: skip
