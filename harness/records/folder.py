"""The folder of a run: the only writer of its files (docs/run_folder.md documents them).

Rows are kept once a step: on resume everything after the checkpoint's step is cut off before the run goes on.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from harness.config.identity import FREE, differences, plain
from harness.config.schema import RunConfig
from harness.data.replay import BufferEvent
from harness.errors import UserError
from harness.process.logs import PrintableFormatter
from harness.records.files import append_rows, write_atomically
from harness.records.lock import RunLock
from harness.records.rollouts import write_rollouts
from harness.types import RolloutGroup, TrainingSample

SCHEMA_VERSION = 2


def other_configuration(path: Path, config: RunConfig) -> str | None:
    """Why the run in a folder is not the one of `config`, in one line with the remedy; None where it is."""
    different = differences(yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8")), config)
    if different is None:
        return None
    return (
        f"{path} holds a run of another configuration ({different}): choose another study=NAME or outputs=DIR, restore "
        f"these keys, or remove the folder; only these may change: {', '.join(FREE)}"
    )


def run_dir(config: RunConfig, label: str) -> Path:
    return Path(config.outputs) / config.study / label / config.student.name / f"seed{config.seed}"


class RunFolder:
    """Opens the folder of a run and holds its lock until `close`.

    Raises UserError when the folder belongs to another configuration, and `lock.Taken` when another process writes it.
    Nothing in it is touched then, as in the folder of a run that is done.
    """

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        self._refuse_other(config)
        self._lock = RunLock(path)
        try:
            self._refuse_other(config)  # what another process has written until it gave the lock up
            self._info = self.read_info(path)
            if not self.is_done(config.steps):
                (path / "rollouts").mkdir(exist_ok=True)
                write_atomically(path / "config.yaml", yaml.safe_dump(plain(config), sort_keys=False))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others write the folder."""
        self._lock.release()

    def _refuse_other(self, config: RunConfig) -> None:
        if (self.path / "config.yaml").exists() and _holds_work(self.path):
            problem = other_configuration(self.path, config)
            if problem is not None:
                raise UserError(problem)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def pending(self) -> Path:
        return self.path / "pending"

    @property
    def model(self) -> Path:
        return self.path / "model"

    def evaluation(self, suite: str, step: int | None = None) -> Path:
        """Where the scores on a suite are, of the final student or of that after a step."""
        folder = self.path / "eval" / suite
        return folder if step is None else folder / f"step-{step:06d}"

    @staticmethod
    def read_info(path: Path) -> dict[str, Any]:
        file = path / "run.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def is_done(self, steps: int | None) -> bool:
        """Whether the run has finished with as many steps as are asked for (None: as many as the data give)."""
        return self._info.get("status") == "done" and (steps is None or self._info.get("num_steps") in (None, steps))

    def start(
        self,
        *,
        label: str,
        config: RunConfig,
        overrides: Sequence[str],
        method_class: str | None = None,
        plugin: Mapping[str, str] | None = None,
    ) -> None:
        """Begin, or go on: the first start time and the cost so far are kept.

        `method_class` is `methods.zppo:ZPPO`, None without training; `plugin` the package it is from, with version.
        """
        self.set_info(
            schema_version=SCHEMA_VERSION,
            status="running",
            error=None,
            label=label,
            method=config.method.get("name"),
            method_class=method_class,
            student=config.student.name,
            teacher=config.teacher.name if config.teacher else None,
            trust_remote_code=[
                m.name for m in (config.student, config.teacher) if m is not None and m.trust_remote_code
            ],
            seed=config.seed,
            learning_rate=None if config.method.get("class") is None else config.update.learning_rate,
            overrides=list(overrides),
            num_steps=None,
            started=self._info.get("started") or _now(),
            finished=None,
            pid=os.getpid(),
            versions=_versions() | dict(plugin or {}),
            git_commit=_git_commit(),
            machine=platform.node(),
            cost=self._info.get("cost") or {},
        )

    @property
    def info(self) -> Mapping[str, Any]:
        """What run.json says."""
        return self._info

    def set_info(self, **fields: Any) -> None:
        """Change fields of run.json."""
        self._info |= fields
        write_atomically(self.path / "run.json", json.dumps(self._info, indent=2) + "\n")

    def finish(self, status: str, error: str | None = None) -> None:
        self.set_info(status=status, error=error, finished=_now())

    def add_cost(self, metrics: Mapping[str, float]) -> None:
        """Sum a step's seconds, tokens and FLOPs into run.json's cost."""
        cost = self._info["cost"]
        for name, value in metrics.items():
            if name.startswith(("time/", "tokens/", "flops/")):
                cost[name] = cost.get(name, 0.0) + value
        self.set_info(cost=cost)

    def truncate_after(self, step: int) -> None:
        """Forget what was written after `step`; a resumed run writes it again."""
        costs: dict[str, float] = {}
        for name in ("metrics.jsonl", "buffer.jsonl"):
            file = self.path / name
            if not file.exists():
                continue
            kept = [line for line in file.read_text(encoding="utf-8").splitlines() if _complete_until(line, step)]
            write_atomically(file, "".join(line + "\n" for line in kept))
            if name == "metrics.jsonl":
                for row in map(json.loads, kept):
                    for key, value in row.items():
                        if key.startswith(("time/", "tokens/", "flops/")):
                            costs[key] = costs.get(key, 0.0) + value
        rollouts = self.path / "rollouts"
        later = [f for f in rollouts.glob("step-*.parquet") if int(f.stem.removeprefix("step-")) > step]
        for file in (*later, *rollouts.glob("*.tmp")):
            file.unlink()
        for file in (self.path / "alarms").glob("step_*.json"):  # so that as many are kept as without the interruption
            if int(file.stem.split("_")[1]) > step:
                file.unlink()
        self._info["cost"] = costs

    def write_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        append_rows(self.path / "metrics.jsonl", [{"step": step} | dict(metrics)])

    def write_buffer_events(self, step: int, events: Iterable[BufferEvent]) -> None:
        append_rows(self.path / "buffer.jsonl", [{"step": step} | dataclasses.asdict(event) for event in events])

    def write_nonfinite(self, step: int, number: int, reason: str, sample: TrainingSample | None) -> Path:
        """Keep what made the numbers of a step's update not finite, by its number from 1; 0 is before all of them.
        Returns the path of the file."""
        content: dict[str, Any] = {"step": step, "reason": reason}
        if sample is not None:
            content |= _sample_record(sample)
        return self._write_record("nonfinite", f"step_{step:06d}_{number}", content)

    def write_alarm(
        self, step: int, name: str, summary: Mapping[str, Any], samples: Sequence[tuple[TrainingSample, float]]
    ) -> Path:
        """Keep an alarm and its samples with the figure of each. Returns the path of the file."""
        found = [{"figure": figure, **_sample_record(sample)} for sample, figure in samples]
        return self._write_record("alarms", f"step_{step:06d}_{name}", {"step": step, **summary, "samples": found})

    def num_alarms(self, name: str) -> int:
        """How many of them are kept."""
        return len(list((self.path / "alarms").glob(f"step_*_{name}.json")))

    def _write_record(self, folder: str, stem: str, content: Mapping[str, Any]) -> Path:
        file = self.path / folder / f"{stem}.json"
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, json.dumps(content, indent=1) + "\n")
        return file

    def write_rollouts(
        self,
        step: int,
        groups: Sequence[RolloutGroup],
        samples: Sequence[TrainingSample],
        prompt_texts: Mapping[str, str],
    ) -> None:
        """One row a rollout, `prompt_texts` by group uid; atomically, so that a file is complete or absent."""
        write_rollouts(self.path / "rollouts" / f"step-{step:06d}.parquet", step, groups, samples, prompt_texts)

    def keep_rollouts(self, num_steps: int) -> None:
        """Remove the rollouts of all but the newest steps."""
        for file in sorted((self.path / "rollouts").glob("step-*.parquet"))[:-num_steps]:
            file.unlink()

    def log_to_file(self) -> logging.Handler:
        """Copy what the run logs into run.log."""
        handler = logging.FileHandler(self.path / "run.log", encoding="utf-8")
        handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(handler)
        return handler

    def replace_model(self, folder: Path) -> None:
        """Put a complete model folder in the place of the old one."""
        if self.model.exists():
            shutil.rmtree(self.model)
        folder.replace(self.model)


def _sample_record(sample: TrainingSample) -> dict[str, Any]:
    names = ("uid", "token_ids", "loss_mask", "advantages", "weights", "norm", "old_logprobs", "rollout_logprobs")
    record = {name: getattr(sample, name) for name in names}
    if (rollout := sample.rollout) is not None:
        shown = ("index", "reward", "training_reward", "verdict", "text")
        record |= {name: getattr(rollout, name) for name in shown}
    return record


def _holds_work(path: Path) -> bool:
    """A folder whose run failed before its first result may be claimed by another configuration."""
    return any((path / name).exists() for name in ("metrics.jsonl", "checkpoints", "model", "eval"))


def _complete_until(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except json.JSONDecodeError:  # a line that a kill cut short: its step is written again
        return False


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    names = ("zppo-bench", "torch", "transformers", "accelerate", "lm_eval", "math-verify", "hydra-core")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _git_commit() -> str | None:
    """Commit of the source tree that runs; None when it is an installed wheel."""
    here = Path(__file__).parent
    answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None
