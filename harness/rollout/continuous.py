"""Sampling with `DenseDecoder`: waiting rows take the places of finished ones, in an order that is always the same.

What is in a forward pass follows from the prompts, the configuration and the tokens. Shape suffixes: R sequences,
T tokens, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch

from harness.models.cpu import sampling_cache
from harness.models.forward import LanguageModel, gather_logprobs
from harness.rollout.base import Sampling
from harness.rollout.batch import Batch, Piece, Row, State, cut_batches, left_pad
from harness.rollout.decoding import Cohort, DenseDecoder
from harness.types import Sampler

PARTS = 8
"""Rows enter once one of so many parts of the places is free: each cohort costs a step some fixed work."""


class Waiting:
    """Pieces that are still to be sampled. They enter in order, each as a unit.

    Prompts are read in the batches of the reference path, so what they begin with is read once a batch.
    """

    def __init__(
        self, pieces: Sequence[Piece], model: LanguageModel, stop_ids: frozenset[int], sampler: Sampler,
        sampling: Sampling, max_sequences: int,
    ) -> None:  # fmt: skip
        self.max_sequences = max_sequences
        self._batches = deque(cut_batches(pieces, max_sequences))
        self._read: deque[tuple[int, Piece]] = deque()
        """Pieces whose prompts have been read, with their numbers in `_state`."""
        self._state: State | None = None
        self._model = model
        self._rest = model, stop_ids, sampler, sampling

    def __bool__(self) -> bool:
        return bool(self._read or self._batches)

    def enter(self, free: int) -> tuple[Batch, Cohort, torch.Tensor] | None:
        """The next rows that fit, their caches, and logits [R, V] of their first tokens; None where none fit."""
        if not self._read:
            if not self._batches:
                return None
            with self._model.evaluating():
                self._state = State(self._model, self._batches[0])
            self._read.extend(enumerate(self._batches.popleft()))
        entering: list[tuple[int, Piece]] = []
        while self._read and len(self._read[0][1].indices) <= free:
            entering.append(self._read.popleft())
            free -= len(entering[-1][1].indices)
        if not entering:
            return None
        assert self._state is not None
        cohort, logits_RV = self._state.cohort([number for number, _ in entering])
        if not self._read:
            self._state = None
        return Batch([piece for _, piece in entering], *self._rest), cohort, logits_RV


def sample_continuously(decoder: DenseDecoder, waiting: Waiting, check_open: Callable[[], None]) -> Iterator[Row]:
    """The finished rows, in order. `check_open` is called before each token, and raises where sampling has to end."""
    active: list[tuple[Batch, Cohort]] = []
    unfinished: deque[Row] = deque()
    while waiting or active:
        check_open()
        if active:
            logits_RV = decoder.step([cohort for _, cohort in active], torch.cat([batch.last_R for batch, _ in active]))
            parts = logits_RV.split([len(batch.live) for batch, _ in active])
            for (batch, cohort), part_RV in zip(active, parts, strict=True):
                _draw(batch, cohort, part_RV)
            active = [(batch, cohort) for batch, cohort in active if batch.live]
        while PARTS * (free := waiting.max_sequences - sum(len(batch.live) for batch, _ in active)) >= waiting.max_sequences:
            entered = waiting.enter(free)
            if entered is None:
                break
            batch, cohort, first_RV = entered
            unfinished.extend(batch.live)
            _draw(batch, cohort, first_RV)
            if batch.live:
                active.append((batch, cohort))
        while unfinished and unfinished[0].finish_reason is not None:
            yield unfinished.popleft()


def _draw(batch: Batch, cohort: Cohort, logits_RV: torch.Tensor) -> None:
    kept = batch.draw(logits_RV, fast=True)
    if kept is not None:
        cohort.keep(kept)


PROMPT_LENGTHS, SIZES = (40, 7, 22), (1, 3, 2)
NUM_CHECKED = 12


@torch.no_grad()
def decoder_gap(model: LanguageModel) -> float:
    """Largest difference in nats between log-probabilities of `DenseDecoder` and of the model's own forward pass.

    Fixed ids continue three prompts, with one to three rollouts each, of which some end earlier.
    """
    num_ids, window = model.num_tokens, model.context_window
    lengths = [min(length, window - NUM_CHECKED - 1) for length in PROMPT_LENGTHS]
    of_row = [number for number, size in enumerate(SIZES) for _ in range(size)]
    sequences_RT = [
        [(7919 * i + 104729 * (number if i < lengths[number] else 3 + row)) % num_ids for i in range(lengths[number] + NUM_CHECKED + 1)]
        for row, number in enumerate(of_row)
    ]
    with model.evaluating():
        cache = sampling_cache(model.module.config)
        prompts = [sequences_RT[of_row.index(number)][:length] for number, length in enumerate(lengths)]
        ids_PT, mask_PT = left_pad(prompts, model.device)
        model.hidden(ids_PT, mask_PT, cache=cache)
        ids_RT, mask_RT = left_pad(sequences_RT, model.device)
        hidden_RTH = model.hidden(ids_RT, mask_RT)[:, -NUM_CHECKED - 1 : -1]
    given_RN, wanted_RN = ids_RT[:, -NUM_CHECKED - 1 : -1], ids_RT[:, -NUM_CHECKED:]
    decoder = DenseDecoder.pack(model)
    cohorts = [Cohort(cache, [0, 1], mask_PT, SIZES[:2]), Cohort(cache, [2], mask_PT, SIZES[2:])]
    rows = torch.arange(len(of_row))
    gap = 0.0
    for i in range(NUM_CHECKED):
        if i == NUM_CHECKED // 2:
            cohorts[0].keep([2])
            rows = torch.tensor([2, 4, 5])
        found_R = gather_logprobs(decoder.step(cohorts, given_RN[rows, i]), wanted_RN[rows, i])
        expected_R = gather_logprobs(model.logits(hidden_RTH[rows, i]), wanted_RN[rows, i])
        gap = max(gap, float((found_R - expected_R).abs().max()))
    return gap
