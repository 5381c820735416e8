"""The rollout engine on plain transformers: prompts and their media are read once, finished sequences leave the batch.

It samples through `LanguageModel`, the forward pass that the trainer uses, so its log-probabilities are the trainer's
up to rounding. Shape suffixes: P prompts, R sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from harness.models.chat import Chat, PackedPrompt
from harness.models.forward import LanguageModel, gather_logprobs, num_common
from harness.models.probe import open_model
from harness.models.vision import PackedMedia
from harness.rollout.base import EngineParts, RolloutEngine, Sampling, room
from harness.rollout.sampling import RowStreams, SeenTokens, adjust, draw, has_penalties, scaled
from harness.rollout.uncached import Uncached
from harness.types import FinishReason, Prompt, Rollout, RolloutGroup, Sampler


def open_engine(parts: EngineParts) -> RolloutEngine:
    """An engine with the run's own weights, or with a copy where the student is cut over ranks."""
    model = parts.weights or open_model(parts.model, parts.device, parts.chat)
    sequences = parts.rollout.max_sequences
    return TransformersEngine(model, parts.chat, parts.sampler, sequences, own_weights=parts.weights is None)


class TransformersEngine:
    """Samples groups with one model, `max_sequences` sequences at a time.

    Batches follow from the prompts and the configuration alone: complete groups in order while they fit. A group larger
    than `max_sequences` is split over batches and joined again.
    """

    def __init__(
        self, model: LanguageModel, chat: Chat, sampler: Sampler, max_sequences: int, *, own_weights: bool = False
    ) -> None:
        self.sampler: Sampler = sampler
        self.has_own_weights = own_weights
        self.takes_late_prompts = False  # its batches would depend on when they come
        self._model = model
        self._chat = chat
        self._max_sequences = max_sequences
        self._closed = threading.Event()

    @property
    def model(self) -> LanguageModel:
        """What it samples with: the trainer's own, or a complete copy."""
        return self._model

    @property
    def context_window(self) -> int:
        return self._model.context_window

    def generate(self, prompts: Iterable[Prompt], sampling: Sampling) -> Iterator[RolloutGroup]:
        """Yield the group of each prompt, ungraded, in order, as its batch finishes.

        A prompt's prefix starts every completion and counts against `max_new_tokens`; a completion also ends where the
        context window does. Raises UserError at once if a prompt leaves no room for a single token.
        """
        pieces = [piece for prompt in prompts for piece in self._pieces(prompt, sampling)]
        return self._groups(pieces, sampling)

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copy weights by name. Tensors that the model already uses, those of a shared student, cost nothing.

        Raises ValueError for a name that the model does not have.
        """
        own = self._model.module.state_dict(keep_vars=True)
        for name, tensor in named_tensors:
            if name not in own:
                raise ValueError(f"the engine's model has no tensor {name}")
            if own[name].data_ptr() != tensor.data_ptr():
                own[name].data.copy_(tensor)

    def sleep(self) -> None:
        """Nothing to release: the model belongs to the caller."""

    def wake(self) -> None:
        """It never slept."""

    def close(self) -> None:
        """Whoever is sampling with it gets a RuntimeError, so that a process that ends does not wait for it."""
        self._closed.set()

    def _pieces(self, prompt: Prompt, sampling: Sampling) -> list[_Piece]:
        packed = self._chat.pack(prompt)
        limit = room(prompt, len(packed.ids), sampling, self.context_window)
        indices = range(sampling.num_rollouts)
        size = self._max_sequences
        return [_Piece(prompt, packed, limit, indices[start : start + size]) for start in range(0, len(indices), size)]

    def _groups(self, pieces: Sequence[_Piece], sampling: Sampling) -> Iterator[RolloutGroup]:
        rollouts: list[Rollout] = []
        for batch in _batches(pieces, self._max_sequences, media_alone=not self._model.joins_media):
            finished = iter(self._sample(batch, sampling))
            for piece in batch:
                rollouts += [next(finished) for _ in piece.indices]
                if len(rollouts) == sampling.num_rollouts:
                    yield RolloutGroup(uid=piece.prompt.uid, prompt=piece.prompt, rollouts=rollouts)
                    rollouts = []

    # no_grad, not inference_mode: the module is the trainer's, and whatever it caches has to stay usable in a backward.
    @torch.no_grad()
    def _sample(self, batch: Sequence[_Piece], sampling: Sampling) -> list[Rollout]:
        """The rollouts of a batch, in order."""
        module = self._model.module
        was_training = module.training
        module.eval()
        try:
            rows = [_Row(piece, index) for piece in batch for index in piece.indices]
            self._decode(rows, batch, sampling)
        finally:
            module.train(was_training)
        return [self._rollout(row) for row in rows]

    def _decode(self, rows: Sequence[_Row], batch: Sequence[_Piece], sampling: Sampling) -> None:
        """Sample every row to its end."""
        model = self._model.unrestricted if sampling.unrestricted else self._model
        state = _State(model, batch) if model.caches else _uncached(model, rows)
        streams = RowStreams(sampling, self.sampler, [(row.piece.prompt.uid, row.index) for row in rows])
        seen: SeenTokens | None = None
        if has_penalties(sampling):
            seen = SeenTokens([row.piece.given for row in rows], model.num_tokens, model.device)
        live = list(rows)
        while True:
            if self._closed.is_set():
                raise RuntimeError("the engine was closed while it sampled")
            uniforms_R = None if sampling.temperature == 0.0 else streams.next()
            ids_R = draw(adjust(state.logits_RV, sampling, seen), uniforms_R)
            logprobs_R = gather_logprobs(scaled(state.logits_RV, sampling.temperature or 1.0), ids_R)
            for row, token_id, logprob in zip(live, ids_R.tolist(), logprobs_R.tolist(), strict=True):
                row.append(token_id, logprob, self._chat.stop_ids)
                if sampling.stop and row.finish_reason != "stop" and self._has_ended(row.ids, sampling.stop):
                    row.finish_reason = "stop"
            if seen is not None:
                seen.add(ids_R)
            kept = [i for i, row in enumerate(live) if row.finish_reason is None]
            if not kept:
                return
            if len(kept) < len(live):
                live = [live[i] for i in kept]
                streams.keep(kept)
                kept_R = torch.tensor(kept, device=ids_R.device)
                ids_R = ids_R[kept_R]
                state.keep(kept_R)
                if seen is not None:
                    seen.keep(kept_R)
            state.step(ids_R)

    def _has_ended(self, ids: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether one of the texts has just been completed: only the last tokens are read."""
        longest = max(map(len, stop))
        text = self._chat.decode_prompt(ids[-(longest + 2) :])
        return any(one in text for one in stop)

    def _rollout(self, row: _Row) -> Rollout:
        assert row.finish_reason is not None
        return Rollout(
            sampler=self.sampler,
            index=row.index,
            prompt_ids=list(row.piece.packed.ids),
            media=row.piece.packed.media,
            completion_ids=row.ids,
            rollout_logprobs=row.logprobs,
            text=self._chat.decode(row.ids),
            finish_reason=row.finish_reason,
            num_prefix=len(row.piece.prompt.prefix_ids),
        )


@dataclass(frozen=True)
class _Piece:
    """The rollouts of one prompt that are sampled in one batch: all of its group, or a part of a large one."""

    prompt: Prompt
    packed: PackedPrompt
    limit: int
    """Completion tokens at most, the prefix included."""
    indices: range

    @property
    def given(self) -> list[int]:
        return [*self.packed.ids, *self.prompt.prefix_ids]


class _Row:
    """A completion that is being sampled."""

    def __init__(self, piece: _Piece, index: int) -> None:
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


class _State:
    """What the model keeps of the unfinished sequences: cache, mask, and the logits of the next token."""

    def __init__(self, model: LanguageModel, batch: Sequence[_Piece]) -> None:
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
        ids_PT, self._mask_RT = _left_pad([prompt[common:] for prompt in prompts], device)
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


def _uncached(model: LanguageModel, rows: Sequence[_Row]) -> Uncached:
    media = {id(row.piece): None if row.piece.packed.media is None else row.piece.packed.media.inputs() for row in rows}
    return Uncached(model, [row.piece.given for row in rows], [media[id(row.piece)] for row in rows])


def _batches(pieces: Sequence[_Piece], max_sequences: int, *, media_alone: bool = False) -> Iterator[list[_Piece]]:
    """Consecutive pieces of at most `max_sequences` rollouts together; with `media_alone` one that shows some alone."""
    batch: list[_Piece] = []
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


def _left_pad(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, int64 [P, T]. The mask hides the padding, so which id it has does not matter."""
    width = max(map(len, sequences))
    ids = [[0] * (width - len(sequence)) + list(sequence) for sequence in sequences]
    mask = [[0] * (width - len(sequence)) + [1] * len(sequence) for sequence in sequences]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
