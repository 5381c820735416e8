"""From training samples to micro-batches and padded tensors.

B sequences, T tokens of the longest, N trained tokens, P prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from harness.models.forward import num_common
from harness.models.vision import MediaInputs
from harness.types import TokenBatch, TrainingSample

WORTH_SHARING = 0.9


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Sequences of one forward and backward pass. Where prompts are shared, `num_given[i]` leading tokens of sample i
    are read once for all samples that start with them."""

    samples: list[TrainingSample]
    numbers: list[int]
    """Where each sample stands in the list that was cut."""
    num_given: list[int] | None = None

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """The shared beginnings, each once."""
        given = self.num_given or []
        return list(dict.fromkeys(tuple(s.token_ids[:n]) for s, n in zip(self.samples, given, strict=True)))

    @property
    def num_tokens(self) -> int:
        """Tokens that are read, without padding."""
        total = sum(len(sample.token_ids) for sample in self.samples)
        if self.num_given is None:
            return total
        return total - sum(self.num_given) + sum(map(len, self.prompts))

    @property
    def num_padded(self) -> int:
        """Tokens that are read, padding included."""
        if self.num_given is None:
            return len(self.samples) * max(len(sample.token_ids) for sample in self.samples)
        rest = [len(sample.token_ids) - given for sample, given in zip(self.samples, self.num_given, strict=True)]
        return len(rest) * max(rest) + len(self.prompts) * max(map(len, self.prompts))


def micro_batches(samples: Sequence[TrainingSample], max_tokens: int, *, share: bool = False) -> list[MicroBatch]:
    """Cut a mini-batch into passes of at most `max_tokens`, padding included; a longer sequence has one for itself.

    Sequences are sorted by length so that padding is small. With `share`, prompts may be read once for their group, or
    what all prompts begin with once for all. That is done where it leaves at most `WORTH_SHARING` of the tokens, since
    it keeps groups together and pads twice.
    """
    units = [MicroBatch(samples=[sample], numbers=[number]) for number, sample in enumerate(samples)]
    units.sort(key=lambda unit: unit.num_tokens, reverse=True)
    ways = [_cut(units, max_tokens)]
    for given in _beginnings([unit.samples[0] for unit in units]) if share else ():
        by_prompt: dict[tuple[int, ...], list[MicroBatch]] = {}
        for unit, n in zip(units, given, strict=True):
            sharing = by_prompt.setdefault(tuple(unit.samples[0].token_ids[:n]), [])
            sharing.append(dataclasses.replace(unit, num_given=[n]))
        ways.append(_cut([unit for sharing in by_prompt.values() for unit in sharing], max_tokens))
    return _cheapest(ways)


def one_pass(samples: Sequence[TrainingSample], *, share: bool = False) -> MicroBatch:
    """All samples in one pass, in their order; with `share` as in `micro_batches`."""
    whole = MicroBatch(samples=list(samples), numbers=list(range(len(samples))))
    ways = [dataclasses.replace(whole, num_given=given) for given in _beginnings(samples)] if share else []
    return _cheapest([[way] for way in (whole, *ways)])[0]


def _beginnings(samples: Sequence[TrainingSample]) -> Iterator[list[int]]:
    """Ways to share: how many leading tokens of each sample are read once for all that start with them."""
    given = [_num_given(sample) for sample in samples]
    if any(sample.media is not None for sample in samples) or not given or not all(given):
        return
    yield given
    if common := min(num_common([sample.token_ids for sample in samples]), *given):
        yield [common] * len(samples)


def _cheapest(ways: Sequence[list[MicroBatch]]) -> list[MicroBatch]:
    plain, *shared = ways
    best = min(shared, key=_num_padded, default=plain)
    return best if _num_padded(best) <= WORTH_SHARING * _num_padded(plain) else plain


def _cut(units: Sequence[MicroBatch], max_tokens: int) -> list[MicroBatch]:
    """Join units in order while they fit."""
    done: list[MicroBatch] = []
    for unit in units:
        joined = _join(done[-1], unit) if done else unit
        if done and joined.num_padded <= max_tokens:
            done[-1] = joined
        else:
            done.append(unit)
    return done


def _join(a: MicroBatch, b: MicroBatch) -> MicroBatch:
    given = None if a.num_given is None or b.num_given is None else [*a.num_given, *b.num_given]
    return MicroBatch(samples=[*a.samples, *b.samples], numbers=[*a.numbers, *b.numbers], num_given=given)


def _num_given(sample: TrainingSample) -> int:
    """Tokens before the one whose hidden state predicts the first trained token."""
    return max(0, sample.loss_mask.index(1) - 1) if 1 in sample.loss_mask else 0


def _num_padded(batches: Sequence[MicroBatch]) -> int:
    return sum(batch.num_padded for batch in batches)


@dataclass(kw_only=True)
class SharedPrompts:
    """Left-padded prompts, and which of them each sequence continues."""

    ids_PT: torch.Tensor
    mask_PT: torch.Tensor
    rows_B: torch.Tensor


@dataclass(kw_only=True)
class ModelInputs:
    """Right-padded sequences, and `rows_N, columns_N` of the hidden states that predict the trained tokens.

    With `prompts`, the sequences are what follows them.
    """

    ids_BT: torch.Tensor
    mask_BT: torch.Tensor
    rows_N: torch.Tensor
    columns_N: torch.Tensor
    media: list[MediaInputs | None]
    """Media of every sequence; those of one prompt share an object, so that the vision tower sees it once."""
    prompts: SharedPrompts | None = None


@dataclass(kw_only=True)
class PaddedBatch(ModelInputs):
    """The inputs with the trained tokens, sequence by sequence, and their weights."""

    weights_N: torch.Tensor
    tokens: TokenBatch


def pad(micro: MicroBatch | Sequence[TrainingSample], device: torch.device) -> PaddedBatch:
    """Pad a micro-batch. Missing advantages and log-probabilities become 0, missing weights 1."""
    batch = micro if isinstance(micro, MicroBatch) else one_pass(micro)
    samples = batch.samples
    given = batch.num_given or [0] * len(samples)
    packed = {s.media.digest: s.media for s in samples if s.media is not None}
    inputs = {digest: media.inputs() for digest, media in packed.items()}
    ids_BT, mask_BT = _pad([s.token_ids[n:] for s, n in zip(samples, given, strict=True)])
    tokens = trained_tokens(samples, device)
    trained = _trained(samples)
    return PaddedBatch(
        ids_BT=ids_BT.to(device),
        mask_BT=mask_BT.to(device),
        rows_N=tokens.sequence_N,
        columns_N=torch.tensor([t - 1 - given[b] for b, t in trained], dtype=torch.long, device=device),
        weights_N=_per_token([s.weights for s in samples], 1.0, trained, device),
        tokens=tokens,
        media=[None if s.media is None else inputs[s.media.digest] for s in samples],
        prompts=None if batch.num_given is None else _shared_prompts(batch, device),
    )


def trained_tokens(samples: Sequence[TrainingSample], device: torch.device) -> TokenBatch:
    """The trained tokens of samples, one sample after another. What a sample has none of is 0."""
    trained = _trained(samples)
    return TokenBatch(
        ids_N=torch.tensor([samples[b].token_ids[t] for b, t in trained], dtype=torch.long, device=device),
        advantages_N=_per_token([s.advantages for s in samples], 0.0, trained, device),
        old_logprobs_N=_per_token([s.old_logprobs for s in samples], 0.0, trained, device),
        rollout_logprobs_N=_per_token([s.rollout_logprobs for s in samples], 0.0, trained, device),
        sequence_N=torch.tensor([b for b, _ in trained], dtype=torch.long, device=device),
    )


def _trained(samples: Sequence[TrainingSample]) -> list[tuple[int, int]]:
    """Sequence and position of every trained token."""
    return [(b, t) for b, s in enumerate(samples) for t, mask in enumerate(s.loss_mask) if mask]


def _per_token(
    values: Sequence[Sequence[float] | None], default: float, trained: Sequence[tuple[int, int]], device: torch.device
) -> torch.Tensor:
    flat = [default if (row := values[b]) is None else row[t] for b, t in trained]
    return torch.tensor(flat, dtype=torch.float32, device=device)


def _shared_prompts(batch: MicroBatch, device: torch.device) -> SharedPrompts:
    prompts = batch.prompts
    number = {prompt: i for i, prompt in enumerate(prompts)}
    rows = [number[tuple(s.token_ids[:n])] for s, n in zip(batch.samples, batch.num_given or [], strict=True)]
    ids_PT, mask_PT = _pad(prompts, left=True)
    return SharedPrompts(ids_PT=ids_PT.to(device), mask_PT=mask_PT.to(device), rows_B=torch.tensor(rows, device=device))


def pad_for_teacher(samples: Sequence[TrainingSample], device: torch.device, *, share: bool = False) -> PaddedBatch:
    """`pad` of the same trained tokens after the prompt that the teacher sees."""
    return pad(one_pass([_with_teacher_prompt(sample) for sample in samples], share=share), device)


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


def _pad(sequences: Sequence[Sequence[int]], *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, int64 [B, T]."""
    longest = max(len(s) for s in sequences)
    ids_BT = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask_BT = torch.zeros(len(sequences), longest, dtype=torch.long)
    for b, sequence in enumerate(sequences):
        columns = slice(longest - len(sequence), longest) if left else slice(len(sequence))
        ids_BT[b, columns] = torch.tensor(sequence, dtype=torch.long)
        mask_BT[b, columns] = 1
    return ids_BT, mask_BT
