"""Which GPUs each cell of a study gets, so that two cells never share one. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.config.deployment import deployed
from harness.config.schema import RunConfig
from harness.errors import UserError
from harness.process.devices import visible_gpus


class Slots:
    """Equal shares of the GPUs, one cell each; a share has as many GPUs as the cell that needs most.

    Without GPUs every cell gets the same empty share. Raises UserError where a cell needs more GPUs than there are.
    """

    def __init__(self, configs: Iterable[RunConfig], gpus: Sequence[str] | None = None) -> None:
        width = max((deployed(config).num_gpus for config in configs), default=0)
        names = list(visible_gpus() if gpus is None else gpus) if width else []
        if names and len(names) < width:
            raise UserError(
                f"a cell names {width} GPUs and {len(names)} are visible: set teacher_device=cuda:0, or a smaller "
                "cluster=NAME"
            )
        self.shares = [tuple(names[i : i + width]) for i in range(0, len(names) - width + 1, width)] if names else []

    def choose(self, used: Sequence[Sequence[str]], jobs: int) -> tuple[str, ...] | None:
        """The share with the fewest cells on it; `used` has the GPUs of each cell that runs. None where all are full.

        A share is full with one cell, or with more where `jobs` asks for more cells than there are shares.
        """
        if not self.shares:
            return ()
        num_cells = [sum(not set(share).isdisjoint(gpus) for gpus in used) for share in self.shares]
        fewest = min(num_cells)
        return self.shares[num_cells.index(fewest)] if fewest < -(-jobs // len(self.shares)) else None
