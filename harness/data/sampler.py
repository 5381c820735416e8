"""The order in which a run meets its questions: one seeded permutation an epoch, resumable at every point."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from harness.data.stored import Chosen
from harness.errors import UserError
from harness.types import Question, ReplayedQuestion


class DataExhausted(UserError):
    """All epochs are used up."""


class QuestionSampler:
    """A cursor over `epochs` passes through the questions. Batches are full and never straddle two epochs.

    What is left of an epoch when no full batch remains is dropped, unless `more` took it. The order of an epoch depends
    only on (seed, epoch), so it does not change with the batch size or with what `more` took before.

    Raises UserError where the questions do not fill one batch.
    """

    def __init__(
        self, questions: Sequence[Question], *, batch_size: int, epochs: int, shuffle: bool, seed: int
    ) -> None:
        if len(questions) < batch_size:
            raise UserError(
                f"{len(questions)} questions do not fill one batch of {batch_size}: lower data.batch_size, or take "
                "more questions (data.num_questions, data.pool_size or a larger file)"
            )
        self._questions = questions
        self._batch_size = batch_size
        self._epochs = epochs
        self._shuffle = shuffle
        self._seed = seed
        self._epoch = 0
        self._position = 0
        self._order = self._permutation(0)

    @cached_property
    def questions(self) -> Mapping[str, Question]:
        """All questions of the run by id."""
        if isinstance(self._questions, Chosen):
            return self._questions.by_id
        return {question.id: question for question in self._questions}

    @property
    def has_media(self) -> bool:
        """Whether any question has a picture or a clip."""
        if isinstance(self._questions, Chosen):
            return self._questions.has_media
        return any(question.images or question.video is not None for question in self._questions)

    @property
    def num_steps(self) -> int:
        """Full batches over all epochs, if `more` is never called."""
        return self._epochs * (len(self._questions) // self._batch_size)

    @property
    def num_steps_left(self) -> int:
        """Full batches from the cursor on, if `more` is not called again."""
        later_epochs = self._epochs - 1 - self._epoch
        return self._left() // self._batch_size + later_epochs * (len(self._questions) // self._batch_size)

    def next_batch(self) -> list[Question]:
        """The next `batch_size` questions. Raises DataExhausted after the last full batch."""
        if self.num_steps_left == 0:
            raise DataExhausted(
                f"the data end after epoch {self._epochs}: raise data.epochs, take more questions, or set fewer steps"
            )
        if self._left() < self._batch_size:
            self._epoch += 1
            self._position = 0
            self._order = self._permutation(self._epoch)
        return self._take(self._batch_size)

    def more(self, num_questions: int) -> list[Question]:
        """Further questions of the running epoch; fewer, possibly none, where it ends."""
        assert num_questions >= 0, f"cannot take {num_questions} questions"
        return self._take(min(num_questions, self._left()))

    def state_dict(self) -> dict[str, Any]:
        """The cursor, JSON values only."""
        return {"epoch": self._epoch, "position": self._position, "fingerprint": self._fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved cursor. Raises UserError where the questions or their order are others."""
        if state["fingerprint"] != self._fingerprint and state["fingerprint"] != self._hash():
            raise UserError(
                "the checkpoint was made with other questions or another order: restore data.* and seed, "
                "or start a new run with another label"
            )
        self._epoch = state["epoch"]
        self._position = state["position"]
        self._order = self._permutation(self._epoch)

    def _left(self) -> int:
        return len(self._questions) - self._position

    def _take(self, num_questions: int) -> list[Question]:
        start = self._position
        self._position += num_questions
        return [self._questions[int(i)] for i in self._order[start : self._position]]

    def _permutation(self, epoch: int) -> np.ndarray:
        if not self._shuffle:
            return np.arange(len(self._questions))
        # numpy takes no negative seeds
        rng = np.random.default_rng([self._seed % 2**64, epoch])
        return rng.permutation(len(self._questions))

    @cached_property
    def _fingerprint(self) -> str:
        """16 hex digits of the questions and their order. Of stored ones their own digests count, which is fast."""
        if not isinstance(self._questions, Chosen):
            return self._hash()
        order = json.dumps([self._shuffle, self._seed]).encode()
        return hashlib.sha256(order + self._questions.digest()).hexdigest()[:16]

    def _hash(self) -> str:
        digest = hashlib.sha256(json.dumps([self._shuffle, self._seed]).encode())
        for q in self._questions:
            media = [*[image.name for image in q.images], None if q.video is None else q.video.name]
            shown: list[Any] = [*media, asdict(q.limits)] if q.images or q.video is not None else []
            if (own := (q.other_answers, q.closing, q.scorer)) != ((), None, ""):
                shown.append(own)
            digest.update(json.dumps([q.id, q.text, q.answer, q.answer_type, q.messages, *shown]).encode())
        return digest.hexdigest()[:16]


@dataclass(kw_only=True)
class Batch:
    """The questions of one rollout step (`harness.types.QuestionBatch`)."""

    new: Sequence[Question]
    replayed: Sequence[ReplayedQuestion]
    step: int
    num_steps: int
    sampler: QuestionSampler

    def more(self, num_questions: int) -> list[Question]:
        """Further new questions of the running epoch; fewer, possibly none, where it ends."""
        return self.sampler.more(num_questions)
