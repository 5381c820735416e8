"""Weights and moments of a checkpoint on disk: complete, or cut into shards that any number of ranks can read.

Complete, they are `model.safetensors` and `optimizer.safetensors`. Sharded, rank r of n has written
`model-0000r-of-0000n.safetensors` and the same for the optimizer, and `shards.json` says which rows (of the first
dimension) of each tensor every file has. Names, shapes and dtypes are the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from harness.errors import UserError
from harness.process.modes import follow_umask
from harness.records.files import sha256, sync
from harness.training.optimizer import load_state_tensors, state_tensors

MODEL, OPTIMIZER = "model", "optimizer"
SHARDS = "shards.json"


class Weights(Protocol):
    """Student and optimizer, as a checkpoint writes and reads them."""

    def write(self, folder: Path) -> dict[str, str]:
        """Write them into a folder; returns the SHA-256 of each file."""
        ...

    def read(self, folder: Path) -> None:
        """Raises UserError, with nothing changed, where they are another student's."""
        ...


class WholeWeights:
    """The weights of one process. It reads what any number of ranks has written."""

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model, self._optimizer = model, optimizer

    def write(self, folder: Path) -> dict[str, str]:
        parameters = dict(self._model.named_parameters())
        moments = state_tensors(self._optimizer, parameters)
        return write_tensors(folder / f"{MODEL}.safetensors", parameters) | write_tensors(
            folder / f"{OPTIMIZER}.safetensors", moments
        )

    def read(self, folder: Path) -> None:
        parameters = dict(self._model.named_parameters())
        weights, moments = stored(folder, {name: tuple(p.shape) for name, p in parameters.items()})
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(weights.whole(name))
        load_state_tensors(self._optimizer, parameters, {name: moments.whole(name) for name in moments.shapes})


class StoredTensors:
    """The tensors of one kind, `model` or `optimizer`, in a checkpoint's folder; read when they are asked for."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder, self._kind = folder, kind
        self._files: dict[str, Any] = {}

    @cached_property
    def _cuts(self) -> dict[str, Any] | None:
        """`{name: {"shape": [...], "rows": [[start, stop], ...]}}` by shard; None where each tensor is complete."""
        index = self._folder / SHARDS
        return json.loads(index.read_text(encoding="utf-8"))[self._kind] if index.exists() else None

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        if self._cuts is not None:
            return {name: tuple(cut["shape"]) for name, cut in self._cuts.items()}
        file = self._file(f"{self._kind}.safetensors")
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    def whole(self, name: str) -> torch.Tensor:
        shape = self.shapes[name]
        return self.rows(name, 0, shape[0]) if shape else self._scalar(name)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of the first dimension; no more than these are read."""
        if self._cuts is None:
            return self._file(f"{self._kind}.safetensors").get_slice(name)[start:stop]
        pieces = []
        cuts = self._cuts[name]["rows"]
        for shard, (first, last) in enumerate(cuts):
            a, b = max(first, start), min(last, stop)
            if a < b:
                file = self._file(shard_name(self._kind, shard, len(cuts)))
                pieces.append(file.get_slice(name)[a - first : b - first])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _scalar(self, name: str) -> torch.Tensor:
        """Every rank has the same; the first has written it."""
        if self._cuts is None:
            return self._file(f"{self._kind}.safetensors").get_tensor(name)
        return self._file(shard_name(self._kind, 0, len(self._cuts[name]["rows"]))).get_tensor(name)

    def _file(self, name: str) -> Any:
        if name not in self._files:
            self._files[name] = safe_open(self._folder / name, "pt")
        return self._files[name]


def stored(folder: Path, ours: Mapping[str, tuple[int, ...]]) -> tuple[StoredTensors, StoredTensors]:
    """The weights and moments of a checkpoint of a student with parameters of these shapes. Raises UserError where it
    is another student's."""
    weights, moments = StoredTensors(folder, MODEL), StoredTensors(folder, OPTIMIZER)
    foreign = sorted(name for name in ours.keys() | weights.shapes.keys() if ours.get(name) != weights.shapes.get(name))
    foreign += sorted({name for key in moments.shapes if (name := key.rpartition("/")[0]) not in ours})
    if foreign:
        raise UserError(
            f"{folder} is not a checkpoint of this student (it differs in {foreign[0]}): choose its student, or "
            "another study=NAME"
        )
    return weights, moments


def shard_name(kind: str, shard: int, num_shards: int) -> str:
    """`shard` from 0; files are counted from 1."""
    return f"{kind}-{shard + 1:05d}-of-{num_shards:05d}.safetensors"


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Write and flush a file; returns its sum under its name."""
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, path)
    follow_umask(path)
    sync(path)
    return {path.name: sha256(path)}


def write_index(folder: Path, cuts: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """`cuts` of each kind, as `StoredTensors` reads them."""
    path = folder / SHARDS
    path.write_text(json.dumps(cuts), encoding="utf-8")
    sync(path)
    return {path.name: sha256(path)}


def cut(shape: Iterable[int], rows: Iterable[range]) -> dict[str, Any]:
    """How a tensor was cut, for the index; `rows` of each shard."""
    return {"shape": list(shape), "rows": [[r.start, r.stop] for r in rows]}
