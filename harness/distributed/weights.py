"""Checkpoints of a student that is cut over ranks: each writes and reads its own rows, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness.distributed.balance import rows_of
from harness.distributed.sharding import ShardedModel
from harness.distributed.world import World
from harness.training.optimizer import load_state_tensors, state_tensors
from harness.training.weights import MODEL, OPTIMIZER, cut, shard_name, stored, write_index, write_tensors


class ShardedWeights:
    """The `harness.training.weights.Weights` of rank 0, with every rank at work for it by `commands`."""

    def __init__(self, world: World, sharded: ShardedModel, optimizer: torch.optim.Optimizer) -> None:
        self._world, self._sharded, self._optimizer = world, sharded, optimizer
        self._own = {name: parameter for name, parameter in sharded.local.items() if parameter.numel()}

    def commands(self) -> dict[str, Callable[..., Any]]:
        return {"write": self._write_own, "read": self._read_own}

    def write(self, folder: Path) -> dict[str, str]:
        sums: dict[str, str] = {}
        for theirs in self._world.call("write", folder=str(folder.resolve())):
            sums |= theirs
        return sums | write_index(folder, self._cuts())

    def read(self, folder: Path) -> None:
        stored(folder, self._sharded.shapes())  # before any rank changes anything
        self._world.call("read", folder=str(folder.resolve()))

    def _write_own(self, folder: str) -> dict[str, str]:
        """Returns the sums of the files. What every rank has, such as the number of steps, the first one writes."""
        rank, size = self._world.rank, self._world.size
        moments = state_tensors(self._optimizer, self._own)
        if rank:
            moments = {name: tensor for name, tensor in moments.items() if tensor.dim()}
        sums: dict[str, str] = {}
        for kind, tensors in ((MODEL, self._own), (OPTIMIZER, moments)):
            sums |= write_tensors(Path(folder) / shard_name(kind, rank, size), tensors)
        return sums

    def _read_own(self, folder: str) -> None:
        weights, moments = stored(Path(folder), self._sharded.shapes())
        with torch.no_grad():
            for name, parameter in self._own.items():
                parameter.copy_(weights.rows(name, *self._bounds(weights.shapes[name])))
        found = {}
        for key, shape in moments.shapes.items():
            if key.rpartition("/")[0] in self._own:
                found[key] = moments.rows(key, *self._bounds(shape)) if shape else moments.whole(key)
        load_state_tensors(self._optimizer, self._own, found)

    def _bounds(self, shape: tuple[int, ...]) -> tuple[int, int]:
        rows = rows_of(shape[0], self._world.size, self._world.rank)
        return rows.start, rows.stop

    def _cuts(self) -> dict[str, dict[str, object]]:
        """Rank 0 has rows of every tensor, and so knows all of them."""
        shapes, size = self._sharded.shapes(), self._world.size

        def described(shape: tuple[int, ...]) -> dict[str, object]:
            return cut(shape, [rows_of(shape[0] if shape else 0, size, rank) for rank in range(size)])

        moments = state_tensors(self._optimizer, self._sharded.local)
        slots = {key: shapes[key.rpartition("/")[0]] if tensor.dim() else () for key, tensor in moments.items()}
        return {
            MODEL: {name: described(shape) for name, shape in shapes.items()},
            OPTIMIZER: {key: described(shape) for key, shape in slots.items()},
        }
