"""What a transformers engine samples together: pieces of groups, their rows and draws, and what the model keeps.

Shape suffixes: P prompts, R sequences, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from harness.models.chat import Chat, PackedPrompt
from harness.models.forward import LanguageModel, gather_logprobs, num_common
from harness.models.vision import PackedMedia
from harness.rollout.base import Sampling
from harness.rollout.sampling import (
    RowStreams,
    SeenTokens,
    adjust,
    draw,
    draw_by_block,
    has_cuts,
    has_penalties,
    scaled,
)
from harness.types import FinishReason, Prompt, Sampler


@dataclass(frozen=True)
class Piece:
    """The rollouts of one prompt that are sampled in one batch: all of its group, or a part of a large one."""

    prompt: Prompt
    packed: PackedPrompt
    limit: int
    """Completion tokens at most, the prefix included."""
    indices: range

    @property
    def given(self) -> list[int]:
        return [*self.packed.ids, *self.prompt.prefix_ids]


class Row:
    """A completion that is being sampled."""

    def __init__(self, piece: Piece, index: int) -> None:
        self.piece = piece
        self.index = index
        self.ids: list[int] = list(piece.prompt.prefix_ids)
        self.logprobs = [0.0] * len(self.ids)
        self.finish_reason: FinishReason | None = None

    def append(self, token_id: int, logprob: float, stop_ids: frozenset[int]) -> None:
        self.ids.append(token_id)
        self.logprobs.append(logprob)
        if token_id in stop_ids:
            self.finish_reason = "stop"
        elif len(self.ids) == self.piece.limit:
            self.finish_reason = "length"


class Batch:
    """Rows that were admitted together, and so are equally long, with what their draws depend on."""

    def __init__(
        self, pieces: Sequence[Piece], model: LanguageModel, chat: Chat, sampler: Sampler,
        sampling: Sampling, closed: threading.Event,
    ) -> None:  # fmt: skip
        self.live = [Row(piece, index) for piece in pieces for index in piece.indices]
        self.last_R = torch.empty(0, dtype=torch.long)
        """The ids that the live rows have drawn last."""
        self._chat = chat
        self._closed = closed
        self._sampling = sampling
        keys = [(row.piece.prompt.uid, row.index) for row in self.live]
        self._streams = RowStreams(sampling, sampler, keys)
        self._seen: SeenTokens | None = None
        if has_penalties(sampling):
            self._seen = SeenTokens([row.piece.given for row in self.live], model.num_tokens, model.device)

    def draw(self, logits_RV: torch.Tensor, *, fast: bool = False) -> torch.Tensor:
        """Append a token to each live row. Returns the numbers of the rows that go on, int64."""
        if self._closed.is_set():
            raise RuntimeError("the engine was closed while it sampled")
        sampling, seen = self._sampling, self._seen
        uniforms_R = None if sampling.temperature == 0.0 else self._streams.next()
        if fast and uniforms_R is not None and seen is None and not has_cuts(sampling):
            ids_R, logprobs_R = draw_by_block(logits_RV, sampling.temperature, uniforms_R)
        else:
            ids_R = draw(adjust(logits_RV, sampling, seen), uniforms_R)
            logprobs_R = gather_logprobs(scaled(logits_RV, sampling.temperature or 1.0), ids_R)
        for row, token_id, logprob in zip(self.live, ids_R.tolist(), logprobs_R.tolist(), strict=True):
            row.append(token_id, logprob, self._chat.stop_ids)
            if sampling.stop and row.finish_reason != "stop" and self._has_ended(row.ids, sampling.stop):
                row.finish_reason = "stop"
        self.last_R = ids_R
        if seen is not None:
            seen.add(ids_R)
        kept = [i for i, row in enumerate(self.live) if row.finish_reason is None]
        kept_R = torch.tensor(kept, dtype=torch.long, device=ids_R.device)
        if len(kept) < len(self.live):
            self.live = [self.live[i] for i in kept]
            self._streams.keep(kept)
            self.last_R = ids_R[kept_R]
            if seen is not None:
                seen.keep(kept_R)
        return kept_R

    def _has_ended(self, ids: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether one of the texts has just been completed: only the last tokens are read."""
        longest = max(map(len, stop))
        text = self._chat.decode_prompt(ids[-(longest + 2) :])
        return any(one in text for one in stop)


class State:
    """What the model keeps of the unfinished sequences: cache, mask, and the logits of the next token."""

    def __init__(self, model: LanguageModel, batch: Sequence[Piece]) -> None:
        """Read each prompt once, then repeat its row for its rollouts."""
        self._model = model
        self._cache = model.new_cache()
        self._offsets_R: torch.Tensor | None = None
        last_PH = self._read([piece.given for piece in batch], [piece.packed.media for piece in batch])
        counts = torch.tensor([len(piece.indices) for piece in batch], device=model.device)
        rows_R = torch.arange(len(batch), device=model.device).repeat_interleave(counts)
        self.logits_RV = model.logits(last_PH)[rows_R]
        self.keep(rows_R)

    def _read(self, prompts: Sequence[list[int]], media: Sequence[PackedMedia | None]) -> torch.Tensor:
        """The last hidden state of each prompt [P, H]. What all begin with is read once, where the model allows it."""
        model, device = self._model, self._model.device
        common = 0
        if len(prompts) > 1 and model.can_share_prompts and not any(media):
            common = min(num_common(prompts), min(map(len, prompts)) - 1)
        ids_PT, self._mask_RT = left_pad([prompt[common:] for prompt in prompts], device)
        if common:
            ids_1T = torch.tensor([prompts[0][:common]], device=device)
            rows_P = torch.zeros(len(prompts), dtype=torch.long, device=device)
            mask_1T = torch.ones_like(ids_1T)
            hidden_PTH = model.hidden_after_prompt(ids_1T, mask_1T, rows_P, ids_PT, self._mask_RT, self._cache)
            self._mask_RT = torch.cat([mask_1T[rows_P], self._mask_RT], 1)
        else:
            inputs = [None if item is None else item.inputs() for item in media]
            hidden_PTH = model.hidden(ids_PT, self._mask_RT, media=inputs, cache=self._cache)
            self._offsets_R = model.position_offsets(ids_PT, self._mask_RT, inputs)
        return hidden_PTH[:, -1]

    def keep(self, rows_R: torch.Tensor) -> None:
        """Take the rows of these numbers, repeated where a number is. `logits_RV` is left to the next step."""
        # batch_select_indices would be the name for it, but linear-attention layers only have reorder_cache.
        self._cache.reorder_cache(cast(torch.LongTensor, rows_R))
        self._mask_RT = self._mask_RT[rows_R]
        if self._offsets_R is not None:
            self._offsets_R = self._offsets_R[rows_R]

    def step(self, ids_R: torch.Tensor) -> None:
        """Append one token a row."""
        self._mask_RT = torch.cat([self._mask_RT, torch.ones_like(self._mask_RT[:, :1])], dim=1)
        hidden_R1H = self._model.hidden(ids_R.unsqueeze(1), self._mask_RT, cache=self._cache, offsets_B=self._offsets_R)
        self.logits_RV = self._model.logits(hidden_R1H[:, 0])


def cut_batches(pieces: Sequence[Piece], max_sequences: int, *, media_alone: bool = False) -> Iterator[list[Piece]]:
    """Consecutive pieces of at most `max_sequences` rollouts together; with `media_alone` one that shows some alone."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        is_alone = media_alone and any(item.packed.media is not None for item in (piece, *batch))
        if batch and (is_alone or size + len(piece.indices) > max_sequences):
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += len(piece.indices)
    if batch:
        yield batch


def left_pad(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, int64 [P, T]. The mask hides the padding, so which id it has does not matter."""
    width = max(map(len, sequences))
    ids = [[0] * (width - len(sequence)) + list(sequence) for sequence in sequences]
    mask = [[0] * (width - len(sequence)) + [1] * len(sequence) for sequence in sequences]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
