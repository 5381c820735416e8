"""Decoding of dense attention models on a CPU: packed weights, caches written in place, a prompt kept once a group.

`LanguageModel` reads the prompts; every further token comes from here. The results are those of the model's own forward
pass up to rounding, which the engine checks before it relies on them. Shape suffixes: R sequences, G groups, N
sequences a group, K key-value heads, Q query heads of one key-value head, T tokens, P prompt tokens, D head, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import Cache

    from harness.models.forward import LanguageModel

FIRST_ROOM = 32
"""Tokens that a cohort has room for at first; the room doubles when it is full."""
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""Also returns the logarithm of each query's sum of weights, by which the parts of an attention are mixed."""
USUAL_ROWS = 64
"""Rows that oneDNN packs weights for. Other numbers work as well."""


def is_dense(model: LanguageModel) -> bool:
    """Whether the model is built as `DenseDecoder` expects: pre-norm layers of full attention and a gated MLP, in fp32
    on a CPU. Whether it computes the same is for the engine's check to say."""
    base = model.module.base_model
    if model.device.type != "cpu" or model.compute_dtype != torch.float32 or not model.can_share_prompts:
        return False
    layers = getattr(base, "layers", None)
    if not layers or not all(hasattr(base, name) for name in ("embed_tokens", "norm", "rotary_emb")):
        return False
    parts = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
    return all({name for name, _ in layer.named_children()} == parts and _is_plain(layer) for layer in layers)


def _is_plain(layer: nn.Module) -> bool:
    attention = {name for name, _ in layer.self_attn.named_children()}  # type: ignore[union-attr, operator]
    mlp = {name for name, child in layer.mlp.named_children() if any(True for _ in child.parameters())}  # type: ignore[union-attr, operator]
    projections = {"q_proj", "k_proj", "v_proj", "o_proj"}
    return attention - {"q_norm", "k_norm"} == projections and mlp == {"gate_proj", "up_proj", "down_proj"}


class Packed:
    """Linear layers of one input as one product, with weights in oneDNN's order where torch has it."""

    def __init__(self, *layers: nn.Linear, rows: int | None = None) -> None:
        weight = layers[0].weight[:rows] if len(layers) == 1 else torch.cat([layer.weight for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self._bias = torch.cat(biases)[:rows].detach() if biases else None
        self._packs = torch.backends.mkldnn.is_available()
        weight = weight.detach().contiguous()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, USUAL_ROWS) if self._packs else weight

    def __call__(self, x_RH: torch.Tensor) -> torch.Tensor:
        if self._packs:
            return torch.ops.mkldnn._linear_pointwise(x_RH, self._weight, self._bias, "none", [], "")
        return F.linear(x_RH, self._weight, self._bias)


class _Layer:
    """The packed weights of one layer."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = Packed(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = Packed(attention.o_proj)
        self.gate_up = Packed(mlp.gate_proj, mlp.up_proj)
        self.down = Packed(mlp.down_proj)
        self.act = mlp.act_fn
        self.norms = (layer.input_layernorm, layer.post_attention_layernorm)
        self.head_norms = (getattr(attention, "q_norm", None), getattr(attention, "k_norm", None))
        self.head_dim: int = attention.head_dim
        self.num_queries = attention.q_proj.out_features // self.head_dim
        self.num_keys = attention.k_proj.out_features // self.head_dim
        self.scale: float = attention.scaling


class Cohort:
    """The caches of sequences that were admitted together: their prompts once a group, their own tokens by place.

    A place whose sequence has finished is computed along until half of the places are empty; then the rest moves up.
    """

    def __init__(self, prompts: Cache, chosen: Sequence[int], mask_PT: torch.Tensor, sizes: Sequence[int]) -> None:
        """`prompts` has the left-padded keys and values of read prompts, of which those of `chosen` belong to the
        groups; `mask_PT` covers all; `sizes` counts the sequences of each group."""
        chosen_G = torch.tensor(chosen)
        mask_GT = mask_PT[chosen_G]
        self._num_prompt_G = mask_GT.sum(1)
        start = mask_GT.shape[1] - int(self._num_prompt_G.max())
        self._prompts = [
            tuple(tensor[chosen_G, :, start:].contiguous() for tensor in (layer.keys, layer.values))
            for layer in prompts.layers  # type: ignore[attr-defined]
        ]
        padding_GT = mask_GT[:, start:] == 0
        self._bias: torch.Tensor | None = None
        if padding_GT.any():
            self._bias = torch.zeros(padding_GT.shape).masked_fill_(padding_GT, -math.inf)[:, None, None]
        self._num_new = 0
        self._shape = len(sizes), max(sizes)
        places = torch.arange(self._shape[1]) < torch.tensor(sizes)[:, None]
        self._places_R = places.flatten().nonzero().squeeze(1)
        _, num_keys, _, head_dim = self._prompts[0][0].shape
        self._kept = torch.empty(len(self._prompts), 2, places.numel(), num_keys, FIRST_ROOM, head_dim)

    def __len__(self) -> int:
        return len(self._places_R)

    def keep(self, rows: Sequence[int]) -> None:
        """Of the sequences, those of these numbers go on."""
        self._places_R = self._places_R[torch.tensor(rows, dtype=torch.long)]
        num_groups, size = self._shape
        if not len(self._places_R) or 2 * len(self._places_R) > num_groups * size:
            return
        live_GN = torch.zeros(num_groups * size, dtype=torch.bool)
        live_GN[self._places_R] = True
        live_GN = live_GN.view(num_groups, size)
        groups = live_GN.any(1).nonzero().squeeze(1)
        live_GN = live_GN[groups]
        order_GN = live_GN.int().argsort(dim=1, descending=True, stable=True)[:, : int(live_GN.sum(1).max())]
        self._kept = self._kept[:, :, (groups[:, None] * size + order_GN).flatten()]
        self._places_R = live_GN.gather(1, order_GN).flatten().nonzero().squeeze(1)
        self._shape = tuple(order_GN.shape)
        self._num_prompt_G = self._num_prompt_G[groups]
        if len(groups) < num_groups:
            self._prompts = [tuple(tensor[groups] for tensor in layer) for layer in self._prompts]
            self._bias = None if self._bias is None else self._bias[groups]

    def advance(self) -> torch.Tensor:
        """Make room for one token a sequence. Returns its positions, int64 [R]."""
        if self._num_new == self._kept.shape[-2]:
            kept = self._kept.new_empty(*self._kept.shape[:-2], 2 * self._num_new, self._kept.shape[-1])
            kept[..., : self._num_new, :] = self._kept
            self._kept = kept
        self._num_new += 1
        return self._num_prompt_G[self._places_R // self._shape[1]] + self._num_new - 1

    def attend(self, number: int, heads_RKD: torch.Tensor, layer: _Layer) -> torch.Tensor:
        """Attention of layer `number` [R, K * Q * D]. `heads_RKD` has queries, keys and values, in this order."""
        num_groups, size = self._shape
        num_rows, dim, keys = num_groups * size, layer.head_dim, layer.num_keys
        full = len(self._places_R) == num_rows
        if not full:
            heads_RKD = heads_RKD.new_zeros(num_rows, *heads_RKD.shape[1:]).index_copy_(0, self._places_R, heads_RKD)
        queries, per_key = layer.num_queries, layer.num_queries // keys
        new, length = self._num_new - 1, self._num_new
        kept = self._kept[number]
        kept[:, :, :, new] = heads_RKD[:, queries:].view(num_rows, 2, keys, dim).transpose(0, 1)
        prompt_keys, prompt_values = self._prompts[number]
        num_prompt = prompt_keys.shape[2]
        q = heads_RKD[:, :queries].reshape(num_groups, size, keys, per_key, dim)
        # Query heads of a key, and with the prompt the sequences of a group too, are queries of one product.
        shared, shared_log = ATTENTION(
            q.transpose(1, 2).reshape(num_groups, keys, size * per_key, dim), *self._prompts[number],
            attn_mask=self._bias, scale=layer.scale,
        )  # fmt: skip
        own, own_log = ATTENTION(q.view(num_rows, keys, per_key, dim), *kept[:, :, :, :length], scale=layer.scale)
        shared_log = shared_log.view(num_groups, keys, size, per_key).transpose(1, 2)
        share = torch.sigmoid(shared_log - own_log.view(num_groups, size, keys, per_key)).unsqueeze(-1)
        shared = shared.view(num_groups, keys, size, per_key, dim).transpose(1, 2)
        mixed = torch.lerp(own.view_as(q), shared, share).view(num_rows, -1)
        return mixed if full else mixed[self._places_R]


@dataclass(frozen=True)
class DenseDecoder:
    """A model's weights, packed: a second copy of them, to be made anew after every update."""

    model: LanguageModel
    layers: Sequence[_Layer]
    head: Packed

    @classmethod
    def pack(cls, model: LanguageModel) -> DenseDecoder:
        layers = [_Layer(layer) for layer in model.module.base_model.layers]  # type: ignore[union-attr]
        head = model.module.get_output_embeddings()
        return cls(model, layers, Packed(head, rows=model.num_tokens))

    def step(self, cohorts: Sequence[Cohort], ids_R: torch.Tensor) -> torch.Tensor:
        """fp32 logits [R, V] after one more token of every sequence, in the order of the cohorts."""
        base: Any = self.model.module.base_model
        positions_R = torch.cat([cohort.advance() for cohort in cohorts])
        stops = list(accumulate(map(len, cohorts)))
        x_RH = base.embed_tokens(ids_R)
        cos_1RD, sin_1RD = base.rotary_emb(x_RH, positions_R.unsqueeze(0))
        cos_R1D, sin_R1D = cos_1RD.transpose(0, 1), sin_1RD.transpose(0, 1)
        for number, layer in enumerate(self.layers):
            heads = layer.qkv(_norm(x_RH, layer.norms[0])).view(len(x_RH), -1, layer.head_dim)
            self._turn(heads, layer, cos_R1D, sin_R1D)
            mixed = [
                cohort.attend(number, heads[stop - len(cohort) : stop], layer)
                for cohort, stop in zip(cohorts, stops, strict=True)
            ]
            x_RH = x_RH + layer.out(mixed[0] if len(mixed) == 1 else torch.cat(mixed))
            gate_RM, up_RM = layer.gate_up(_norm(x_RH, layer.norms[1])).chunk(2, -1)
            x_RH += layer.down(layer.act(gate_RM).mul_(up_RM))
        return self.model.finish_logits(self.head(_norm(x_RH, base.norm)))

    @staticmethod
    def _turn(heads: torch.Tensor, layer: _Layer, cos_R1D: torch.Tensor, sin_R1D: torch.Tensor) -> None:
        """Norm of queries and keys where the model has one, and their rotation, in place."""
        turned = layer.num_queries + layer.num_keys
        for norm, part in zip(
            layer.head_norms, (slice(0, layer.num_queries), slice(layer.num_queries, turned)), strict=True
        ):
            if norm is not None:
                heads[:, part] = _norm(heads[:, part], norm)
        x, half = heads[:, :turned], layer.head_dim // 2
        y = x * cos_R1D
        y[..., :half].addcmul_(x[..., half:], sin_R1D[..., :half], value=-1)
        y[..., half:].addcmul_(x[..., :half], sin_R1D[..., half:])
        heads[:, :turned] = y


def _norm(x: torch.Tensor, norm: Any) -> torch.Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
