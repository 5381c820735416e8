"""lmms-eval's own tasks on the live student: chats with pictures and clips, which its engine opens.

Decoding is that of the library's model `huggingface`: greedy unless a temperature is set, and `until` is not read.
Imports lmms-eval: import this module under `isolation.quiet_lmms_eval`.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager, get_task_dict
from PIL.Image import Image

from harness.config.schema import EvalConfig
from harness.data.video import VideoFile
from harness.errors import UserError
from harness.evaluation.asking import Asker, TextAsk
from harness.evaluation.library.index import Entry
from harness.models.chat import MARKER
from harness.rollout.base import Sampling
from harness.types import Message, Prompt, Question, Rollout

LIBRARY = "lmms_eval"
MAX_NEW_TOKENS = 4096
"""What the library's model takes where a task says nothing."""
REASONING_TAGS = '[["<think>", "</think>"], ["<analysis>", "</analysis>"]]'
"""What the library's command leaves out of a reply before it is scored."""
BOOTSTRAP_ITERS = 1000


class StudentLMM(lmms):
    """lmms-eval's view of the student."""

    is_simple = False

    def __init__(self, asker: Asker, config: EvalConfig) -> None:
        super().__init__()
        self._asker, self._config = asker, config

    def generate_until(self, requests: list[Instance]) -> list[str]:
        met: Counter[int] = Counter()
        asks = []
        for request in requests:
            asks.append(self._ask(request, met[id(request)]))
            met[id(request)] += 1
        return self._asker.texts(asks, self._decoded)

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        raise UserError(f"{_task(requests)} asks for log-probabilities, which lmms-eval's chat models do not give")

    def generate_until_multi_round(self, requests: list[Instance]) -> NoReturn:
        raise UserError(f"{_task(requests)} asks in several rounds, which is not supported")

    def clean(self) -> None:
        """The engine goes on: nothing is freed."""

    def _ask(self, request: Instance, number: int) -> TextAsk:
        _, doc_to_messages, options, position, name, split = request.args
        task = f"{LIBRARY}:{name}"
        uid = f"eval/{task}/{position}/{request.idx}/{number}"
        shown = _Shown(f"{task}/{split}/{position}", lambda: doc_to_messages(self.task_dict[name][split][position]))
        sampling = decoding(task, options, self._config.seed)
        limits = replace(self._config.media.limits(), min_pixels=None, max_pixels=None)  # its model's own

        def prompt() -> Prompt:
            question = Question(
                id=uid, text="", answer="", images=shown.images, video=shown.video, limits=limits
            )  # fmt: skip
            return Prompt(uid=uid, question=question, messages=tuple(shown.messages))

        video = None if shown.video is None else [shown.video.name, limits.fps, limits.num_frames, limits.max_frames]
        return TextAsk(
            task=task,
            uid=uid,
            question_id=str(position),
            what=[shown.messages, shown.digests, video, sampling.changed()],
            sampling=sampling,
            prompt=prompt,
        )

    def _decoded(self, rollout: Rollout) -> str:
        return self._asker.chat.decode(rollout.completion_ids)


class _Shown:
    """The messages of a document, with a mark where each medium stands, and what the media hold."""

    def __init__(self, document: str, read: Callable[[], Any]) -> None:
        self.messages: list[Message] = []
        self.digests: list[str] = []
        images: list[_Picture] = []
        videos: list[VideoFile] = []
        for turn in read():
            text = ""
            for item in turn["content"]:
                if item["type"] == "text":
                    text += MARKER.sub(lambda mark: f"< {mark[1]}>", item["text"])
                elif item["type"] == "image":
                    picture = _Picture(f"{document}/{len(images)}", read, len(images))
                    self.digests.append(picture.digest(item["url"]))
                    images.append(picture)
                    text += "<image>"
                elif item["type"] == "video" and isinstance(item["url"], str) and not videos:
                    videos.append(VideoFile(str(Path(item["url"]).absolute())))
                    self.digests.append(hashlib.sha256(b"".join(videos[0].content())).hexdigest())
                    text += "<video>"
                else:
                    raise UserError(
                        f"{document} shows {item['type']}, or several clips, which the student cannot be shown"
                    )
            self.messages.append({"role": turn["role"], "content": text})
        self.images = tuple(images)
        self.video = videos[0] if videos else None


@dataclass(frozen=True, eq=False)
class _Picture:
    """A picture of a document. It is made again when it is opened, so that not all are kept."""

    name: str
    """Its own: packed pictures are kept by name."""
    read: Callable[[], Any]
    number: int

    def open(self) -> Image:
        return _rgb(self._items[self.number]["url"])

    def content(self) -> Iterator[bytes]:
        picture = self.open()
        yield f"{picture.mode} {picture.size}".encode()
        yield picture.tobytes()

    def digest(self, picture: Any) -> str:
        opened = _rgb(picture)
        return hashlib.sha256(f"{opened.size}".encode() + opened.tobytes()).hexdigest()

    @property
    def _items(self) -> list[Mapping[str, Any]]:
        return [item for turn in self.read() for item in turn["content"] if item["type"] == "image"]


def _rgb(picture: Any) -> Image:
    """As the libraries' processors convert it."""
    import PIL.Image

    opened = picture if isinstance(picture, Image) else PIL.Image.open(picture)
    return opened.convert("RGB")


def decoding(task: str, options: Mapping[str, Any], seed: int) -> Sampling:
    """What the library's model `huggingface` reads of a request's options."""
    temperature = float(options.get("temperature") or 0.0)
    if options.get("num_beams") not in (None, 1):
        raise UserError(f"{task} sets num_beams={options['num_beams']}, which the rollout engine does not have")
    return Sampling(
        num_rollouts=1,
        seed=seed,
        step=0,
        temperature=temperature,
        top_p=float(options.get("top_p") or 1.0) if temperature else 1.0,
        max_new_tokens=int(options.get("max_new_tokens") or MAX_NEW_TOKENS),
        unrestricted=True,
    )


def _task(requests: list[Instance]) -> str:
    return f"{LIBRARY}:{requests[0].task_name}"


# --- tasks ---


class LoadedTask:
    """A task, group or tag whose data are there."""

    def __init__(self, name: str, index: Mapping[str, Entry], config: EvalConfig) -> None:
        """Loads the data. Raises whatever the library or the task does; a task may even end the process."""
        self._name, self._config = name, config
        self._manager = TaskManager(include_defaults=False)
        self._manager._task_index = {
            key: {
                "type": entry.kind,
                "yaml_path": -1 if entry.file is None else str(entry.file),
                "task": entry.tasks if entry.kind == "tag" else -1,
            }
            for key, entry in index.items()
        }
        self._manager._all_tasks = sorted(index)
        self._load()

    def _load(self) -> None:
        try:
            get_task_dict([self._name], self._manager, "chat")
        except SystemExit as error:
            raise RuntimeError(f"the task ended the process with {error.code}") from error

    def evaluate(self, asker: Asker) -> dict[str, Any]:
        """The library's results, with every sample."""
        with _alone(), tempfile.TemporaryDirectory(prefix="zppo-lmms-") as folder:
            try:
                results = simple_evaluate(
                    model=StudentLMM(asker, self._config),
                    tasks=[self._name],
                    task_manager=self._manager,
                    num_fewshot=self._config.num_fewshot,
                    limit=self._config.limit,
                    bootstrap_iters=BOOTSTRAP_ITERS,
                    torch_random_seed=None,  # it would reset CUDA's
                    distributed_executor_backend="torchrun",  # the other makes an Accelerator
                    cli_args=Namespace(process_with_media=False, output_path=folder, reasoning_tags=REASONING_TAGS),
                    process_docs_parallel=1,
                )
            except SystemExit as error:
                raise RuntimeError(f"the task ended the process with {error.code}") from error
        assert results is not None, "evaluation runs on the main process only"
        return results


@contextmanager
def _alone() -> Iterator[None]:
    """The first of several ranks evaluates, and the library would wait for the others at barriers of its own."""
    import torch.distributed

    is_initialized = torch.distributed.is_initialized

    def seen() -> bool:
        return is_initialized() and not sys._getframe(1).f_globals["__name__"].startswith("lmms_eval.")

    torch.distributed.is_initialized = seen
    try:
        yield
    finally:
        torch.distributed.is_initialized = is_initialized
