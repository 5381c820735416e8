"""The teacher's distribution of every trained token, for distillation: the contract of the scorers.

| | gives | teacher |
|--|--|--|
| `teacher.local.LocalScorer` | the complete distribution, exact | next to the student |
| `teacher.process.ProcessScorer` | the same, bit for bit on one device | decoder in a process of its own |
| `teacher.server.ServerScorer` | top-k log-probabilities and a tail | at endpoints |

Shape suffixes: B sequences, T tokens, N trained tokens, H hidden, V vocabulary, K listed tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from harness.models.batching import ModelInputs, PaddedBatch
from harness.models.forward import LanguageModel
from harness.types import TeacherDistribution, TrainingSample

Samples = Sequence[TrainingSample]
"""A micro-batch, as a scorer is given it."""


class TeacherScores(Protocol):
    """The teacher at the N trained tokens of a micro-batch, in the order of `PaddedBatch`."""

    @property
    def ids_N(self) -> list[int]:
        """The completion ids that were scored, as whoever scored them says."""
        ...

    @property
    def digests(self) -> list[str | None]:
        """Digests of the media of every sequence."""
        ...

    def between(self, start: int, stop: int) -> TeacherDistribution:
        """The distribution of the trained tokens [start, stop)."""
        ...


class TeacherScorer(Protocol):
    """What the trainer asks of a teacher."""

    def score(self, micro_batches: Sequence[Samples]) -> Iterator[TeacherScores]:
        """The scores of each micro-batch, in order, each after the prompt that the teacher sees.

        All are asked for at once, so that later ones may be on their way while one is trained on; the iterator may be
        dropped early. Raises UserError where the teacher is lost or cannot score.
        """
        ...

    def close(self) -> None: ...


def check_same(scores: TeacherScores, student: PaddedBatch) -> None:
    """Raises RuntimeError unless both sides were given the same completion ids and the same media."""
    if scores.ids_N != student.tokens.ids_N.tolist() or scores.digests != digests_of(student):
        raise RuntimeError("teacher and student were given different completions or different media")


def digests_of(batch: PaddedBatch) -> list[str | None]:
    return [None if media is None else media.digest for media in batch.media]


@dataclass(frozen=True, kw_only=True)
class HiddenScores:
    """Final hidden states, to which the teacher's head is applied chunk by chunk: logits exist of one chunk only."""

    head: LanguageModel
    compute: Callable[[], torch.Tensor]
    """The hidden states [N, H]; called once, when ids and media have been compared."""
    temperature: float
    ids_N: list[int]
    digests: list[str | None]

    @cached_property
    def hidden_NH(self) -> torch.Tensor:
        return self.compute()

    @torch.no_grad()
    def between(self, start: int, stop: int) -> TeacherDistribution:
        hidden_NH = self.hidden_NH[start:stop].to(self.head.device)
        logits_NV = self.head.logits(hidden_NH)
        return TeacherDistribution(logits_NV=logits_NV if self.temperature == 1.0 else logits_NV.div_(self.temperature))


def hidden_of(model: LanguageModel, batch: ModelInputs) -> torch.Tensor:
    """Final hidden states [N, H] that predict the trained tokens."""
    if (shared := batch.prompts) is None:
        hidden_BTH = model.hidden(batch.ids_BT, batch.mask_BT, media=batch.media)
    else:
        hidden_BTH = model.hidden_after_prompt(
            shared.ids_PT, shared.mask_PT, shared.rows_B, batch.ids_BT, batch.mask_BT
        )
    return hidden_BTH[batch.rows_N, batch.columns_N]
