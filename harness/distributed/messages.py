"""What ranks tell each other, as bytes. Media travel as references: the pixels are made anew where they are read.

Pickles are read from the run's own ranks alone, over connections that know its key (`harness.distributed.links`).
"""

from __future__ import annotations

import dataclasses
import io
import pickle
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from harness.errors import RunInterrupted, UserError
from harness.types import TrainingSample


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> str | None:
        from harness.models.vision import Vision

        return "vision" if isinstance(obj, Vision) else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, vision: Any) -> None:
        super().__init__(io.BytesIO(data))
        self._vision = vision

    def persistent_load(self, pid: Any) -> Any:
        assert self._vision is not None, "media came to a rank that has no processor"
        return self._vision()


def send(connection: Connection, message: Any) -> None:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(message)
    connection.send_bytes(buffer.getbuffer())


def receive(connection: Connection, vision: Any = None) -> Any:
    """`vision` gives the processor of this rank, for media. Raises EOFError where the other side has ended."""
    return _Unpickler(connection.recv_bytes(), vision).load()


def slim(samples: Sequence[TrainingSample]) -> list[TrainingSample]:
    """Copies without what an update does not read: texts, and the completions, which are in `token_ids` already."""
    return [
        sample
        if sample.rollout is None
        else dataclasses.replace(
            sample,
            rollout=dataclasses.replace(sample.rollout, text="", completion_ids=[], rollout_logprobs=[]),
        )
        for sample in samples
    ]


def plain_error(error: UserError) -> UserError:
    """An error that a user can mend, as it can travel: classes may have constructors of their own."""
    return RunInterrupted(str(error)) if isinstance(error, RunInterrupted) else UserError(str(error))
