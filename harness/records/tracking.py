"""wandb, when configured. metrics.jsonl is written by the run folder whatever is set here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.config.schema import RunConfig, TrackerConfig
from harness.errors import UserError

MAX_TAG = 64
MAX_NAME = 128
"""wandb's limits, in characters."""


class Tracker:
    """Logs metrics to wandb unless it is disabled; a resumed run goes on in the same wandb run.

    Runs are grouped by study, their job type is the label, and they are tagged by method and student. `run_id` is that
    of the wandb run that an earlier launch started; `started` is given the id of a new one at once.
    """

    def __init__(
        self,
        config: RunConfig,
        label: str,
        folder: Path,
        *,
        run_id: str | None = None,
        started: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._config = config
        self._label = label
        self._folder = folder
        self._run: Any = None
        self._id = run_id
        self._started = started

    @property
    def enabled(self) -> bool:
        return self._config.tracker.wandb != "disabled"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.enabled:
            self._wandb().log(dict(metrics), step=step)

    def state_dict(self) -> dict[str, Any]:
        return {"id": self._id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._id = self._id or state["id"]

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()

    def _wandb(self) -> Any:
        if self._run is None:
            config, tracker = self._config, self._config.tracker
            self._run = _start(
                tracker.wandb,
                project=tracker.project,
                entity=tracker.entity,
                group=config.study[:MAX_NAME],
                job_type=self._label[:MAX_NAME],
                tags=_tags(str(config.method["name"]), config.student.name),
                name=f"{self._label}-{config.student.name}-seed{config.seed}"[:MAX_NAME],
                dir=str(self._folder),
                config=dataclasses.asdict(config),
                id=self._id,
                resume="must" if self._id and tracker.wandb == "online" else "allow",
            )
            if self._run.id != self._id:
                self._id = self._run.id
                self._started(self._run.id)
        return self._run


def log_report(
    folder: Path,
    study: str,
    *,
    mode: str = "offline",
    project: str = TrackerConfig.project,
    entity: str | None = TrackerConfig.entity,
) -> str:
    """Log a report folder as the wandb artifact `report-<study>` in the study's group. Returns a line on where it is.

    `offline` needs no account: wandb's files are written to `wandb/` next to the folder, with a copy of the report in
    wandb's own data folder (WANDB_DATA_DIR), until `wandb sync` sends them. Raises UserError where there is no report,
    for another mode, and where wandb cannot start.
    """
    if mode not in ("offline", "online"):
        raise UserError(f"wandb mode '{mode}': a report is logged offline or online")
    if not folder.is_dir() or not any(folder.iterdir()):
        raise UserError(f"no report in {folder}: write it with zppo report {study}")
    import wandb

    name = "report-" + re.sub(r"[^A-Za-z0-9_.-]", "-", study)
    run = _start(
        mode,
        project=project,
        entity=entity,
        group=study[:MAX_NAME],
        job_type="report",
        tags=["report"],
        name=name[:MAX_NAME],
        dir=str(folder.parent),
    )
    artifact = wandb.Artifact(name[:MAX_NAME], type="report")
    artifact.add_dir(str(folder))
    run.log_artifact(artifact)
    files, url = Path(run.dir).parent, run.url
    run.finish()
    return f"{artifact.name}: " + (f"logged to {url}" if mode == "online" else f"send it with wandb sync {files}")


def _tags(*names: str) -> list[str]:
    return list(dict.fromkeys(name[:MAX_TAG] for name in names))


def _start(mode: str, **options: Any) -> Any:
    """`wandb.init`; what it refuses, an account that is missing first of all, is a UserError."""
    import wandb

    try:
        return wandb.init(mode=mode, **options)  # type: ignore[arg-type]
    except wandb.errors.Error as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"wandb cannot start {mode}: {reason}; run wandb login, or stay offline") from error
