"""Responses as they come, on disk: what has been generated once is not generated again, whatever ends the process.

Append-only JSON lines. A row's key covers everything that its response depends on, so rows of other models or
protocols in the same file are never taken for this one's.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from harness.rollout.base import Sampling
from harness.types import Prompt


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


def sample_key(identity: str, sampling: Sampling, prompt: Prompt) -> str:
    """24 hex digits of model, decoding, what is asked and shown, and the uid, which decides the random draws."""
    question = prompt.question
    media = [image.name for image in question.images] + ([question.video.name] if question.video else [])
    text = json.dumps(
        [identity, asdict(sampling), prompt.uid, list(prompt.messages), media, asdict(question.limits)], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class SampleStore:
    """The rows of a file, and a place to add to them. Use it as a context manager.

    A line that was cut off when a process died is removed; its response is generated again.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._samples: dict[str, Sample] = {}
        end = 0
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    end += len(line)
                    sample = Sample(**json.loads(line))
                    self._samples[sample.key] = sample
            os.truncate(path, end)
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
