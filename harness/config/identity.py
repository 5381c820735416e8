"""Whether two configurations are of one run, and where they differ. Imports no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from harness.config.deployment import default_options
from harness.config.names import EARLIER
from harness.config.schema import FORMER, ModelConfig, RunConfig, flat

FREE = (
    "steps", "resume", "outputs", "num_threads", "device", "teacher_device", "checkpoint", "rollouts", "preempt_grace",
    "tracker", "label", "server", "teacher_process", "rollout.transfer_timeout", "teacher.urls", "student.urls",
    "student.served_name", "teacher.served_name", "data.recheck", "update.on_nonfinite", "alarms", "cluster",
)  # fmt: skip
"""Keys that may differ between two launches of one run: more steps prolong it, the label is the folder's name."""


def plain(config: RunConfig) -> dict[str, Any]:
    """A configuration as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that decides a run's results; of such a part, the same."""
    kept = {key: value for key, value in config.items() if key not in FREE}
    for section, name in (key.split(".") for key in FREE if "." in key):
        if isinstance(kept.get(section), Mapping):
            kept[section] = {key: value for key, value in kept[section].items() if key != name}
    for part in ("reward", "eval"):
        if isinstance(options := kept.get(part), Mapping):
            kept[part] = {**options, "judge": _comparable_judge(options.get("judge") or {})}
    return kept


def digest(config: Mapping[str, Any]) -> str:
    """16 hex digits of what decides a run's results."""
    text = json.dumps(comparable(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(stored: Mapping[str, Any], config: RunConfig) -> str | None:
    """`seed=0, not 1, ...`: where what was stored is another run than `config`; None where it is the same.

    A key that the stored configuration does not have came with a later version: it stood at its default. So do options
    of its method, which earlier versions stored where they were given alone.
    """
    new, old = flat(comparable(plain(config))), renamed(flat(comparable(stored)))
    teacher = ModelConfig() if stored.get("teacher") is not None else None
    defaults = flat(comparable(plain(RunConfig(teacher=teacher))))
    methods = flat({"method": default_options(config.method) | {"plugin": config.method.get("plugin")}})
    defaults, new = FORMER | defaults | methods, FORMER | methods | new
    was = {key: old.get(key, defaults.get(key)) for key in new.keys() | old.keys()}
    keys = sorted(key for key in was if was[key] != new.get(key))
    if not keys:
        return None
    shown = ", ".join(f"{key}={was[key]}, not {new.get(key)}" for key in keys[:3])
    return shown + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def renamed(stored: dict[str, Any]) -> dict[str, Any]:
    """Flat options of an earlier version under their names of today."""
    names = {was: name for name, was in EARLIER.items() if name not in stored}
    return {names.get(key, key): value for key, value in stored.items()}


def _comparable_judge(judge: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the verdicts, nothing where nobody is asked: the endpoint may move and be tried otherwise.

    What a checkpoint stores has been through this already, and has no url any more.
    """
    where = ("url", "api_key_env", "timeout", "retries", "concurrency")
    return {key: value for key, value in judge.items() if key not in where} if judge.get("url", True) else {}
