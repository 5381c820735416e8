"""What makes sampling and updates faster on a CPU: products of few rows, a cache written in place, memory kept.

A GPU user needs none of it. docs/performance.md says what each part gains. Shape suffixes: N rows, K inputs, M outputs.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

FEW_ROWS = 64
MANY_WEIGHTS = 1 << 16
"""Smaller matrices stay in the processor's cache, and the order makes no difference."""


def product(x_NK: torch.Tensor, weight_MK: torch.Tensor) -> torch.Tensor:
    """x W^T [N, M], contiguous.

    MKL computes x W^T up to twice as slowly as (W x^T)^T where x has some rows but few. At 8 rows and 576 x 49,152
    weights it takes 18 ms against 9 on two cores.
    """
    few = x_NK.device.type == "cpu" and 1 < len(x_NK) <= FEW_ROWS and weight_MK.numel() >= MANY_WEIGHTS
    if few and not torch.is_grad_enabled():
        return torch.mm(weight_MK, x_NK.t()).t().contiguous()
    return F.linear(x_NK, weight_MK)


class FastLinear(nn.Linear):
    """`nn.Linear` by `product`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.bias is not None or torch.is_grad_enabled():
            return super().forward(x)
        return product(x.reshape(-1, self.in_features), self.weight).view(*x.shape[:-1], self.out_features)


def multiply_fast(model: nn.Module) -> None:
    """Let the model's linear layers be `FastLinear`; weights and their names stay."""
    for layer in model.modules():
        if type(layer) is nn.Linear and layer.weight.numel() >= MANY_WEIGHTS:
            layer.__class__ = FastLinear


@functools.cache
def slowdown(dtype: torch.dtype, size: int = 192) -> float:
    """Time of a product of matrices in a type over that in fp32, on this CPU.

    Example: some 40 in bf16 where the processor has no arithmetic for it.
    """

    def seconds(dtype: torch.dtype) -> float:
        x = torch.ones(size, size, dtype=dtype)
        torch.mm(x, x)  # the first one sets up
        times = []
        for _ in range(3):
            start = time.perf_counter()
            torch.mm(x, x)
            times.append(time.perf_counter() - start)
        return min(times)

    return seconds(dtype) / seconds(torch.float32)


ROOM = 64
"""Tokens that a buffer has room for at least when it is made."""


def sampling_cache(config: PretrainedConfig) -> DynamicCache:
    """A model's cache whose attention layers write one token into a buffer, where transformers copies all of them."""
    cache = DynamicCache(config=config)
    for layer in cache.layers:
        if type(layer) is DynamicLayer:
            layer.__class__ = GrowingLayer
    return cache


class GrowingLayer(DynamicLayer):
    """`keys` and `values` [batch, heads, tokens, head_dim] begin buffers that double when they are full.

    Written in place, so not to be differentiated through. After `reorder_cache` the buffers are made anew.
    """

    key_buffer: torch.Tensor | None = None
    value_buffer: torch.Tensor | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        assert self.keys is not None and self.values is not None
        self.keys, self.key_buffer = _append(self.keys, self.key_buffer, key_states)
        self.values, self.value_buffer = _append(self.values, self.value_buffer, value_states)
        return self.keys, self.values


def _append(old: torch.Tensor, buffer: torch.Tensor | None, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(`old` with the tokens of `new` after its own, the buffer that it begins)."""
    num_old, num_all = old.shape[-2], old.shape[-2] + new.shape[-2]
    if buffer is None or old.data_ptr() != buffer.data_ptr() or buffer.shape[-2] < num_all:
        buffer = new.new_empty(*new.shape[:-2], num_all + max(ROOM, num_old), new.shape[-1])
        buffer[..., :num_old, :] = old
    buffer[..., num_old:num_all, :] = new
    return buffer[..., :num_all, :], buffer


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc reuse what is freed instead of giving it back; returns whether this system does.

    A tensor of more than 32 MiB is otherwise mapped anew whenever it is made, and the top of the heap returned whenever
    it is free. The next step then waits for the system to clear every page again, a quarter of an update on a CPU. The
    peak stays what it is.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, NEVER) and mallopt(M_MMAP_MAX, 0))
