"""How the next token of each sequence is drawn from its logits. Shape suffixes: R sequences, V vocabulary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import torch

from harness.rollout.base import Sampling
from harness.types import Sampler


class SeenTokens:
    """Which ids the penalties of each sequence look at.

    The repetition penalty counts the prompt and the completion, as in transformers; the presence penalty counts sampled
    tokens only, as in vLLM. A given prefix belongs to the prompt.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], vocab_size: int, device: torch.device) -> None:
        self.sampled_RV = torch.zeros(len(prompts), vocab_size, dtype=torch.bool, device=device)
        self.all_RV = torch.zeros_like(self.sampled_RV)
        for row, ids in enumerate(prompts):
            self.all_RV[row, [i for i in ids if i < vocab_size]] = True

    def add(self, ids_R: torch.Tensor) -> None:
        """One newly sampled token a sequence."""
        self.sampled_RV.scatter_(1, ids_R.unsqueeze(1), True)
        self.all_RV.scatter_(1, ids_R.unsqueeze(1), True)

    def keep(self, rows: torch.Tensor) -> None:
        self.sampled_RV = self.sampled_RV[rows]
        self.all_RV = self.all_RV[rows]


def has_penalties(sampling: Sampling) -> bool:
    return sampling.presence_penalty != 0.0 or sampling.repetition_penalty != 1.0


def has_cuts(sampling: Sampling) -> bool:
    """Whether some tokens of the distribution are never drawn."""
    return sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0


def adjust(logits_RV: torch.Tensor, sampling: Sampling, seen: SeenTokens | None = None) -> torch.Tensor:
    """Logits that are sampled from: penalties, temperature, top-k, top-p, min-p, in the order of transformers.

    `seen` is needed where `has_penalties`. Cut tokens get -inf. At temperature 0 only the penalties apply.
    """
    if sampling.repetition_penalty != 1.0:
        assert seen is not None
        penalty = sampling.repetition_penalty
        punished_RV = torch.where(logits_RV < 0, logits_RV * penalty, logits_RV / penalty)
        logits_RV = torch.where(seen.all_RV, punished_RV, logits_RV)
    if sampling.presence_penalty != 0.0:
        assert seen is not None
        logits_RV = logits_RV - sampling.presence_penalty * seen.sampled_RV
    if sampling.temperature == 0.0:
        return logits_RV
    logits_RV = scaled(logits_RV, sampling.temperature)
    if 0 < sampling.top_k < logits_RV.shape[1]:
        logits_RV = _cut(logits_RV, logits_RV < logits_RV.topk(sampling.top_k).values[:, -1:])
    if sampling.top_p < 1.0:
        logits_RV = _cut(logits_RV, _outside_nucleus(logits_RV, sampling.top_p))
    if sampling.min_p > 0.0:
        probs_RV = logits_RV.softmax(-1)
        logits_RV = _cut(logits_RV, probs_RV < sampling.min_p * probs_RV.amax(-1, keepdim=True))
    return logits_RV


def scaled(logits_RV: torch.Tensor, temperature: float) -> torch.Tensor:
    """Logits by the temperature, not copied where it is 1."""
    return logits_RV if temperature == 1.0 else logits_RV / temperature


def draw(logits_RV: torch.Tensor, uniforms_R: np.ndarray | None) -> torch.Tensor:
    """One id a row, int64 [R]: argmax without `uniforms_R`, else the inverse cumulative distribution at u in [0, 1).

    A token of probability 0 is never drawn: the first sum above the threshold belongs to a token that raised it. Sums
    are fp64, because fp32 sums over a large vocabulary lose the tail.
    """
    if uniforms_R is None:
        return logits_RV.argmax(-1)
    sums_RV = logits_RV.softmax(-1).double().cumsum(-1)
    uniforms_R1 = torch.from_numpy(uniforms_R).to(sums_RV.device).unsqueeze(1)
    return torch.searchsorted(sums_RV, uniforms_R1 * sums_RV[:, -1:], right=True).squeeze(1)


BLOCK = 256
"""Probabilities that are summed at once."""


def draw_by_block(
    logits_RV: torch.Tensor, temperature: float, uniforms_R: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids int64 [R] and their log-probabilities fp32 [R] of softmax(logits / temperature), without any cut.

    As `draw` and `gather_logprobs` up to rounding, in a quarter of the passes: sums over blocks lead to the block, and
    sums within it to the token. `logits_RV` is overwritten.
    """
    num_rows, num_ids = logits_RV.shape
    if temperature != 1.0:
        logits_RV /= temperature
    logits_RV -= logits_RV.amax(-1, keepdim=True)
    chances_RV = logits_RV.exp()
    whole = num_ids // BLOCK * BLOCK
    blocks = [chances_RV[:, :whole].view(num_rows, -1, BLOCK).sum(-1), chances_RV[:, whole:].sum(-1, keepdim=True)]
    sums_RB = torch.cat(blocks, -1).double().cumsum(-1)
    totals_R1 = sums_RB[:, -1:]
    wanted_R1 = torch.from_numpy(uniforms_R).unsqueeze(1) * totals_R1
    block_R1 = _first_above(sums_RB, wanted_R1)
    before_R1 = torch.where(block_R1 > 0, sums_RB.gather(1, (block_R1 - 1).clamp(min=0)), 0.0)
    ids_RI = block_R1 * BLOCK + torch.arange(BLOCK)
    inside_RI = torch.where(ids_RI < num_ids, chances_RV.gather(1, ids_RI.clamp(max=num_ids - 1)), 0.0)
    ids_R1 = block_R1 * BLOCK + _first_above(inside_RI.double().cumsum(-1), wanted_R1 - before_R1)
    return ids_R1.squeeze(1), (logits_RV.gather(1, ids_R1) - totals_R1.log()).squeeze(1).float()


def _first_above(sums_RN: torch.Tensor, wanted_R1: torch.Tensor) -> torch.Tensor:
    """The number of the first sum above the wanted one, int64 [R, 1]; of the last rise where rounding asks for more."""
    last_R1 = sums_RN[:, -1:]
    return torch.searchsorted(sums_RN, wanted_R1.minimum(last_R1.nextafter(torch.zeros_like(last_R1))), right=True)


class RowStreams:
    """A stream of uniform numbers for each rollout, a function of (seed, step, sampler, uid, index) alone.

    Philox is counter-based: its key is a hash of those five and the i-th number belongs to the i-th sampled token,
    whatever else is in the batch.
    """

    CHUNK = 64

    def __init__(self, sampling: Sampling, sampler: Sampler, rows: Sequence[tuple[str, int]]) -> None:
        """`rows`: (uid, index) of each rollout."""
        self._streams = [
            np.random.Generator(np.random.Philox(key=_key(sampling.seed, sampling.step, sampler, uid, index)))
            for uid, index in rows
        ]
        self._chunk = np.empty((len(rows), 0))
        self._used = 0

    def next(self) -> np.ndarray:
        """The next number of every stream: fp64 [R] in [0, 1)."""
        if self._used == self._chunk.shape[1]:
            self._chunk = np.stack([stream.random(self.CHUNK) for stream in self._streams])
            self._used = 0
        self._used += 1
        return self._chunk[:, self._used - 1].copy()

    def keep(self, rows: Sequence[int]) -> None:
        self._streams = [self._streams[row] for row in rows]
        self._chunk = self._chunk[list(rows)]


def _key(*parts: int | str) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:16], "little")


def _cut(logits_RV: torch.Tensor, removed_RV: torch.Tensor) -> torch.Tensor:
    return logits_RV.masked_fill(removed_RV, float("-inf"))


def _outside_nucleus(logits_RV: torch.Tensor, top_p: float) -> torch.Tensor:
    """True for the tail of total probability at most 1 - top_p; the likeliest token always stays."""
    ascending_RV, order_RV = logits_RV.sort(dim=-1)
    tail_RV = ascending_RV.softmax(-1).cumsum(-1) <= 1 - top_p
    tail_RV[:, -1] = False
    return torch.zeros_like(tail_RV).scatter_(1, order_RV, tail_RV)
