"""From training samples to mini-batches, micro-batches and padded tensors.

B sequences, T tokens of the longest, N trained tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from harness.models.vision import MediaInputs
from harness.types import TokenBatch, TrainingSample


def mini_batches(
    samples: Sequence[TrainingSample], *, num_batches: int, rng: np.random.Generator
) -> list[list[TrainingSample]]:
    """Split the step's samples: groups stay whole, are permuted by `rng`, sizes differ by at most one group.

    A batch may be empty when there are fewer groups than batches.
    """
    by_group: dict[str, list[TrainingSample]] = {}
    for sample in samples:
        by_group.setdefault(sample.uid, []).append(sample)
    groups = list(by_group.values())
    order = rng.permutation(len(groups))
    return [[s for i in part for s in groups[i]] for part in np.array_split(order, num_batches)]


def micro_batches(samples: Sequence[TrainingSample], size: int) -> Iterator[list[TrainingSample]]:
    """At most `size` sequences each, sorted by length so that padding is small."""
    ordered = sorted(samples, key=lambda s: len(s.token_ids), reverse=True)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


@dataclass(kw_only=True)
class PaddedBatch:
    """Right-padded sequences and the positions whose next token is trained.

    `rows_N, columns_N` index the hidden state that predicts trained token `tokens.ids_N`.
    """

    ids_BT: torch.Tensor
    mask_BT: torch.Tensor
    rows_N: torch.Tensor
    columns_N: torch.Tensor
    weights_N: torch.Tensor
    tokens: TokenBatch
    media: list[MediaInputs | None]
    """Of every sequence; those of one prompt share an object, so that the vision tower sees it once."""


def pad(samples: Sequence[TrainingSample], device: torch.device) -> PaddedBatch:
    """Pad a micro-batch. Missing advantages and log-probabilities become 0, missing weights 1."""
    packed = {s.media.digest: s.media for s in samples if s.media is not None}
    inputs = {digest: media.inputs() for digest, media in packed.items()}
    rows = [(b, t) for b, s in enumerate(samples) for t, trained in enumerate(s.loss_mask) if trained]
    ids_BT, mask_BT = _right_pad([s.token_ids for s in samples])

    def per_token(values: Sequence[Sequence[float] | None], default: float) -> torch.Tensor:
        flat = [default if (row := values[b]) is None else row[t] for b, t in rows]
        return torch.tensor(flat, dtype=torch.float32, device=device)

    rows_N = torch.tensor([b for b, _ in rows], device=device)
    columns_N = torch.tensor([t - 1 for _, t in rows], device=device)
    tokens = TokenBatch(
        ids_N=torch.tensor([samples[b].token_ids[t] for b, t in rows], device=device),
        advantages_N=per_token([s.advantages for s in samples], 0.0),
        old_logprobs_N=per_token([s.old_logprobs for s in samples], 0.0),
        rollout_logprobs_N=per_token([s.rollout_logprobs for s in samples], 0.0),
        sequence_N=rows_N,
    )
    return PaddedBatch(
        ids_BT=ids_BT.to(device),
        mask_BT=mask_BT.to(device),
        rows_N=rows_N,
        columns_N=columns_N,
        weights_N=per_token([s.weights for s in samples], 1.0),
        tokens=tokens,
        media=[None if s.media is None else inputs[s.media.digest] for s in samples],
    )


def pad_for_teacher(samples: Sequence[TrainingSample], device: torch.device) -> PaddedBatch:
    """The same trained tokens behind the prompt that the teacher sees."""
    return pad([_with_teacher_prompt(sample) for sample in samples], device)


def tokens_between(tokens: TokenBatch, start: int, stop: int) -> TokenBatch:
    """The chunk [start, stop) of the trained tokens."""
    return TokenBatch(**{name: value[start:stop] for name, value in vars(tokens).items()})


def _with_teacher_prompt(sample: TrainingSample) -> TrainingSample:
    if sample.teacher_prompt_ids is None:
        return sample
    completion, mask = sample.token_ids[sample.num_prompt :], sample.loss_mask[sample.num_prompt :]
    return TrainingSample(
        uid=sample.uid,
        token_ids=[*sample.teacher_prompt_ids, *completion],
        loss_mask=[0] * len(sample.teacher_prompt_ids) + mask,
        rollout=sample.rollout,
    )


def _right_pad(sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(s) for s in sequences)
    ids_BT = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask_BT = torch.zeros(len(sequences), longest, dtype=torch.long)
    for b, sequence in enumerate(sequences):
        ids_BT[b, : len(sequence)] = torch.tensor(sequence)
        mask_BT[b, : len(sequence)] = 1
    return ids_BT, mask_BT
