"""The folder of a run: the only writer of its files (docs/run_folder.md documents them).

Rows are kept once a step: on resume everything after the checkpoint's step is cut off before the run goes on.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import platform
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from time import monotonic
from typing import Any

import yaml

from harness.config.identity import FREE, differences, plain
from harness.config.schema import RunConfig
from harness.data.replay import BufferEvent
from harness.errors import UserError
from harness.records.files import append_rows, write_atomically
from harness.records.lock import FolderInUse, RunLock, clear, owner_of
from harness.records.read import Damaged, digest, read_config, read_json, read_rows
from harness.records.refusals import refuse
from harness.records.rollouts import is_readable, write_rollouts
from harness.types import RolloutGroup, TrainingSample
from reports.runs.damage import info_problem

SCHEMA_VERSION = 2


def other_configuration(path: Path, config: RunConfig) -> str | None:
    """Why the run in a folder is not the one of `config`, in one line with the remedy; None where it is."""
    stored = read_config(path)
    different = differences(stored, config) if stored else None
    if different is None:
        return None
    return (
        f"{path} holds a run of another configuration ({different}): choose another study=NAME or outputs=DIR, restore "
        f"these keys, or remove the folder; only these may change: {', '.join(FREE)}"
    )


def earlier_run(path: Path, config: RunConfig) -> dict[str, Any]:
    """What run.json says of an earlier run in a folder, which stays as it is; empty where there is none. Raises as
    `RunFolder` does."""
    _refuse_other(path, config)
    if (owner := owner_of(path)) is not None:
        raise FolderInUse(path, owner)
    return RunFolder.read_info(path)


def is_done(info: Mapping[str, Any], steps: int | None) -> bool:
    """Whether a run has finished with as many steps as are asked for (None: as many as the data give), by run.json."""
    num_steps = info.get("num_steps")
    wanted = info.get("most_steps") or num_steps if steps is None else steps  # earlier versions did not say the most
    return info.get("status") == "done" and num_steps in (None, wanted)


def run_dir(config: RunConfig, label: str) -> Path:
    return Path(config.outputs) / config.study / label / config.student.name / f"seed{config.seed}"


def log_prefix(config: RunConfig, label: str) -> Path:
    """What the names of a run's logs begin with; they are the study's, since a run that is refused has no folder."""
    return Path(config.outputs) / config.study / "logs" / f"{label}-{config.student.name}-seed{config.seed}"


class RunFolder:
    """Opens the folder of a run and holds its lock until `close`. Until `start` nothing else is written.

    With `anew` what is there is nobody's: `start` removes it. Raises UserError when the folder belongs to another
    configuration, and `lock.FolderInUse` when another process writes it.
    """

    def __init__(self, path: Path, config: RunConfig, *, anew: bool = False) -> None:
        self.path = path
        self._config = config
        self._anew = anew
        self._has_started = False
        self._info: dict[str, Any] = {}
        self._since = monotonic()
        self._refuse_other()
        self._lock = RunLock(path, phase="starting")
        try:
            self._refuse_other()  # what another process has written until it gave the lock up
            if not anew:
                self._info = self.read_info(path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others write the folder. One that has nothing but its lock is removed."""
        self._lock.release()

    def _refuse_other(self) -> None:
        if not self._anew:
            _refuse_other(self.path, self._config)

    @property
    def goes_on(self) -> bool:
        """Whether what an earlier launch has left is this run's."""
        return not self._anew

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
        """What run.json says; empty where there is none. Raises `read.Damaged`."""
        info = read_json(path / "run.json")
        if problem := info_problem(info):
            raise Damaged(path / "run.json", problem)
        return info

    def is_done(self, steps: int | None) -> bool:
        return is_done(self._info, steps)

    def start(
        self,
        *,
        label: str,
        overrides: Sequence[str],
        method_class: str | None = None,
        plugin: Mapping[str, str] | None = None,
        num_steps: int | None = None,
        most_steps: int | None = None,
        lost_records: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Begin, or go on: the first start time and the cost so far are kept.

        `method_class` is `methods.zppo:ZPPO`, None without training; `plugin` the package it is from, with version.
        `most_steps` is how many the data give, `lost_records` what the method of that name gives. A run that is done
        and goes on stays `done`, with the times and steps of its model, until it has a new one.
        """
        config = self._config
        if self._anew:
            clear(self.path)
        self._lock.enter("running")
        described = yaml.safe_dump(plain(config), sort_keys=False)
        if self._info.get("config_sha256") not in (None, digest(described)):
            self.set_info(config_sha256=None)  # a kill leaves no checksum of another file
        write_atomically(self.path / "config.yaml", described)
        self._has_started = True
        state = {"status": "running", "num_steps": num_steps, "finished": None}
        if self._is_complete:
            state = {key: self._info.get(key) for key in state}
        self.set_info(
            schema_version=SCHEMA_VERSION,
            **state,
            config_sha256=digest(described),
            most_steps=most_steps,
            error=None,
            last_error=None,
            lost_records=lost_records or None,
            label=label,
            method=config.method.get("name"),
            method_class=method_class,
            method_options={k: v for k, v in plain(config)["method"].items() if k not in ("name", "class", "plugin")},
            plugin=config.method.get("plugin"),
            student=config.student.name,
            teacher=config.teacher.name if config.teacher else None,
            trust_remote_code=[
                m.name for m in (config.student, config.teacher) if m is not None and m.trust_remote_code
            ],
            closing=config.data.closing,
            reward=config.data.reward,
            seed=config.seed,
            learning_rate=None if config.method.get("class") is None else config.update.learning_rate,
            overrides=list(overrides),
            started=self._info.get("started") or _now(),
            pid=os.getpid(),
            versions=_versions() | dict(plugin or {}),
            git_commit=_git_commit(),
            machine=platform.node(),
            cost=self._info.get("cost") or {},
        )
        self._num_steps = num_steps

    @property
    def _is_complete(self) -> bool:
        """Whether the folder has what a finished run leaves."""
        return self._info.get("status") == "done"

    @property
    def has_trained(self) -> bool:
        """Whether the folder has what a finished run of at least one step leaves."""
        return self._is_complete and bool(self._info.get("num_steps"))

    @property
    def info(self) -> Mapping[str, Any]:
        """What run.json says."""
        return self._info

    def set_info(self, **fields: Any) -> None:
        """Change fields of run.json. `seconds` is the time that the run ran, over all its launches."""
        now = monotonic()
        self._info |= fields | {"seconds": round(self._info.get("seconds", 0.0) + now - self._since, 3)}
        self._since = now
        write_atomically(self.path / "run.json", json.dumps(self._info, indent=2) + "\n")

    def finish(self, status: str, error: str | None = None) -> None:
        """How the run has ended. What was done stays done, and its later failure is `last_error`."""
        if status == "done":
            self.set_info(status=status, error=None, last_error=None, num_steps=self._num_steps, finished=_now())
        elif self._is_complete:
            self.set_info(last_error=error or status)
        else:
            self.set_info(status=status, error=error, finished=_now())

    def end(self, status: str, error: str | None = None, *, exit_code: int = os.EX_TEMPFAIL) -> None:
        """`finish`, or a line of the study's refused.jsonl for a run that had not begun: its folder stays as it is."""
        if self._has_started:
            self.finish(status, error)
        elif error is not None:
            refuse(self.path, error, exit_code)

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
            kept = [row for row in read_rows(file)[0] if _step_of(row) <= step]
            write_atomically(file, "".join(json.dumps(row) + "\n" for row in kept))
            if name == "metrics.jsonl":
                for row in kept:
                    for key, value in row.items():
                        if key.startswith(("time/", "tokens/", "flops/")):
                            costs[key] = costs.get(key, 0.0) + value
        rollouts = self.path / "rollouts"
        later = [f for f in rollouts.glob("step-*.parquet") if _number(f) > step]
        for file in (*later, *rollouts.glob("*.tmp")):
            file.unlink()
        for file in (self.path / "alarms").glob("step_*.json"):  # so that as many are kept as without the interruption
            if int(file.stem.split("_")[1]) > step:
                file.unlink()
        self._info["cost"] = costs

    def lost_records(self, step: int) -> dict[str, list[int]]:
        """The steps up to `step` whose metrics, buffer events or rollouts are missing or damaged, by file; what was
        removed on purpose (`rollouts.keep`) is not lost. What an earlier launch found is lost still."""
        metrics = {_step_of(row): row for row in read_rows(self.path / "metrics.jsonl")[0]}
        events = Counter(_step_of(row) for row in read_rows(self.path / "buffer.jsonl")[0])
        first = max(1, self._info.get("rollouts_from", 1))
        files = {number: self.path / "rollouts" / f"step-{number:06d}.parquet" for number in range(first, step + 1)}
        steps = range(1, step + 1)
        lost = {
            "metrics.jsonl": [number for number in steps if number not in metrics],
            "buffer.jsonl": [n for n in steps if events[n] < metrics.get(n, {}).get("buffer/events", 0)],
            "rollouts": [number for number, file in files.items() if not is_readable(file)],
        }
        return {name: steps for name, steps in lost.items() if steps}

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
        (self.path / "rollouts").mkdir(exist_ok=True)
        write_rollouts(self.path / "rollouts" / f"step-{step:06d}.parquet", step, groups, samples, prompt_texts)

    def keep_rollouts(self, num_steps: int) -> None:
        """Remove the rollouts of all but the newest steps."""
        files = sorted((self.path / "rollouts").glob("step-*.parquet"))
        if len(files) > num_steps:
            self.set_info(rollouts_from=_number(files[-num_steps]))  # before any is removed: it is not lost
        for file in files[:-num_steps]:
            file.unlink()

    def replace_model(self, folder: Path) -> None:
        """Put a complete model folder in the place of the old one, whose scores are no longer those of the run."""
        self.set_info(status="running", num_steps=self._num_steps, finished=None)
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


def _refuse_other(path: Path, config: RunConfig) -> None:
    """Raises UserError for a folder with the work of another configuration."""
    if _holds_work(path) and (problem := other_configuration(path, config)) is not None:
        raise UserError(problem)


def _holds_work(path: Path) -> bool:
    """A folder whose run failed before its first result may be claimed by another configuration."""
    return any((path / name).exists() for name in ("metrics.jsonl", "checkpoints", "model", "eval"))


def _step_of(row: Mapping[str, Any]) -> float:
    """The step of a row; a row that has none is of no step."""
    step = row.get("step")
    return step if isinstance(step, int) else math.inf


def _number(file: Path) -> int:
    return int(file.stem.removeprefix("step-"))


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
