"""Keys and values of groups of sequences: the prompt once a group, new tokens written in place.

Shape suffixes: R live sequences, S places, G groups, N places a group, K key-value heads, D of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

FIRST_ROOM = 32
"""New tokens that a sequence has room for at first; the room doubles when it is full."""
_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Heads(NamedTuple):
    """The heads of an attention layer."""

    num_queries: int
    num_keys: int
    dim: int
    scale: float

    def split(self, heads: torch.Tensor, dim: int) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values."""
        return heads.split([self.num_queries, self.num_keys, self.num_keys], dim)


def attention(
    q: torch.Tensor, kept: Iterable[torch.Tensor], heads: Heads, *, causal: bool = False,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Softmax attention of q [batch, heads, queries, D] to keys and values, and the logarithm of each query's sum."""
    keys, values = kept
    return _FLASH(q, keys, values, 0.0, causal, attn_mask=bias, scale=heads.scale)


def mixed(part: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Attention over the keys of both, in the shape of `other`."""
    share = torch.sigmoid(part[1].reshape(other[1].shape) - other[1]).unsqueeze(-1)
    return torch.lerp(other[0], part[0].reshape(other[0].shape), share)


class GroupCache:
    """The caches of sequences in groups of at most `size`, each with a place; `rows` are the live ones in order.

    A group's places are free again when all of its sequences have left. Until then all are computed along in attention.
    """

    def __init__(self, layers: Sequence[Heads], size: int) -> None:
        """`layers`: the heads of each, which may differ in their scale."""
        self._layers = layers
        self._size = size
        self._prompts = torch.empty(len(layers), 2, 0, layers[0].num_keys, 0, layers[0].dim)
        self._kept = torch.empty(len(layers), 2, 0, layers[0].num_keys, FIRST_ROOM, layers[0].dim)
        self._num_prompt_G = torch.zeros(0, dtype=torch.long)
        self._num_kept_S = torch.zeros(0, dtype=torch.long)
        self._rows_R = torch.zeros(0, dtype=torch.long)
        """The place of each live sequence."""

    @property
    def num_groups(self) -> int:
        """Groups with a live sequence."""
        return len(torch.unique(self._rows_R // self._size))

    def enter(self, prompts: Sequence[torch.Tensor], sizes: Sequence[int]) -> None:
        """Add groups: the cache [layers, 2, K, P, D] of each prompt, and how many sequences follow it."""
        taken = set((self._rows_R // self._size).tolist())
        places = [group for group in range(len(taken) + len(prompts)) if group not in taken][: len(prompts)]
        self._make_room(max(places) + 1, max(prompt.shape[3] for prompt in prompts))
        for group, prompt, size in zip(places, prompts, sizes, strict=True):
            self._prompts[:, :, group, :, : prompt.shape[3]] = prompt
            self._num_prompt_G[group] = prompt.shape[3]
            new = torch.arange(group * self._size, group * self._size + size)
            self._num_kept_S[group * self._size : (group + 1) * self._size] = 0
            self._rows_R = torch.cat([self._rows_R, new])

    def keep(self, rows_R: torch.Tensor) -> None:
        """Of the live sequences, those of these numbers go on, in this order."""
        self._rows_R = self._rows_R[rows_R]

    def compact(self) -> None:
        """Move what is live together, where at least half of the places are not; for when no group will enter."""
        num_places = len(self._num_kept_S)
        if not len(self._rows_R) or 2 * len(self._rows_R) > num_places:
            return
        live_GN = torch.zeros(num_places, dtype=torch.bool)
        live_GN[self._rows_R] = True
        live_GN = live_GN.view(-1, self._size)
        groups = live_GN.any(1).nonzero().squeeze(1)
        order_GN = live_GN[groups].int().argsort(dim=1, descending=True, stable=True)
        order_GN = order_GN[:, : int(live_GN.sum(1).max())]
        chosen_S = (groups[:, None] * self._size + order_GN).flatten()
        place_of = torch.empty(num_places, dtype=torch.long)
        place_of[chosen_S] = torch.arange(len(chosen_S))
        self._rows_R = place_of[self._rows_R]
        self._kept, self._num_kept_S = self._kept[:, :, chosen_S], self._num_kept_S[chosen_S]
        self._prompts, self._num_prompt_G = self._prompts[:, :, groups], self._num_prompt_G[groups]
        self._size = order_GN.shape[1]

    def advance(self) -> torch.Tensor:
        """Make room for one token a live sequence. Returns its positions, int64 [R]."""
        self._num_kept_S[self._rows_R] += 1
        kept_R = self._num_kept_S[self._rows_R]
        self._new_R = kept_R - 1
        num_groups, num_new = int(self._rows_R.max()) // self._size + 1, int(kept_R.max())
        if num_new > self._kept.shape[4]:
            self._kept = _grown(self._kept, 4, 2 * self._kept.shape[4])
        self._live = num_groups, int(self._num_prompt_G[self._rows_R // self._size].max()), num_new
        places = num_groups * self._size
        # A place without a token, whose results nobody reads, looks at one as well: softmax of nothing is no number.
        self._kept_bias = _bias(self._num_kept_S[:places].clamp(min=1), num_new)
        self._prompt_bias = _bias(self._num_prompt_G[:num_groups].clamp(min=1), self._live[1])
        return self._num_prompt_G[self._rows_R // self._size] + self._new_R

    def attend(self, number: int, heads_RKD: torch.Tensor) -> torch.Tensor:
        """Attention of layer `number` [R, K * Q * D], from queries, keys and values of the new tokens."""
        heads, size = self._layers[number], self._size
        num_groups, num_prompt, num_new = self._live
        num_places, keys, dim = num_groups * size, heads.num_keys, heads.dim
        kept = self._kept[number]
        new_R2KD = heads_RKD[:, heads.num_queries :].view(len(heads_RKD), 2, keys, dim)
        kept[:, self._rows_R, :, self._new_R] = new_R2KD
        q = heads_RKD.new_zeros(num_places, heads.num_queries, dim)
        q[self._rows_R] = heads_RKD[:, : heads.num_queries]
        # Query heads of a key, and with the prompt all sequences of a group too, are queries of one product.
        own = attention(
            q.view(num_places, keys, -1, dim), kept[:, :num_places, :, :num_new], heads, bias=self._kept_bias
        )
        grouped = q.view(num_groups, size, keys, -1, dim).transpose(1, 2)
        found, logs = attention(
            grouped.reshape(num_groups, keys, -1, dim), self._prompts[number, :, :num_groups, :, :num_prompt], heads,
            bias=self._prompt_bias,
        )  # fmt: skip
        shape = num_groups, keys, size, heads.num_queries // keys
        part = found.view(*shape, dim).transpose(1, 2), logs.view(shape).transpose(1, 2)
        return mixed(part, own)[self._rows_R].flatten(1)

    def _make_room(self, num_groups: int, num_prompt: int) -> None:
        if num_groups > len(self._num_prompt_G):
            self._prompts = _grown(self._prompts, 2, num_groups)
            self._kept = _grown(self._kept, 2, num_groups * self._size)
            self._num_prompt_G = _grown(self._num_prompt_G, 0, num_groups)
            self._num_kept_S = _grown(self._num_kept_S, 0, num_groups * self._size)
        if num_prompt > self._prompts.shape[4]:
            self._prompts = _grown(self._prompts, 4, num_prompt)


def _grown(tensor: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """A zeroed tensor of this size along one dimension that begins with `tensor`."""
    shape = list(tensor.shape)
    shape[dim] = size
    grown = tensor.new_zeros(shape)
    grown.narrow(dim, 0, tensor.shape[dim]).copy_(tensor)
    return grown


def _bias(lengths: torch.Tensor, width: int) -> torch.Tensor:
    """0 for the tokens that there are, -inf beyond: [places, 1, 1, width]."""
    beyond = torch.arange(width) >= lengths[:, None]
    return torch.zeros(beyond.shape).masked_fill_(beyond, -math.inf)[:, None, None]
