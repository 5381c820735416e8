"""The teacher's decoder in a process of its own, on other devices than the trainer's.

It ships final hidden states: through shared memory on a CPU, through CUDA IPC from a GPU. The head, which is small
next to the decoder, is handed over once and applied at the trainer, so no logits travel. Requests are plain arrays, so
that only what comes back takes file descriptors.
"""

from __future__ import annotations

import itertools
import queue
import signal
import threading
import traceback
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import multiprocessing

from harness.config.schema import ModelConfig
from harness.errors import RunInterrupted, UserError
from harness.models.batching import ModelInputs, SharedPrompts, pad_for_teacher
from harness.models.cpu import keep_freed_memory
from harness.models.devices import use_device
from harness.models.forward import LanguageModel
from harness.models.probe import Media, settle
from harness.models.vision import MediaInputs
from harness.teacher.base import HiddenScores, Samples, hidden_of

IN_FLIGHT = 2
"""Micro-batches that the process has at a time: one that it works on, one whose hidden states wait."""
START_SECONDS = 1800.0


_Arrays = tuple[dict[str, np.ndarray], ...]


@dataclass(frozen=True, kw_only=True)
class _Request:
    """A padded micro-batch; the pixels of a prompt once, under their digest."""

    number: int
    arrays: dict[str, np.ndarray]
    """`ids_BT`, `mask_BT`, `rows_N`, `columns_N` of `PaddedBatch`."""
    prompts: dict[str, np.ndarray] | None
    """The fields of `SharedPrompts`."""
    digests: list[str | None]
    pixels: dict[str, _Arrays]
    """The arguments of `MediaInputs`."""


@dataclass(frozen=True, kw_only=True)
class _Setup:
    config: ModelConfig
    num_tokens: int
    banned_ids: list[int]
    device: str
    num_threads: int
    shown: dict[str, tuple[list[int], _Arrays]]


class _Head(torch.nn.Module):
    """The part of a model that `LanguageModel.logits` reads."""

    def __init__(self, config: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.config = config
        self.base_model = None
        self.head = torch.nn.Module()
        self.head.register_buffer("weight", weight)
        self.head.register_buffer("bias", bias)
        self.device = weight.device

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head


class ProcessScorer:
    """A teacher whose decoder another process runs, on `device`; its head is applied here, on `head_device`.

    On the same kind of device the distributions are those of `LocalScorer` bit for bit. Up to `IN_FLIGHT` micro-batches
    are with the process while the trainer works on an earlier one. `timeout` is in seconds, for a micro-batch.

    The constructor waits for the model. Raises UserError where it cannot be loaded; `score` raises RunInterrupted where
    the process has died or takes too long. It ends with `close`, and, however this process ends, when it has finished
    what it is at: then its pipe is closed.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_tokens: int,
        banned_ids: Collection[int],
        device: str,
        head_device: str,
        temperature: float,
        timeout: float,
        shown: Media | None = None,
    ) -> None:
        self._temperature = temperature
        self._timeout = timeout
        self._numbers = itertools.count()
        setup = _Setup(
            config=config,
            num_tokens=num_tokens,
            banned_ids=sorted(banned_ids),
            device=device,
            num_threads=torch.get_num_threads(),
            shown={kind: (ids, _arrays(item)) for kind, (ids, item) in (shown or {}).items()},
        )
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, setup), name="teacher", daemon=True)
        self._process.start()
        theirs.close()  # the process's death is then the end of the stream
        # A pipe takes some 64 KiB: a thread sends pixels, as the trainer must never wait for a process that hangs.
        self._outbox: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        threading.Thread(target=self._send, name="teacher-requests", daemon=True).start()
        try:
            answer = self._receive(START_SECONDS, "to load the model")
            model_config, weight, bias, self.num_parameters, self._share, path = answer
        except BaseException:
            self.close()
            raise
        head = _Head(model_config, weight.to(head_device), None if bias is None else bias.to(head_device))
        self._head = LanguageModel(head, banned_ids, num_tokens=num_tokens)  # type: ignore[arg-type]
        self._head.path = path

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def score(self, micro_batches: Sequence[Samples]) -> Iterator[HiddenScores]:
        numbers = list(itertools.islice(self._numbers, len(micro_batches)))
        waiting = iter(list(zip(numbers, micro_batches, strict=True)))

        def submit(count: int) -> None:
            for number, samples in itertools.islice(waiting, count):
                self._outbox.put(_request(number, samples, share=self._share))

        submit(IN_FLIGHT)

        def collect() -> Iterator[HiddenScores]:
            for number in numbers:
                scores = self._result(number)
                submit(1)
                yield scores

        return collect()

    def close(self) -> None:
        """End the process and wait for it."""
        self._process.kill()
        self._process.join()
        self._connection.close()
        self._outbox.put(None)

    def _result(self, number: int) -> HiddenScores:
        while True:
            answered, hidden_NH, ids_N, digests = self._receive(self._timeout, "to score a micro-batch")
            if answered == number:
                break  # others were asked for by an iterator that was dropped
        return HiddenScores(
            head=self._head,
            compute=lambda: hidden_NH,
            temperature=self._temperature,
            ids_N=ids_N.tolist(),
            digests=digests,
        )

    def _receive(self, seconds: float, purpose: str) -> Any:
        """The next reply. Raises what the process reports, and RunInterrupted where there is none."""
        try:
            if not self._connection.poll(seconds):
                self._process.kill()  # whatever it is at, its later replies would come at the wrong time
                raise RunInterrupted(
                    f"the teacher's process took more than {seconds:g} s {purpose}: raise server.timeout, or lower "
                    "update.micro_batch_tokens; launch again to go on"
                )
            kind, content = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(10.0)
            raise RunInterrupted(
                f"the teacher's process has died (exit code {self._process.exitcode}; -9 is often for want of "
                "memory): launch again to go on"
            ) from None
        if kind == "user_error":
            raise UserError(content)
        if kind == "error":
            raise RuntimeError(f"the teacher's process failed:\n{content}")
        return content

    def _send(self) -> None:
        while (request := self._outbox.get()) is not None:
            try:
                self._connection.send(request)
            except OSError:  # it has died: whoever waits for the reply finds out
                return


def _request(number: int, samples: Samples, *, share: bool) -> _Request:
    batch = pad_for_teacher(samples, torch.device("cpu"), share=share)
    shown = {media.digest: media for media in batch.media if media is not None}
    return _Request(
        number=number,
        arrays={name: getattr(batch, name).numpy() for name in ("ids_BT", "mask_BT", "rows_N", "columns_N")},
        prompts=None if batch.prompts is None else {name: x.numpy() for name, x in vars(batch.prompts).items()},
        digests=[None if media is None else media.digest for media in batch.media],
        pixels={digest: _arrays(media) for digest, media in shown.items()},
    )


def _arrays(media: MediaInputs) -> _Arrays:
    return tuple(
        {name: value.numpy() for name, value in part.items()} for part in (media.arguments, media.token_arguments)
    )


# in the process


def _serve(connection: Connection, setup: _Setup) -> None:
    """Load the model, hand over the head, then score until the trainer closes its end or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer to handle
    torch.set_num_threads(setup.num_threads)
    use_device(setup.device)  # bare kernels go to the current one
    if setup.device == "cpu":
        keep_freed_memory()
    try:
        model = _load(setup)
        head: Any = (
            model.module.get_output_embeddings() if model.path != "own" else torch.nn.Linear(1, model.num_tokens)
        )
        bias = None if getattr(head, "bias", None) is None else head.bias.detach()
        num_parameters = sum(p.numel() for p in model.module.parameters())
        answer = (model.module.config, head.weight.detach(), bias, num_parameters, model.can_share_prompts, model.path)
        connection.send(("result", answer))
        while True:
            connection.send(("result", _answer(model, connection.recv())))
    except UserError as error:
        connection.send(("user_error", str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception:
        connection.send(("error", traceback.format_exc()))


def _load(setup: _Setup) -> LanguageModel:
    from transformers.utils.logging import disable_progress_bar

    from harness.models.loading import load_model

    disable_progress_bar()
    model = LanguageModel(load_model(setup.config, setup.device), setup.banned_ids, num_tokens=setup.num_tokens)
    settle(model, {kind: (ids, _media(arrays)) for kind, (ids, arrays) in setup.shown.items()})
    return model


@torch.no_grad()
def _answer(model: LanguageModel, request: _Request) -> tuple[int, torch.Tensor, torch.Tensor, list[str | None]]:
    """(number, hidden states [N, H], the ids [N] that they predict, digests of the media that were seen).

    Ids and digests are read off what the model is given here, not off what the trainer wrote with it.
    """

    def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(array).to(model.device) for name, array in arrays.items()}

    packed = {digest: _media(arrays) for digest, arrays in request.pixels.items()}
    media = [None if digest is None else packed[digest] for digest in request.digests]
    prompts = None if request.prompts is None else SharedPrompts(**tensors(request.prompts))
    batch = ModelInputs(**tensors(request.arrays), media=media, prompts=prompts)
    seen = [None if item is None else item.digest for item in media]
    return request.number, hidden_of(model, batch), batch.ids_BT[batch.rows_N, batch.columns_N + 1].cpu(), seen


def _media(arrays: _Arrays) -> MediaInputs:
    return MediaInputs(*({name: torch.from_numpy(array) for name, array in part.items()} for part in arrays))
