"""Keys and values of the sequences that are being sampled."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

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
    """(`old` with `new` behind its tokens, the buffer that it begins)."""
    num_old, num_all = old.shape[-2], old.shape[-2] + new.shape[-2]
    if buffer is None or old.data_ptr() != buffer.data_ptr() or buffer.shape[-2] < num_all:
        buffer = new.new_empty(*new.shape[:-2], num_all + max(ROOM, num_old), new.shape[-1])
        buffer[..., :num_old, :] = old
    buffer[..., num_old:num_all, :] = new
    return buffer[..., :num_all, :], buffer
