"""What a step sampled, on disk before its updates: a run that is killed trains on it instead of sampling it again.

One safetensors file a step, in `pending/` until a checkpoint covers the step: token ids and log-probabilities as
numbers, everything else as JSON in a tensor of bytes. Rollouts and groups come back as the same graph of objects.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import sys
from abc import ABC
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from harness.data.images import MediaError
from harness.models.chat import Chat
from harness.process.modes import follow_umask
from harness.records.files import put_in_place, sync
from harness.types import MediaLimits, Prompt, Question, Rollout, RolloutGroup
from methods.base import Method

logger = logging.getLogger(__name__)

FORMAT = 1
TOKENS = ("prompt_ids", "completion_ids")
MEDIA = ("images", "video")


class Unusable(Exception):
    """Why a stored step cannot be taken, or a step cannot be stored, in half a line."""


@dataclass(kw_only=True)
class SampledStep:
    """All that a step's updates and records need of its sampling."""

    groups: list[RolloutGroup]
    rewritten: list[RolloutGroup]
    counts: dict[str, float]
    num_replayed: int
    sampler: dict[str, Any]
    """The cursor after the step's questions, those that `more` gave included."""
    rng: dict[str, Any]
    """The global random streams, as in `harness.training.checkpoint.rng_state`."""


class StoredSteps:
    """The stored steps of a run. `identity` says of which configuration and code; `questions` are the run's by id."""

    def __init__(self, folder: Path, *, identity: str, questions: Mapping[str, Question], chat: Chat) -> None:
        self._folder = folder
        self._identity = identity
        self._questions = questions
        self._chat = chat
        self._warned = False

    def write(self, step: int, sampled: SampledStep) -> None:
        """Store a step. One that cannot be stored, because a method asks about media that are not the run's, is left
        out with a warning: it would be sampled again."""
        try:
            records, tensors = _Packing(self._questions).pack(sampled)
        except Unusable as error:
            if not self._warned:
                logger.warning("step %d cannot be stored: %s", step, error)
            self._warned = True
            return
        records |= {"format": FORMAT, "step": step, "identity": self._identity}
        tensors["records"] = torch.frombuffer(bytearray(json.dumps(records).encode()), dtype=torch.uint8)
        self._folder.mkdir(exist_ok=True)
        path = self._path(step)
        aside = path.with_suffix(".tmp")
        save_file(tensors, aside, metadata={"sha256": _digest(tensors)})
        follow_umask(aside)
        sync(aside)
        put_in_place(aside, path)

    def read(self, step: int) -> SampledStep:
        """Raises Unusable for a step that is missing, damaged, or of another configuration or code."""
        path = self._path(step)
        if not path.exists():
            raise Unusable(f"{path.name} is missing")
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                expected = (file.metadata() or {}).get("sha256")
        except (OSError, SafetensorError) as error:
            raise Unusable(f"{path.name} cannot be read: {error}") from error
        if _digest(tensors) != expected:
            raise Unusable(f"{path.name} is not what was written")
        records = json.loads(tensors.pop("records").numpy().tobytes())
        if (records["format"], records["step"]) != (FORMAT, step) or records["identity"] != self._identity:
            raise Unusable(f"{path.name} was sampled with another configuration or other code")
        try:
            return _Unpacking(records, tensors, self._questions, self._chat).unpack()
        except MediaError as error:
            raise Unusable(str(error)) from error

    def steps(self) -> list[int]:
        return sorted(int(path.stem.removeprefix("step-")) for path in self._folder.glob("step-*.safetensors"))

    def steps_after(self, step: int) -> list[int]:
        """The stored steps that follow a checkpoint without a gap."""
        later = [stored for stored in self.steps() if stored > step]
        return [stored for number, stored in enumerate(later, step + 1) if stored == number]

    def keep_only(self, steps: Sequence[int]) -> None:
        """Remove the others."""
        kept = {self._path(step) for step in steps}
        for path in self._folder.glob("step-*"):
            if path not in kept:
                path.unlink()
        with suppress(OSError):  # it is empty, or it stays
            self._folder.rmdir()

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:06d}.safetensors"


def code_digest(method: Method) -> str:
    """16 hex digits of the source of the packages of a method's class and of those that it is built on."""
    files: set[Path] = set()
    for module in {sys.modules[cls.__module__] for cls in type(method).__mro__ if cls not in (object, ABC)}:
        file = Path(module.__file__ or "")
        files |= set(file.parent.glob("*.py")) if module.__package__ else {file}
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


class _Packing:
    """Records to JSON values and tensors; an object that several hold is stored once."""

    def __init__(self, questions: Mapping[str, Question]) -> None:
        self._questions = questions
        self._rollouts: list[dict[str, Any]] = []
        self._prompts: list[dict[str, Any]] = []
        self._numbers: dict[int, int] = {}
        self._ids: list[np.ndarray] = []
        self._ids_of: dict[tuple[int, ...], int] = {}
        self._logprobs: list[np.ndarray] = []
        self._unknown: list[list[int]] = []

    def pack(self, sampled: SampledStep) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        records = {
            "groups": [self._group(group) for group in sampled.groups],
            "rewritten": [self._group(group) for group in sampled.rewritten],
            "rollouts": self._rollouts,
            "prompts": self._prompts,
            "counts": sampled.counts,
            "num_replayed": sampled.num_replayed,
            "sampler": sampled.sampler,
            "rng": sampled.rng["python"],
            "num_ids": [len(ids) for ids in self._ids],
            "num_logprobs": [len(values) for values in self._logprobs],
            "unknown": self._unknown,
        }
        tensors = {f"rng/{name}": tensor for name, tensor in sampled.rng["torch"].items()}
        tensors["ids"] = torch.from_numpy(_joined(self._ids, np.int32))
        tensors["logprobs"] = torch.from_numpy(_narrow(_joined(self._logprobs, np.float64)))
        return records, tensors

    def _group(self, group: RolloutGroup) -> dict[str, Any]:
        prompt = self._number(group.prompt, self._prompts, self._prompt)
        rollouts = [self._number(rollout, self._rollouts, self._rollout) for rollout in group.rollouts]
        return {**_values(group, "prompt", "rollouts"), "prompt": prompt, "rollouts": rollouts} | {
            "media": next((i for i, r in enumerate(group.rollouts) if r.media is not None), None)
        }

    def _number(self, item: Any, table: list[dict[str, Any]], pack: Any) -> int:
        if id(item) not in self._numbers:
            record = pack(item)
            self._numbers[id(item)] = len(table)
            table.append(record)
        return self._numbers[id(item)]

    def _prompt(self, prompt: Prompt) -> dict[str, Any]:
        return {**_values(prompt, "question"), "question": self._question(prompt.question)}

    def _question(self, question: Question) -> dict[str, Any]:
        """Its id, and where it is not the run's what differs: a rewrite's has no text, answer or media."""
        known = self._questions.get(question.id)
        if known is None:
            raise Unusable(f"question {question.id} is not one of the run")
        changed = {}
        for field in fields(Question):
            value = getattr(question, field.name)
            if value == getattr(known, field.name):
                continue
            if field.name in MEDIA and value not in ((), None):
                raise Unusable(f"{field.name} of question {question.id} are not those of the run")
            changed[field.name] = dataclasses.asdict(value) if isinstance(value, MediaLimits) else value
        return {"id": question.id, "changed": changed}

    def _rollout(self, rollout: Rollout) -> dict[str, Any]:
        record = _values(rollout, *TOKENS, "rollout_logprobs", "media")
        for name in TOKENS:
            record[name] = self._token_ids(tuple(getattr(rollout, name)))
        number = len(self._logprobs)
        unknown = [i for i, value in enumerate(rollout.rollout_logprobs) if value is None]
        self._unknown += [[number, i] for i in unknown]
        self._logprobs.append(np.array(rollout.rollout_logprobs, dtype=np.float64))  # None becomes NaN
        record["logprobs"] = number
        record["digest"] = None if rollout.media is None else rollout.media.digest
        return record

    def _token_ids(self, ids: tuple[int, ...]) -> int:
        """A group's prompt is stored once."""
        if ids not in self._ids_of:
            self._ids_of[ids] = len(self._ids)
            self._ids.append(np.array(ids, dtype=np.int32))
        return self._ids_of[ids]


class _Unpacking:
    def __init__(
        self,
        records: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor],
        questions: Mapping[str, Question],
        chat: Chat,
    ) -> None:
        self._records, self._tensors, self._questions, self._chat = records, tensors, questions, chat
        self._ids = _split(tensors["ids"], records["num_ids"])
        self._logprobs = _split(tensors["logprobs"], records["num_logprobs"])
        for number, position in records["unknown"]:
            self._logprobs[number][position] = None

    def unpack(self) -> SampledStep:
        records = self._records
        self._prompts = [self._prompt(record) for record in records["prompts"]]
        self._rollouts = [self._rollout(record) for record in records["rollouts"]]
        groups = [self._group(record) for record in records["groups"]]
        rewritten = [self._group(record) for record in records["rewritten"]]
        streams = {name[4:]: tensor for name, tensor in self._tensors.items() if name.startswith("rng/")}
        return SampledStep(
            groups=groups,
            rewritten=rewritten,
            counts=records["counts"],
            num_replayed=records["num_replayed"],
            sampler=records["sampler"],
            rng={"torch": streams, "python": records["rng"]},
        )

    def _group(self, record: dict[str, Any]) -> RolloutGroup:
        prompt = self._prompts[record["prompt"]]
        rollouts = [self._rollouts[number] for number in record["rollouts"]]
        if record["media"] is not None:
            media = self._chat.pack(prompt).media
            for rollout, number in zip(rollouts, record["rollouts"], strict=True):
                digest = self._records["rollouts"][number]["digest"]
                if digest is not None and (media is None or media.digest != digest):
                    raise Unusable(f"the images or the video of question {prompt.question.id} have changed")
                if digest is not None and rollout.media is None:
                    rollout.media = media
        values = {key: value for key, value in record.items() if key not in ("prompt", "rollouts", "media")}
        return RolloutGroup(prompt=prompt, rollouts=rollouts, **values)

    def _prompt(self, record: dict[str, Any]) -> Prompt:
        return Prompt(**{**_tuples(record), "question": self._question(record["question"])})

    def _question(self, record: dict[str, Any]) -> Question:
        known = self._questions.get(record["id"])
        if known is None:
            raise Unusable(f"question {record['id']} is not one of the run")
        changed = _tuples(record["changed"])
        if "limits" in changed:
            changed["limits"] = MediaLimits(**changed["limits"])
        return dataclasses.replace(known, **changed) if changed else known

    def _rollout(self, record: dict[str, Any]) -> Rollout:
        values = {key: value for key, value in record.items() if key not in ("logprobs", "digest")}
        values |= {name: list(self._ids[record[name]]) for name in TOKENS}
        return Rollout(**values, rollout_logprobs=self._logprobs[record["logprobs"]])


def _values(record: Any, *without: str) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in fields(record) if f.name not in without}


def _tuples(record: Mapping[str, Any]) -> dict[str, Any]:
    """Frozen records have tuples where JSON has lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}


def _joined(arrays: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype=dtype), *arrays])


def _narrow(values: np.ndarray) -> np.ndarray:
    """fp32 where that loses nothing: engines compute in it, but a server's text may have more digits."""
    narrow = values.astype(np.float32)
    return narrow if np.array_equal(narrow.astype(np.float64), values, equal_nan=True) else values


def _split(values: torch.Tensor, lengths: Sequence[int]) -> list[list[Any]]:
    return [part.tolist() for part in values.split(list(lengths))]


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
