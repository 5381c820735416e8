"""A teacher at endpoints, which list the likeliest tokens at every position."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from harness.errors import UserError
from harness.models.batching import PaddedBatch, pad_for_teacher
from harness.serving.answers import WrongAnswer, choices_of, listed_logprobs
from harness.teacher.base import Samples, digests_of
from harness.types import TeacherDistribution

LEAST_LOGPROB = -9999.0
"""What servers write for log 0."""


class Server(Protocol):
    """`harness.serving.endpoints.Endpoints`, as far as it is used here."""

    def map(self, path: str, bodies: Iterable[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]: ...


@dataclass(frozen=True, kw_only=True)
class ListedScores:
    """The likeliest tokens at every position, the trained one among them; -1 fills up shorter lists."""

    topk_ids_NK: torch.Tensor
    topk_logprobs_NK: torch.Tensor
    ids_N: list[int]
    digests: list[str | None]

    def between(self, start: int, stop: int) -> TeacherDistribution:
        return TeacherDistribution(
            topk_ids_NK=self.topk_ids_NK[start:stop], topk_logprobs_NK=self.topk_logprobs_NK[start:stop]
        )


class ServerScorer:
    """A teacher at a vLLM server: prompt and completion are its prompt, of which it gives log-probabilities.

    For every trained token it lists the `top_k` likeliest tokens and the token itself, at temperature 1 and over the
    server's own vocabulary. What it gives to `banned_ids` and to rows from `num_tokens` on, which no reply can have,
    is dropped from the list and counts as tail. (A local teacher is renormalised without them.)

    Raises UserError for another temperature, since the tail of a tempered distribution is not known.
    """

    def __init__(
        self,
        endpoints: Server,
        *,
        top_k: int,
        temperature: float,
        num_tokens: int,
        banned_ids: Collection[int] = (),
    ) -> None:
        if temperature != 1.0:
            raise UserError(
                f"rollout.temperature={temperature:g}: a served teacher gives its distribution at temperature 1 only; "
                "set rollout.temperature=1, or load the teacher next to the student (teacher.serve=false)"
            )
        self._endpoints = endpoints
        self._top_k = top_k
        self._num_tokens = num_tokens
        self._banned = frozenset(banned_ids)

    def score(self, micro_batches: Sequence[Samples]) -> Iterator[ListedScores]:
        """Every sequence is a request; all of them are under way at once. Raises UserError for samples with media."""
        if any(sample.media is not None for samples in micro_batches for sample in samples):
            raise UserError(
                "a served teacher scores text only: load the teacher of questions with images or video next to the "
                "student (teacher.serve=false, teacher.urls=[])"
            )
        return self._score([pad_for_teacher(samples, torch.device("cpu")) for samples in micro_batches])

    def close(self) -> None:
        """The endpoints belong to whoever made them."""

    def _score(self, batches: Sequence[PaddedBatch]) -> Iterator[ListedScores]:
        sequences = [_sequences(batch) for batch in batches]
        answers: dict[int, dict[str, Any]] = {}
        arriving = self._endpoints.map("completions", [self._body(ids) for rows in sequences for ids in rows])
        start = 0
        for batch, rows in zip(batches, sequences, strict=True):
            wanted = range(start, start + len(rows))
            while not all(position in answers for position in wanted):
                position, answer = next(arriving)
                answers[position] = answer
            yield self._read(batch, rows, [answers.pop(position) for position in wanted])
            start += len(rows)

    def _body(self, ids: list[int]) -> dict[str, Any]:
        return {
            "prompt": ids,
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": self._top_k,
            "return_token_ids": True,
        }

    def _read(self, batch: PaddedBatch, rows: list[list[int]], answers: list[dict[str, Any]]) -> ListedScores:
        try:
            choices = [choices_of(answer, 1)[0] for answer in answers]
            for ids, choice in zip(rows, choices, strict=True):
                self._check_prompt(ids, choice)
            width = self._top_k + 1
            listed_ids, listed_values, scored = [], [], []
            for row, column in zip(batch.rows_N.tolist(), batch.columns_N.tolist(), strict=True):
                # of the token that this column predicts
                entry = listed_logprobs(choices[row]["prompt_logprobs"][column + 1], width)
                token_id = rows[row][column + 1]
                if token_id not in entry:
                    raise WrongAnswer(f"gives no log-probability of the scored token {token_id}")
                kept = {i: value for i, value in entry.items() if self._is_possible(i)}
                padding = width - len(kept)
                listed_ids.append([*kept, *[-1] * padding])
                listed_values.append([*(max(v, LEAST_LOGPROB) for v in kept.values()), *[0.0] * padding])
                scored.append(token_id)
        except WrongAnswer as error:
            raise UserError(
                f"the teacher's endpoint {error}: serve it with vLLM, or load the teacher next to the student "
                "(teacher.serve=false, teacher.urls=[])"
            ) from error
        return ListedScores(
            topk_ids_NK=torch.tensor(listed_ids, dtype=torch.int64).reshape(-1, width),
            topk_logprobs_NK=torch.tensor(listed_values, dtype=torch.float32).reshape(-1, width),
            ids_N=scored,
            digests=digests_of(batch),
        )

    def _check_prompt(self, ids: list[int], choice: dict[str, Any]) -> None:
        read, scores = choice.get("prompt_token_ids"), choice.get("prompt_logprobs")
        if not isinstance(scores, list) or not isinstance(read, list):
            raise WrongAnswer("returns no prompt_logprobs with token ids")
        if read != ids or len(scores) != len(ids):
            raise WrongAnswer("scored other token ids than it was sent")

    def _is_possible(self, token_id: int) -> bool:
        return token_id < self._num_tokens and token_id not in self._banned


def _sequences(batch: PaddedBatch) -> list[list[int]]:
    lengths = batch.mask_BT.sum(-1).tolist()
    return [ids[:length] for ids, length in zip(batch.ids_BT.tolist(), lengths, strict=True)]
