"""The rollout engine on plain transformers: prompts and their media are read once, finished sequences leave the batch.

It samples through `LanguageModel`, the forward pass that the trainer uses, so its log-probabilities are the trainer's
up to rounding. Shape suffixes: P prompts, R sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch

from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.probe import open_model
from harness.rollout.base import EngineParts, RolloutEngine, Sampling, room
from harness.rollout.batch import Batch, Piece, Row, State, cut_batches
from harness.rollout.continuous import Waiting, decoder_gap, sample_continuously
from harness.rollout.decoding import DenseDecoder, is_dense
from harness.rollout.uncached import Uncached
from harness.types import Prompt, Rollout, RolloutGroup, Sampler

logger = logging.getLogger(__name__)

FAST_WEIGHTS = 1 << 24
"""Smaller models sample by their own forward pass: for them a step's fixed work decides."""
MOST_GAP = 1e-4
"""Nats by which log-probabilities of the fast path may differ: rounding, in fp32."""


def open_engine(parts: EngineParts) -> RolloutEngine:
    """An engine with the run's own weights, or with a copy where the student is cut over ranks."""
    model = parts.weights or open_model(parts.model, parts.device, parts.chat)
    sequences = parts.rollout.max_sequences
    fast_from = FAST_WEIGHTS if parts.rollout.fast_decoding else math.inf
    own = parts.weights is None
    return TransformersEngine(model, parts.chat, parts.sampler, sequences, own_weights=own, fast_from=fast_from)


class TransformersEngine:
    """Samples groups with one model, `max_sequences` sequences at a time.

    Batches follow from the prompts and the configuration alone: complete groups in order while they fit. A group larger
    than `max_sequences` is split over batches and joined again.
    """

    def __init__(
        self, model: LanguageModel, chat: Chat, sampler: Sampler, max_sequences: int, *, own_weights: bool = False,
        fast_from: float = FAST_WEIGHTS,
    ) -> None:  # fmt: skip
        self.sampler: Sampler = sampler
        self.has_own_weights = own_weights
        self.takes_late_prompts = False  # its batches would depend on when they come
        self._model = model
        self._chat = chat
        self._max_sequences = max_sequences
        self._wants_fast = model.module.num_parameters() >= fast_from and is_dense(model)
        self._gap: float | None = None
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

    def _pieces(self, prompt: Prompt, sampling: Sampling) -> list[Piece]:
        packed = self._chat.pack(prompt)
        limit = room(prompt, len(packed.ids), sampling, self.context_window)
        indices = range(sampling.num_rollouts)
        size = self._max_sequences
        return [Piece(prompt, packed, limit, indices[start : start + size]) for start in range(0, len(indices), size)]

    def _groups(self, pieces: Sequence[Piece], sampling: Sampling) -> Iterator[RolloutGroup]:
        sample = self._sample_fast if self._can_be_fast(pieces, sampling) else self._sample
        rollouts: list[Rollout] = []
        for row in sample(pieces, sampling):
            rollouts.append(self._rollout(row))
            if len(rollouts) == sampling.num_rollouts:
                yield RolloutGroup(uid=row.piece.prompt.uid, prompt=row.piece.prompt, rollouts=rollouts)
                rollouts = []

    def _can_be_fast(self, pieces: Sequence[Piece], sampling: Sampling) -> bool:
        """Whether the prompts are text, and the model one whose fast path gives what its own forward pass gives."""
        if not self._wants_fast or sampling.unrestricted or any(piece.packed.media for piece in pieces):
            return False
        if self._gap is None:
            self._gap = decoder_gap(self._model)
            if self._gap > MOST_GAP:
                logger.warning(
                    "%s samples by the model's own forward pass: the fast one differs by %.2g nats",
                    self.sampler, self._gap,
                )  # fmt: skip
        return self._gap <= MOST_GAP

    # no_grad, not inference_mode: the module is the trainer's, and whatever it caches has to stay usable in a backward.
    @torch.no_grad()
    def _sample(self, pieces: Sequence[Piece], sampling: Sampling) -> Iterator[Row]:
        """The finished rows in order, batch by batch, by the model's own forward pass."""
        model = self._model.unrestricted if sampling.unrestricted else self._model
        for pieces_of_batch in cut_batches(pieces, self._max_sequences, media_alone=not model.joins_media):
            with model.evaluating():
                batch = self._open_batch(pieces_of_batch, sampling)
                rows = list(batch.live)
                state = State(model, pieces_of_batch) if model.caches else _uncached(model, rows)
                while True:
                    num_live = len(batch.live)
                    kept_R = batch.draw(state.logits_RV)
                    if not batch.live:
                        break
                    if len(kept_R) < num_live:
                        state.keep(kept_R)
                    state.step(batch.last_R)
            yield from rows

    @torch.no_grad()
    def _sample_fast(self, pieces: Sequence[Piece], sampling: Sampling) -> Iterator[Row]:
        """As `_sample`, by `DenseDecoder`: rows take the places of finished ones."""
        waiting = Waiting(pieces, self._max_sequences)
        yield from sample_continuously(DenseDecoder(self._model), waiting, partial(self._open_batch, sampling=sampling))

    def _open_batch(self, pieces: Sequence[Piece], sampling: Sampling) -> Batch:
        return Batch(pieces, self._model, self._chat, self.sampler, sampling, self._closed)

    def _rollout(self, row: Row) -> Rollout:
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


def _uncached(model: LanguageModel, rows: Sequence[Row]) -> Uncached:
    media = {id(row.piece): None if row.piece.packed.media is None else row.piece.packed.media.inputs() for row in rows}
    return Uncached(model, [row.piece.given for row in rows], [media[id(row.piece)] for row in rows])
