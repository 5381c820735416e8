"""Decoding of dense attention models on a CPU, with packed weights. No gradients.

The results are those of the model's own forward pass up to rounding, which the engine checks before it relies on them.
Shape suffixes: P prompts, R rows (tokens of prompts, or sequences), K heads, D of a head, M of an MLP, H hidden,
V vocabulary, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from harness.models.cpu import FastLinear
from harness.models.forward import num_common
from harness.rollout.group_cache import GroupCache, Heads, attention, mixed

if TYPE_CHECKING:
    from harness.models.forward import LanguageModel

TOKENS_AT_ONCE = 4096
"""Tokens of prompts in one pass, unless a single prompt has more."""
USUAL_ROWS = 64
"""Rows that oneDNN packs weights for. Other numbers work as well."""


def is_dense(model: LanguageModel) -> bool:
    """Whether the model is built as `DenseDecoder` expects: pre-norm layers of full attention and a gated MLP, in fp32
    on a CPU. Whether it computes the same is for the engine's check to say."""
    base = model.module.base_model
    if model.device.type != "cpu" or not model.compute_dtype == model.module.dtype == torch.float32:
        return False
    layers: Any = getattr(base, "layers", None)
    parts = {"embed_tokens", "layers", "norm", "rotary_emb"}
    return bool(layers) and _children(base) == parts and model.can_share_prompts and all(map(_is_plain, layers))


def _is_plain(layer: Any) -> bool:
    attention, mlp = layer.self_attn, layer.mlp
    norms = {"q_norm", "k_norm"} & _children(attention)
    linear = [f"{name}_proj" for name in "qkvo"], [f"{name}_proj" for name in ("gate", "up", "down")]
    return (
        _children(layer) == {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
        and _children(attention) == {*linear[0], *norms}
        and _children(mlp) == {*linear[1], "act_fn"}
        # An adapter puts something else in the place of a linear layer.
        and all(
            type(getattr(part, name)) in (nn.Linear, FastLinear)
            for part, names in zip((attention, mlp), linear, strict=True)
            for name in names
        )
        and all(hasattr(norm, "variance_epsilon") for norm in (layer.input_layernorm, layer.post_attention_layernorm))
        and all(hasattr(attention, name) for name in ("head_dim", "scaling"))
    )


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


class Packed:
    """Linear layers of one input as one product, with weights in oneDNN's order where torch has it."""

    def __init__(self, *layers: nn.Linear, rows: int | None = None) -> None:
        weight = layers[0].weight[:rows] if len(layers) == 1 else torch.cat([layer.weight for layer in layers])
        self._bias = None
        if any(layer.bias is not None for layer in layers):
            biases: list[torch.Tensor] = [
                weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers
            ]
            self._bias = torch.cat(biases)[:rows].detach()
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
        dim = attention.head_dim
        self.heads = Heads(
            attention.q_proj.out_features // dim, attention.k_proj.out_features // dim, dim, attention.scaling
        )

    def turn(self, heads_RKD: torch.Tensor, cos_R1D: torch.Tensor, sin_R1D: torch.Tensor) -> None:
        """Norm of queries and keys where the model has one, and their rotation, in place."""
        queries, turned = self.heads.num_queries, self.heads.num_queries + self.heads.num_keys
        for norm, part in zip(self.head_norms, (slice(0, queries), slice(queries, turned)), strict=True):
            if norm is not None:
                heads_RKD[:, part] = _norm(heads_RKD[:, part], norm)
        x, half = heads_RKD[:, :turned], self.heads.dim // 2
        y = x * cos_R1D
        y[..., :half].addcmul_(x[..., half:], sin_R1D[..., :half], value=-1)
        y[..., half:].addcmul_(x[..., :half], sin_R1D[..., half:])
        heads_RKD[:, :turned] = y


Attend = Callable[[int, torch.Tensor], torch.Tensor]
"""Attention of a layer [R, K * D], from its number and the queries, keys and values [R, K, D] of new tokens."""


class DenseDecoder:
    """A model's weights, packed: a second copy of them, to be made anew after every update."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._base = cast(Any, model.module.base_model)
        self._layers = [_Layer(layer) for layer in self._base.layers]
        self._head = Packed(model.module.get_output_embeddings(), rows=model.num_tokens)

    def new_cache(self, size: int) -> GroupCache:
        """An empty cache for groups of at most `size` sequences."""
        return GroupCache([layer.heads for layer in self._layers], size)

    def read(self, prompts: Sequence[list[int]]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits fp32 [P, V] after each prompt, and the keys and values [layers, 2, K, T, D] of each.

        What all prompts begin with is read once.
        """
        common = min(num_common(prompts), min(map(len, prompts)) - 1) if len(prompts) > 1 else 0
        before = self._read([prompts[0][:common]], None)[1][0] if common else None
        last, caches = [], []
        for part in _parts([prompt[common:] for prompt in prompts]):
            hidden_PH, read = self._read(part, before)
            last.append(hidden_PH)
            caches += read
        return self._logits(torch.cat(last)), caches

    def step(self, cache: GroupCache, ids_R: torch.Tensor) -> torch.Tensor:
        """fp32 logits [R, V] after one more token of every sequence."""
        return self._logits(self._run(ids_R, cache.advance(), cache.attend))

    def _read(
        self, prompts: Sequence[list[int]], before: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The last hidden state [P, H] of prompts without padding, and their caches, after what `before` has cached."""
        start = 0 if before is None else before.shape[3]
        lengths = [len(prompt) for prompt in prompts]
        positions = torch.cat([torch.arange(start, start + length) for length in lengths])
        kept: list[list[torch.Tensor]] = [[] for _ in prompts]

        def attend(number: int, heads_RKD: torch.Tensor) -> torch.Tensor:
            heads = self._layers[number].heads
            found = []
            for prompt, part_TKD in zip(kept, heads_RKD.split(lengths), strict=True):
                q_KTD, k_KTD, v_KTD = heads.split(part_TKD.transpose(0, 1), dim=0)
                prompt.append(torch.stack([k_KTD, v_KTD]))
                per = heads.num_queries // heads.num_keys
                own = attention(
                    q_KTD[None], [x.repeat_interleave(per, 0)[None] for x in (k_KTD, v_KTD)], heads, causal=True
                )
                if before is not None:
                    # The query heads of a key are queries of one product.
                    q_1KQD = q_KTD.reshape(1, heads.num_keys, -1, heads.dim)
                    own = mixed(attention(q_1KQD, before[number][:, None], heads), own), own[1]
                found.append(own[0][0].transpose(0, 1).flatten(1))
            return torch.cat(found)

        hidden_RH = self._run(torch.tensor([i for prompt in prompts for i in prompt]), positions, attend)
        caches = [torch.stack(layers) for layers in kept]
        if before is not None:
            caches = [torch.cat([before, cache], 3) for cache in caches]
        return hidden_RH[torch.tensor(lengths).cumsum(0) - 1], caches

    def _run(self, ids_R: torch.Tensor, positions_R: torch.Tensor, attend: Attend) -> torch.Tensor:
        """The last hidden states [R, H], before the final norm."""
        x_RH = self._base.embed_tokens(ids_R)
        cos_R1D, sin_R1D = (x.transpose(0, 1) for x in self._base.rotary_emb(x_RH, positions_R.unsqueeze(0)))
        for number, layer in enumerate(self._layers):
            heads_RKD = layer.qkv(_norm(x_RH, layer.norms[0])).view(len(x_RH), -1, layer.heads.dim)
            layer.turn(heads_RKD, cos_R1D, sin_R1D)
            x_RH = x_RH + layer.out(attend(number, heads_RKD))
            gate_RM, up_RM = layer.gate_up(_norm(x_RH, layer.norms[1])).chunk(2, -1)
            x_RH += layer.down(layer.act(gate_RM).mul_(up_RM))
        return x_RH

    def _logits(self, hidden_RH: torch.Tensor) -> torch.Tensor:
        return self._model.finish_logits(self._head(_norm(hidden_RH, self._base.norm)))


def _parts(prompts: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """Consecutive prompts of at most `TOKENS_AT_ONCE` tokens together."""
    part: list[list[int]] = []
    for prompt in prompts:
        if part and sum(map(len, part)) + len(prompt) > TOKENS_AT_ONCE:
            yield part
            part = []
        part.append(prompt)
    yield part


def _norm(x: torch.Tensor, norm: Any) -> torch.Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
