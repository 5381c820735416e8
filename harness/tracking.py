"""wandb, when configured. metrics.jsonl is written by the run folder whatever is set here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.config import RunConfig


class Tracker:
    """Logs metrics to wandb unless it is disabled; a resumed run goes on in the same wandb run."""

    def __init__(self, config: RunConfig, label: str, folder: Path) -> None:
        self._config = config
        self._label = label
        self._folder = folder
        self._run: Any = None
        self._id: str | None = None

    @property
    def enabled(self) -> bool:
        return self._config.tracker.wandb != "disabled"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.enabled:
            self._wandb().log(dict(metrics), step=step)

    def state_dict(self) -> dict[str, Any]:
        return {"id": self._id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._id = state["id"]

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()

    def _wandb(self) -> Any:
        if self._run is None:
            import wandb

            tracker = self._config.tracker
            self._run = wandb.init(
                project=tracker.project,
                entity=tracker.entity,
                mode=tracker.wandb,  # type: ignore[arg-type]
                group=self._label,
                name=f"{self._label}-{self._config.student.name}-seed{self._config.seed}",
                dir=str(self._folder),
                config=dataclasses.asdict(self._config),
                id=self._id,
                resume="must" if self._id and tracker.wandb == "online" else "allow",
            )
            self._id = self._run.id
        return self._run
