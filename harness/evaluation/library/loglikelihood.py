"""Log-probabilities of given continuations, by the forward pass that the trainer uses.

Shape suffixes: B sequences, T tokens, H hidden, N scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch

from harness.errors import UserError
from harness.models.forward import LanguageModel, gather_logprobs

MAX_POSITIONS = 16_384
"""Tokens of a batch, padding included."""
MAX_LOGITS = 1 << 27
"""Logits at once: half a GiB."""
Pair = tuple[list[int], list[int]]
"""Ids of a context, at least one, and of the continuation after it."""


@torch.no_grad()
def score(model: LanguageModel, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
    """The natural-log probability of each continuation, and whether each of its tokens is the likeliest, in order.

    A context that is too long loses its first tokens. Pairs that differ in their last token alone, as the letters of a
    multiple choice do, are read once. Raises UserError for one without a token, or longer than the model's context.
    """
    window = model.context_window
    readers: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, (context, continuation) in enumerate(pairs):
        if not context or not 0 < len(continuation) <= window:
            raise UserError(
                f"a continuation has {len(continuation)} tokens after {len(context)}, the window {window}: the "
                "model's tokenizer or window does not fit the task"
            )
        readers[tuple([*context, *continuation][-(window + 1) : -1])].append(number)
    found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    was_training = model.module.training
    model.module.eval()
    try:
        for batch in _batches(sorted(readers, key=lambda ids: (-len(ids), ids))):
            rows = [(row, number) for row, ids in enumerate(batch) for number in readers[ids]]
            width = len(batch[0])
            ids_BT = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in batch], device=model.device)
            mask_BT = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in batch], device=model.device)
            hidden_BTH = model.hidden(ids_BT, mask_BT)
            for row, number in rows:
                continuation = pairs[number][1]
                end = len(batch[row])
                found[number] = _score_one(model, hidden_BTH[row, end - len(continuation) : end], continuation)
    finally:
        model.module.train(was_training)
    return found


def _score_one(model: LanguageModel, hidden_NH: torch.Tensor, continuation: Sequence[int]) -> tuple[float, bool]:
    ids_N = torch.tensor(continuation, device=model.device)
    total, greedy = 0.0, True
    size = max(1, MAX_LOGITS // model.num_tokens)
    for start in range(0, len(ids_N), size):
        logits_NV = model.logits(hidden_NH[start : start + size])
        part_N = ids_N[start : start + size]
        total += float(gather_logprobs(logits_NV, part_N).sum())
        greedy = greedy and bool((logits_NV.argmax(-1) == part_N).all())
    return total, greedy


def _batches(sequences: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Consecutive sequences, the longest first, of at most `MAX_POSITIONS` tokens together."""
    batch: list[tuple[int, ...]] = []
    for sequence in sequences:
        if batch and len(batch[0]) * (len(batch) + 1) > MAX_POSITIONS:
            yield batch
            batch = []
        batch.append(sequence)
    if batch:
        yield batch
