"""Costly checks, made only of chosen rows: gold answer, complete picture, prompt, benchmarks.

The prompt is the one that a training run of the given configuration would show: its student's chat template and
processor, its limits of pictures, its closing instruction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.builders.corpus.hashes import NearDuplicates
from harness.builders.corpus.reasons import answer_of, answer_type, question_of
from harness.builders.corpus.sources import Row
from harness.config.schema import RunConfig
from harness.data.images import MediaError, decode_image
from harness.models.chat import Chat
from harness.models.loading import load_tokenizer
from harness.models.vision import Vision
from harness.rewards.workers import Grader
from harness.types import Question
from methods.base import plain_prompt


@dataclass(frozen=True)
class Picture:
    """A decoded picture of a row."""

    name: str
    image: Any

    def open(self) -> Any:
        return self.image

    def content(self) -> Iterator[bytes]:
        yield self.image.tobytes()


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of a row: `reason` is None where it is fine, and then the rest is known."""

    question: Question
    reason: str | None = None
    message: str = ""
    num_prompt_tokens: int = 0


class Examiner:
    """Use as a context manager: it has a process that reads gold answers. Raises UserError for an unusable student."""

    def __init__(self, config: RunConfig, near_duplicates: NearDuplicates | None) -> None:
        self._chat = Chat(load_tokenizer(config.student), config.student)
        self._chat.vision = Vision(config.student, cache_bytes=0)  # a row's picture is never asked for again
        self._limits = config.data.media.limits()
        self._max_prompt_tokens = config.rollout.max_prompt_tokens
        self._near = near_duplicates
        self._grader = Grader(config.reward)

    def __enter__(self) -> Examiner:
        return self

    def __exit__(self, *error: object) -> None:
        self._grader.close()

    def examine(self, rows: Sequence[tuple[str, Row]]) -> list[Finding]:
        """Look at (name, row) pairs, in order."""
        questions = [
            Question(
                id=name,
                text=question_of(row),
                answer=answer_of(row),
                answer_type=answer_type(answer_of(row)),
                limits=self._limits,
            )
            for name, row in rows
        ]
        errors = self._grader.gold_errors(questions)
        return [
            Finding(question=question, reason="bad_answer", message=f"{question.id}: {error}")
            if error
            else self._finding(question, row.image_bytes() or b"")
            for question, error, (_, row) in zip(questions, errors, rows, strict=True)
        ]

    def _finding(self, question: Question, data: bytes) -> Finding:
        if self._near is not None and (like := self._near.of_text(question.text)):
            return Finding(question=question, reason="near_duplicate_text", message=f"{question.id}: text of {like}")
        try:
            image = decode_image(data, question.id)
        except MediaError as error:
            return Finding(question=question, reason="bad_image", message=str(error))
        if self._near is not None and (like := self._near.of_image(image)):
            message = f"{question.id}: picture of {like}"
            return Finding(question=question, reason="near_duplicate_image", message=message)
        shown = replace(question, images=(Picture(question.id, image),))
        try:
            num_tokens = self._chat.num_tokens_of(plain_prompt(shown))
        except MediaError as error:
            return Finding(question=question, reason="bad_marks", message=str(error))
        if num_tokens > self._max_prompt_tokens:
            return Finding(question=question, reason="long_prompt", message=f"{question.id}: {num_tokens} tokens")
        return Finding(question=question, num_prompt_tokens=num_tokens)
