"""The one forward pass of a language model, shared by the rollout engine, the trainer and the teacher's scoring.

Sampler and trainer have to agree on every logit, so the head, the model's own logit transforms, the banned ids and the
positions are written here and nowhere else. Shape suffixes: B sequences, T tokens, H hidden, N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

    from harness.models.chat import Chat

BANNED_LOGIT = -1e9
"""Logit of ids that are never sampled: probability 0 in fp32, and finite, so that differences are never NaN."""


class LanguageModel:
    """A transformers model split into its decoder (`hidden`) and its head (`logits`).

    `banned_ids` get `BANNED_LOGIT`. V is `num_tokens`, the tokenizer's size: rows that pad the head beyond it are not
    computed, so models that share a tokenizer have logits of one width. None keeps every row. With `compute_dtype` the
    decoder runs under autocast in it: a student that is trained in 16 bit keeps fp32 weights, which small updates need.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        banned_ids: Collection[int] = (),
        *,
        num_tokens: int | None = None,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        self.module = model
        self.config = model.config.get_text_config()
        rows = model.get_output_embeddings().weight.shape[0]
        self.num_tokens = rows if num_tokens is None else min(num_tokens, rows)
        self.banned_ids = sorted(i for i in set(banned_ids) if i < self.num_tokens)
        self._banned = torch.tensor(self.banned_ids, dtype=torch.int64, device=self.device)
        self._scale = _logit_scale(self.config)
        self._compute_dtype = compute_dtype
        self._softcap: float | None = getattr(self.config, "final_logit_softcapping", None)

    @classmethod
    def for_chat(cls, model: PreTrainedModel, chat: Chat, *, compute_dtype: torch.dtype | None = None) -> LanguageModel:
        """The model with the banned ids and the vocabulary of `chat`'s tokenizer."""
        return cls(model, chat.banned_ids, num_tokens=chat.num_tokens, compute_dtype=compute_dtype)

    @property
    def device(self) -> torch.device:
        return self.module.device

    @property
    def context_window(self) -> int:
        """Tokens of prompt and completion together."""
        return self.config.max_position_embeddings

    def hidden(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor, *, cache: Cache | None = None) -> torch.Tensor:
        """Last hidden state of each token, after the final norm: [B, T, H] in the weights' dtype.

        `mask_BT` is 1 for tokens and 0 for padding, on either side; padded positions return values without meaning.
        With a `cache`, `ids_BT` continues it and the mask covers the cached tokens too. Positions count tokens, not
        padding, and are always explicit: a Qwen3.5 model without them continues from the rope offsets of its last
        multimodal call.
        """
        positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        enabled = self._compute_dtype is not None
        with torch.autocast(self.device.type, dtype=self._compute_dtype, enabled=enabled):
            output = self.module.base_model(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                position_ids=positions_BT,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        return output.last_hidden_state

    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """fp32 logits [N, V] of the next token, before any temperature.

        16-bit weights are cast here, so products are summed in fp32; the stored weights (which may be tied to the
        embedding) stay as they are.
        """
        head = self.module.get_output_embeddings()
        bias = None if head.bias is None else head.bias[: self.num_tokens].float()
        logits_NV = F.linear(hidden_NH.float(), head.weight[: self.num_tokens].float(), bias)
        if self._scale != 1.0:
            logits_NV = logits_NV * self._scale
        if self._softcap is not None:
            logits_NV = torch.tanh(logits_NV / self._softcap) * self._softcap
        return logits_NV.index_fill_(1, self._banned.to(logits_NV.device), BANNED_LOGIT)


def gather_logprobs(logits_NV: torch.Tensor, ids_N: torch.Tensor) -> torch.Tensor:
    """Natural-log probability of each id under softmax(logits): fp32 [N]."""
    logits_NV = logits_NV.float()
    return logits_NV.gather(-1, ids_N.unsqueeze(-1)).squeeze(-1) - logits_NV.logsumexp(-1)


def _logit_scale(config: object) -> float:
    """The factor that a family puts on its logits: Cohere and Falcon-H1 multiply, Granite divides."""
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier"):
        value = getattr(config, name, None)
        scale *= 1.0 if value is None else value
    divisor = getattr(config, "logits_scaling", None)
    return scale if divisor is None else scale / divisor
