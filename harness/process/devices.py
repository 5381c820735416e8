"""Which GPUs and cores this process may use. Imports no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

DEVICE_FILES = ("nvidia[0-9]*", "kfd")


def visible_gpus() -> list[str]:
    """GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES; without that, all that nvidia-smi lists."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return _installed_gpus()
    names = []
    for name in (part.strip() for part in listed.split(",")):
        if name in ("", "-1"):  # CUDA, too, ignores what comes after
            break
        names.append(name)
    return names


def has_gpus() -> bool:
    """Whether this process may use any GPU. Without nvidia-smi the devices of the drivers are looked for."""
    if visible_gpus():
        return True
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") is not None
    return not hidden and any(True for pattern in DEVICE_FILES for _ in Path("/dev").glob(pattern))


def _installed_gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip().isdigit()]


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
