"""The one forward pass of a language model, shared by the rollout engine, the trainer and the teacher's scoring.

Sampler and trainer have to agree on every logit, so the head, the model's own logit transforms, the banned ids and the
positions are written here and nowhere else. Shape suffixes: B sequences, T tokens, H hidden, N positions, V vocabulary,
P patches, D values of a patch, F vision features.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn
from torch.nn import functional as F

from harness.errors import UserError
from harness.models.cpu import multiply_fast, product, sampling_cache

if TYPE_CHECKING:
    from transformers import Cache, DynamicCache, PreTrainedModel

    from harness.models.chat import Chat
    from harness.models.vision import MediaInputs

    Media = Sequence[MediaInputs | None]
    """The media of every sequence of a batch; the sequences of a group share one object."""

Path = Literal["fast", "plain", "own"]
"""How a model is read, the best first."""
NAMES = {
    "image": ("pixel_values", "image_grid_thw"),
    "video": ("pixel_values_videos", "video_grid_thw"),
}
"""Patches of all pictures or clips, and the grids [n, 3] that they form, as forward passes call them."""
CAST_ELEMENTS = 1 << 24
"""Weights of a 16-bit head that are cast to fp32 at once: 64 MiB."""
UNBOUNDED = 1 << 30
"""The context window of a model without one: more tokens than there are."""
BANNED_LOGIT = -1e9
"""Logit of ids that are never sampled: probability 0 in fp32, and finite, so that differences are never NaN."""


class LanguageModel:
    """A transformers model split into its decoder (`hidden`) and its head (`logits`).

    `banned_ids` get `BANNED_LOGIT`. V is `num_tokens`, the tokenizer's size: rows that pad the head beyond it are not
    computed, so models that share a tokenizer have logits of one width. None keeps every row. With `compute_dtype` the
    decoder runs under autocast in it: a student that is trained in 16 bit keeps fp32 weights, which small updates need.

    How the model is read is settled when it is loaded (`harness.models.probe`):

    - `path`: `fast`; `plain`, where a prompt is never shared; `own`, where `hidden` gives the logits of the module's
      own forward pass, one sequence at a time.
    - `caches`: a token is read after those in a cache. Else all of them are read again for each.
    - `joins_media`: one call of the vision tower a batch. Else a sequence with media is read alone, by the model.
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
        if self.device.type == "cpu":
            multiply_fast(model)
        self.config = model.config.get_text_config()
        head = model.get_output_embeddings()
        rows = self.config.vocab_size if head is None else head.weight.shape[0]
        self.num_tokens = rows if num_tokens is None else min(num_tokens, rows)
        self.path: Path = "fast"
        self.caches = True
        self.banned_ids = sorted(i for i in set(banned_ids) if i < self.num_tokens)
        self._banned = torch.tensor(self.banned_ids, dtype=torch.int64, device=self.device)
        self._scale = _logit_scale(self.config)
        self.compute_in = compute_dtype
        vision = getattr(model.config, "vision_config", None)
        self._has_rope_index = vision is not None and hasattr(model.base_model, "get_rope_index")
        self.joins_media = self._has_rope_index
        self._merge_unit: int | None = getattr(vision, "spatial_merge_size", 1) ** 2 if self._has_rope_index else None
        self._takes = _arguments(model.base_model)
        self._softcap: float | None = getattr(self.config, "final_logit_softcapping", None)

    @classmethod
    def for_chat(cls, model: PreTrainedModel, chat: Chat, *, compute_dtype: torch.dtype | None = None) -> LanguageModel:
        """The model with the banned ids and the vocabulary of `chat`'s tokenizer.

        Raises UserError where the tokenizer has ids that the model has no row for.
        """
        rows: int = model.get_input_embeddings().weight.shape[0]  # type: ignore[index,assignment]
        if chat.num_tokens > rows:
            raise UserError(
                f"{model.config.name_or_path or 'a model'} has embeddings of {rows} tokens and the tokenizer ids up to "
                f"{chat.num_tokens - 1}: take the tokenizer that belongs to the model, or enlarge the model "
                "(resize_token_embeddings of transformers) and save it"
            )
        return cls(model, chat.banned_ids, num_tokens=chat.num_tokens, compute_dtype=compute_dtype)

    @cached_property
    def unrestricted(self) -> LanguageModel:
        """The same weights without banned ids, with every row of the head: the model's own distribution."""
        model = LanguageModel(self.module, compute_dtype=self.compute_in)
        model.path, model.caches, model.joins_media = self.path, self.caches, self.joins_media
        return model

    @property
    def device(self) -> torch.device:
        return self.module.device

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type of the decoder's activations."""
        return self.compute_in or self.module.dtype

    @property
    def context_window(self) -> int:
        """Tokens of prompt and completion together. A model whose configuration states none has no bound."""
        window = getattr(self.config, "max_position_embeddings", None)
        return window if isinstance(window, int) and window > 0 else UNBOUNDED

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Without dropout; the module's mode is as it was afterwards."""
        was_training = self.module.training
        self.module.eval()
        try:
            yield
        finally:
            self.module.train(was_training)

    def hidden(
        self,
        ids_BT: torch.Tensor,
        mask_BT: torch.Tensor,
        *,
        media: Media = (),
        cache: Cache | None = None,
        offsets_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Last hidden state of each token, after the final norm: [B, T, H] in the weights' dtype.

        `mask_BT` is 1 for tokens and 0 for padding, on either side; padded positions return values without meaning.
        With a `cache`, `ids_BT` continues it and the mask covers the cached tokens too; after media, `offsets_B` says
        from which position (`position_offsets`). Positions count tokens, not padding, and are always explicit: a
        Qwen3.5 model without them continues from the rope offsets of its last multimodal call.

        On the path `own`, logits [B, T, V] before `logits` bans ids. Raises ValueError where the placeholders of a
        sequence and its media do not match.
        """
        shown = any(item is not None for item in media)
        if cache is None or media:  # after a prompt there are no placeholders; counting would wait for the device
            self._check_placeholders(ids_BT, media)
        if self.path == "own" or (shown and not self.joins_media):
            return self._row_by_row(ids_BT, mask_BT, media, cache)
        if shown:
            positions = self._rope(ids_BT, mask_BT, media)[0]
        else:
            positions = (mask_BT.cumsum(-1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
            if offsets_B is not None:
                positions = positions + offsets_B.unsqueeze(1)
        with self.computing():
            output = self.module.base_model(
                **self._inputs(ids_BT, media), attention_mask=mask_BT, position_ids=positions, **self._cached(cache)
            )
        return output.last_hidden_state

    def computing(self) -> torch.autocast:
        """The number format of the decoder's activations, as a context."""
        return torch.autocast(self.device.type, dtype=self.compute_in, enabled=self.compute_in is not None)

    def _cached(self, cache: Cache | None) -> dict[str, Any]:
        """Models of states call the same cache by another name."""
        name = "cache_params" if "cache_params" in self._takes else "past_key_values"
        return {name: cache, "use_cache": cache is not None}

    def new_cache(self) -> DynamicCache:
        """An empty cache to sample with."""
        from transformers import DynamicCache

        return (sampling_cache if self.path == "fast" else DynamicCache)(config=self.module.config)

    def _row_by_row(
        self, ids_BT: torch.Tensor, mask_BT: torch.Tensor, media: Media, cache: Cache | None
    ) -> torch.Tensor:
        """`hidden` of each sequence alone, without padding. A cache is that of one sequence."""
        assert cache is None or len(ids_BT) == 1
        rows = []
        for ids_T, mask_T, item in zip(ids_BT, mask_BT, media or [None] * len(ids_BT), strict=True):
            ids_1T = ids_T[mask_T.bool()].unsqueeze(0)
            row_TX = self.alone(ids_1T, item, cache)[0]
            start = int(mask_T.argmax())
            rows.append(F.pad(row_TX, (0, 0, start, len(ids_T) - start - len(row_TX))))
        return torch.stack(rows)

    def alone(
        self, ids_1T: torch.Tensor, item: MediaInputs | None = None, cache: Cache | None = None, *, last: int = 0
    ) -> torch.Tensor:
        """Hidden states [1, T, H] of one sequence as the model's code forms them; on the path `own` its logits.

        T are the `last` positions, 0 means all.
        """
        reads = self.module if self.path == "own" else self.module.base_model
        arguments: dict[str, Any] = {"attention_mask": torch.ones_like(ids_1T), **self._cached(cache)}
        if item is not None:
            arguments |= item.for_sequence(ids_1T.shape[1], self.device, self.module.dtype)
            if "mm_token_type_ids" not in arguments and self._has_rope_index:
                arguments["mm_token_type_ids"] = self._kinds(ids_1T)
        elif self._has_rope_index:  # without them it would go on from those of the last media
            arguments["position_ids"] = torch.arange(ids_1T.shape[1], device=self.device).unsqueeze(0)
        if last and self.path == "own":
            arguments["logits_to_keep"] = last
        known = _arguments(reads)
        named = {"logits_to_keep"}  # others would pass it on to where it is not known
        arguments = {k: value for k, value in arguments.items() if k in known or ("**" in known and k not in named)}
        with self.computing():
            output = reads(input_ids=ids_1T, **arguments)
        if self.path == "own":
            return output.logits[:, -last:, : self.num_tokens].float()
        return output.last_hidden_state[:, -last:]

    def position_offsets(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor, media: Media) -> torch.Tensor | None:
        """What to add to a token's count to get its position after these prompts, int64 [B]; None without media.

        A picture takes as many positions as its longer side has features, which is fewer than it has placeholders.
        """
        if not self._has_rope_index or not any(item is not None for item in media):
            return None
        return self._rope(ids_BT, mask_BT, media)[1].squeeze(1)

    def _rope(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor, media: Media) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions (time, height, width) [3, B, T] and their offsets [B, 1], by the model's own rule."""
        rule = self.module.base_model.get_rope_index
        shown = [item for item in media if item is not None]
        described = {
            name: torch.cat(found).to(self.device) if (found := _present(shown, name)) else None
            for name in inspect.signature(rule).parameters  # type: ignore[arg-type]
            if name.endswith(("_grid_thw", "_grid_ts"))
        }
        return rule(  # type: ignore[operator]
            ids_BT, mm_token_type_ids=self._kinds(ids_BT), attention_mask=mask_BT, **described
        )

    def _kinds(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """0 for text, 1 for a picture's placeholders, 2 for a clip's."""
        return (ids_BT == self._placeholder("image")).int() + 2 * (ids_BT == self._placeholder("video")).int()

    def _inputs(self, ids_BT: torch.Tensor, media: Media) -> dict[str, torch.Tensor]:
        """Ids, or their embeddings with vision features in the place of the placeholders."""
        if not any(item is not None for item in media):
            return {"input_ids": ids_BT}
        embeds_BTH = self.module.get_input_embeddings()(ids_BT)
        for kind in ("image", "video"):
            features = self._features(kind, media)
            if features:
                rows_FH = torch.cat([features[item] for item in media if item in features])
                mask_BT1 = (ids_BT == self._placeholder(kind)).unsqueeze(-1)
                embeds_BTH = embeds_BTH.masked_scatter(mask_BT1, rows_FH.to(embeds_BTH.dtype))
        return {"inputs_embeds": embeds_BTH}

    def _features(self, kind: str, media: Media) -> dict[MediaInputs | None, torch.Tensor]:
        """The tower's features [F, H] of everything of one kind: one call, each prompt's media once."""
        names = NAMES[kind]
        shown = [item for item in dict.fromkeys(media) if item is not None and names[0] in item.arguments]
        if not shown:
            return {}
        pixels_PD, grid = (torch.cat(_present(shown, name)).to(self.device) for name in names)
        # Images and video go through one tower; a clip is a picture with more than one time step.
        tower = self.module.base_model.get_image_features
        parts = iter(tower(pixels_PD, grid).pooler_output)  # type: ignore[operator]
        return {item: torch.cat([next(parts) for _ in item.arguments[names[1]]]) for item in shown}

    def _check_placeholders(self, ids_BT: torch.Tensor, media: Media) -> None:
        if self._merge_unit is None:
            return
        for kind in ("image", "video"):
            counts = (ids_BT == self._placeholder(kind)).sum(-1).tolist()
            for row, count in enumerate(counts):
                item = media[row] if media else None
                grid = None if item is None else item.arguments.get(NAMES[kind][1])
                wanted = 0 if grid is None else int(grid.prod(-1).sum()) // self._merge_unit
                if count != wanted:
                    raise ValueError(
                        f"a sequence has {count} {kind} placeholders and media for {wanted}: "
                        "a training sample needs the `rollout` that it was made from"
                    )

    def _placeholder(self, kind: str) -> int:
        return getattr(self.module.config, f"{kind}_token_id")

    @property
    def can_share_prompts(self) -> bool:
        """Whether a prompt's cache can be repeated for several continuations with gradients: attention layers only."""
        return self.path == "fast" and self.caches and self._has_attention_alone

    @cached_property
    def _has_attention_alone(self) -> bool:
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        layers = DynamicCache(config=self.module.config).layers
        return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)

    def hidden_after_prompt(
        self, prompt_ids_PT: torch.Tensor, prompt_mask_PT: torch.Tensor, rows_B: torch.Tensor, ids_BT: torch.Tensor,
        mask_BT: torch.Tensor, cache: Cache | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """`hidden` [B, T, H] of continuations, each after prompt `rows_B`; a prompt is read once, left padded.

        `mask_BT` is that of the continuations. A `cache` has to be empty, and has them all afterwards. Differentiable
        through the prompts. Only where `can_share_prompts`.
        """
        from transformers import DynamicCache

        cache = DynamicCache(config=self.module.config) if cache is None else cache
        self.hidden(prompt_ids_PT, prompt_mask_PT, cache=cache)
        cache.reorder_cache(cast(torch.LongTensor, rows_B))
        return self.hidden(ids_BT, torch.cat([prompt_mask_PT[rows_B], mask_BT], 1), cache=cache)

    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """fp32 logits [N, V] of the next token, before any temperature.

        16-bit weights are cast a block of the vocabulary at a time, so products are summed in fp32. The stored weights
        (which may be tied to the embedding) stay as they are.
        """
        if self.path == "own":
            return self.forbid(hidden_NH)
        head = self.module.get_output_embeddings()
        weight_VH, hidden_NH = head.weight[: self.num_tokens], hidden_NH.float()
        if weight_VH.dtype == torch.float32 or torch.is_grad_enabled():
            logits_NV = product(hidden_NH, weight_VH.float())
        else:
            logits_NV = hidden_NH.new_empty(len(hidden_NH), self.num_tokens)
            for start in range(0, self.num_tokens, size := max(1, CAST_ELEMENTS // weight_VH.shape[1])):
                block = slice(start, start + size)
                torch.mm(hidden_NH, weight_VH[block].float().T, out=logits_NV[:, block])
        if head.bias is not None:
            logits_NV += head.bias[: self.num_tokens].float()
        return self.finish_logits(logits_NV)

    def finish_logits(self, logits_NV: torch.Tensor) -> torch.Tensor:
        """The head's products [N, V] with the model's own scale and cap and the banned ids, in place if it can be."""
        if self._scale != 1.0:
            logits_NV *= self._scale
        if self._softcap is not None:
            logits_NV = logits_NV.div_(self._softcap).tanh_()
            # The gradient of tanh is formed from its result, which autograd keeps.
            logits_NV = logits_NV * self._softcap if logits_NV.requires_grad else logits_NV.mul_(self._softcap)
        return logits_NV.index_fill_(1, self._banned.to(logits_NV.device), BANNED_LOGIT)

    def forbid(self, logits_NV: torch.Tensor) -> torch.Tensor:
        """A copy in fp32 in which `banned_ids` have `BANNED_LOGIT`."""
        return logits_NV.float().index_fill(1, self._banned.to(logits_NV.device), BANNED_LOGIT)

    @torch.no_grad()
    def backward_logits(
        self, hidden_NH: torch.Tensor, logits_NV: torch.Tensor, gradient_NV: torch.Tensor
    ) -> torch.Tensor:
        """The backward pass of `logits`: returns the gradient [N, H] in the hidden states.

        That of the head is added to its `grad` in place, so nothing else of the head's size is made. `gradient_NV` and,
        in models that cap their logits, `logits_NV` are overwritten.
        """
        head = self.module.get_output_embeddings()
        gradient_NV = gradient_NV.index_fill_(1, self._banned.to(gradient_NV.device), 0.0)
        if self.path == "own":
            return gradient_NV
        if self._softcap is not None:  # d tanh(x) = 1 - tanh(x)^2
            gradient_NV *= logits_NV.div_(self._softcap).square_().neg_().add_(1.0)
        if self._scale != 1.0:
            gradient_NV *= self._scale
        for parameter in (head.weight, head.bias):
            if parameter is not None and parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if head.weight.requires_grad:
            head.weight.grad[: self.num_tokens].addmm_(gradient_NV.T, hidden_NH.to(head.weight.dtype))
        if head.bias is not None and head.bias.requires_grad:
            head.bias.grad[: self.num_tokens] += gradient_NV.sum(0)
        return gradient_NV @ head.weight[: self.num_tokens].float()


def num_common(sequences: Sequence[list[int]]) -> int:
    """How many leading ids all sequences have in common."""
    first, last = min(sequences), max(sequences)  # in the order of words, all others lie between the two
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(map(len, sequences)))


def _present(media: Sequence[MediaInputs], name: str) -> list[torch.Tensor]:
    return [value for item in media if (value := item.arguments.get(name)) is not None]


def _arguments(module: nn.Module | None) -> frozenset[str]:
    """What the forward pass of a module takes by name; `**` if anything else."""
    if module is None:
        return frozenset()
    parameters = inspect.signature(module.forward).parameters.values()
    return frozenset("**" if p.kind is p.VAR_KEYWORD else p.name for p in parameters)


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
