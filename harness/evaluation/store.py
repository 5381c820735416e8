"""Responses as they come, on disk: what has been generated once is not generated again, whatever ends the process.

Append-only JSON lines. A row's key covers everything that its response depends on, so rows of other models or
protocols in the same file are never taken for this one's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.rollout.base import Sampling
from harness.types import Prompt

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One response."""

    key: str
    benchmark: str
    uid: str
    question_id: str
    response: str
    num_tokens: int
    finish_reason: str


def sample_key(
    identity: str,
    answered: Mapping[str, Any],
    sampling: Sampling,
    prompt: Prompt,
    media: Sequence[str],
    index: int = 0,
) -> str:
    """24 hex digits of the model, how it answers and is marked, decoding, and what is asked and shown.

    So of what decides the random draws: the uid, and which of a question's samples it is.

    `answered` is `harness.evaluation.protocol.answered_by`, `media` the digests of what is shown.
    """
    limits = asdict(prompt.question.limits)
    decoding = sampling.changed() | {"num_rollouts": 1}  # however many samples are drawn, the i-th is the same
    parts: list[Any] = [identity, answered, decoding, prompt.uid, list(prompt.messages), list(media), limits]
    parts += [index] if index else []
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


class SampleStore:
    """The rows of a file, and a place to add to them. Use it as a context manager.

    A line that was cut off when a process died is removed. Any other line that is no sample is passed over and counted.
    The responses of both are generated again.
    """

    num_damaged: int
    """Lines that were passed over."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._samples: dict[str, Sample] = {}
        damaged: list[int] = []
        end = 0
        if path.exists():
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if not line.endswith(b"\n"):
                        break
                    end += len(line)
                    sample = _sample_of(line)
                    if sample is not None:
                        self._samples[sample.key] = sample
                    elif line.strip():
                        damaged.append(number)
            os.truncate(path, end)
        self.num_damaged = len(damaged)
        if damaged:
            logger.warning(
                "%s: damaged lines are passed over (%d, the first is line %d): their responses are generated again",
                path, len(damaged), damaged[0],
            )  # fmt: skip
        self._file = path.open("a", encoding="utf-8")

    def get(self, key: str) -> Sample | None:
        return self._samples.get(key)

    def add(self, sample: Sample) -> None:
        """Keep a response; it is in the operating system's hands when this returns."""
        self._file.write(json.dumps(asdict(sample)) + "\n")
        self._file.flush()
        self._samples[sample.key] = sample

    def __enter__(self) -> SampleStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def _sample_of(line: bytes) -> Sample | None:
    """The sample of a line, whatever else the line has; None where it is damaged."""
    try:
        row = json.loads(line)
        sample = Sample(**{field.name: row[field.name] for field in fields(Sample)})
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    texts = (sample.key, sample.benchmark, sample.uid, sample.question_id, sample.response, sample.finish_reason)
    return sample if all(isinstance(text, str) for text in texts) and type(sample.num_tokens) is int else None
