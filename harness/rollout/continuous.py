"""Sampling with `DenseDecoder`: waiting rows take the places of finished ones, in an order that is always the same.

What is in a forward pass follows from the prompts, the configuration and the tokens. Shape suffixes: R sequences,
T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch

from harness.models.forward import LanguageModel, gather_logprobs
from harness.rollout.batch import Batch, Piece, Row, cut_batches, left_pad
from harness.rollout.decoding import DenseDecoder
from harness.rollout.group_cache import GroupCache

PARTS = 8
"""Rows enter once one of so many parts of the places is free: entering costs some fixed work."""
GROUPS = 2
"""Times the groups that fit when complete, there may be groups with finished rows. The places of those are not free."""


class Waiting:
    """Pieces that are still to be sampled. They enter in order, each as a unit.

    Prompts are read in the batches of the reference path, so what they begin with is read once a batch.
    """

    def __init__(self, pieces: Sequence[Piece], max_sequences: int) -> None:
        self.size = max(len(piece.indices) for piece in pieces)
        self.max_sequences = max_sequences
        self._batches = deque(cut_batches(pieces, max_sequences))
        self._read: deque[tuple[Piece, torch.Tensor, torch.Tensor]] = deque()
        """Pieces whose prompts have been read, each with the logits after it and its cache."""

    def __bool__(self) -> bool:
        return bool(self._read or self._batches)

    def enter(self, decoder: DenseDecoder, cache: GroupCache, num_live: int) -> tuple[list[Piece], torch.Tensor] | None:
        """Let the next pieces that fit into `cache`; with the logits [R, V] of their rows' first tokens."""
        free = self.max_sequences - num_live
        if PARTS * free < self.max_sequences:
            return None
        if not self._read and self._batches:
            pieces = self._batches.popleft()
            logits_PV, caches = decoder.read([piece.given for piece in pieces])
            self._read.extend(zip(pieces, logits_PV, caches, strict=True))
        groups = GROUPS * -(-self.max_sequences // self.size) - cache.num_groups
        entering: list[tuple[Piece, torch.Tensor, torch.Tensor]] = []
        while self._read and len(self._read[0][0].indices) <= free and len(entering) < groups:
            entering.append(self._read.popleft())
            free -= len(entering[-1][0].indices)
        if not entering:
            return None
        sizes = [len(piece.indices) for piece, _, _ in entering]
        cache.enter([kept for _, _, kept in entering], sizes)
        logits_RV = torch.stack([logits_V for _, logits_V, _ in entering]).repeat_interleave(torch.tensor(sizes), 0)
        return [piece for piece, _, _ in entering], logits_RV


def sample_continuously(
    decoder: DenseDecoder, waiting: Waiting, open_batch: Callable[[Sequence[Piece]], Batch]
) -> Iterator[Row]:
    """The finished rows, in order. `open_batch` makes a batch of pieces that enter together."""
    cache = decoder.new_cache(waiting.size)
    active: list[Batch] = []
    unfinished: deque[Row] = deque()
    while waiting or active:
        logits_RV = [decoder.step(cache, torch.cat([batch.last_R for batch in active]))] if active else []
        while entered := waiting.enter(decoder, cache, sum(len(batch.live) for batch in active)):
            pieces, first_RV = entered
            active.append(open_batch(pieces))
            unfinished.extend(active[-1].live)
            logits_RV.append(first_RV)
        parts = torch.cat(logits_RV).split([len(batch.live) for batch in active])
        kept, start = [], 0
        for batch, part_RV in zip(active, parts, strict=True):
            kept.append(start + batch.draw(part_RV, fast=True))
            start += len(part_RV)
        cache.keep(torch.cat(kept))
        active = [batch for batch in active if batch.live]
        if not waiting:
            cache.compact()
        while unfinished and unfinished[0].finish_reason is not None:
            yield unfinished.popleft()


PROMPT_LENGTHS, SIZES = (40, 7, 22), (1, 3, 2)
NUM_CHECKED = 12


@torch.no_grad()
def decoder_gap(model: LanguageModel) -> float:
    """Largest difference in nats between log-probabilities of `DenseDecoder` and of the model's own forward pass.

    Fixed ids continue three prompts, with one to three rollouts each, of which some end earlier. Infinite where the
    decoder cannot run the model at all.
    """
    try:
        return _gap(model)
    except RuntimeError:  # shapes that do not fit, such as a rotation of a part of each head
        return math.inf


def _gap(model: LanguageModel) -> float:
    starts = [min(length, model.context_window - NUM_CHECKED - 1) for length in PROMPT_LENGTHS]
    prompts = [
        [(7919 * i + 31 * number * (i > 3)) % model.num_tokens for i in range(start)]
        for number, start in enumerate(starts)
    ]
    replies = [
        [(104729 * (i + 1) + 37 * row) % model.num_tokens for i in range(NUM_CHECKED)] for row in range(sum(SIZES))
    ]
    of_row = [number for number, size in enumerate(SIZES) for _ in range(size)]
    ids_RT, mask_RT = left_pad([prompts[of_row[row]] + reply for row, reply in enumerate(replies)], model.device)
    with model.evaluating():
        expected_RNV = model.hidden(ids_RT, mask_RT)[:, -NUM_CHECKED - 1 : -1]
    wanted_RN = ids_RT[:, -NUM_CHECKED:]
    decoder = DenseDecoder(model)
    cache = decoder.new_cache(max(SIZES))
    logits_PV, caches = decoder.read(prompts)
    cache.enter(caches, SIZES)
    logits_RV, rows = logits_PV[of_row], torch.arange(len(of_row))
    gap = 0.0
    for i in range(NUM_CHECKED):
        found_R = gather_logprobs(logits_RV, wanted_RN[rows, i])
        expected_R = gather_logprobs(model.logits(expected_RNV[rows, i]), wanted_RN[rows, i])
        gap = max(gap, float((found_R - expected_R).abs().max()))
        if i == NUM_CHECKED // 2:
            stay = torch.tensor([1, 5])
            rows = rows[stay]
            cache.keep(stay)
            cache.compact()
        logits_RV = decoder.step(cache, wanted_RN[rows, i])
    return gap
