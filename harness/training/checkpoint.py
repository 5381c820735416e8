"""Checkpoints: safetensors and JSON only, written aside, flushed, renamed; resume takes the newest complete one."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from harness.errors import UserError
from harness.training.optimizer import load_state_tensors, state_tensors

STATE = "state.json"  # written last: its presence makes a folder complete


def save(
    folder: Path,
    *,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write `folder/step-<step>/` and drop all but the newest `keep`. A failure leaves the earlier ones intact."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".step-{step:06d}.tmp"
    if aside.exists():
        shutil.rmtree(aside)
    aside.mkdir()
    try:
        _save_tensors(aside / "model.safetensors", dict(model.named_parameters()))
        _save_tensors(aside / "optimizer.safetensors", state_tensors(optimizer, dict(model.named_parameters())))
        _save_tensors(aside / "rng.safetensors", {"torch": torch.get_rng_state()})
        text = json.dumps({"step": step, "rng": _python_rng()} | state)
        with (aside / STATE).open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    target = folder / f"step-{step:06d}"
    if target.exists():
        shutil.rmtree(target)
    aside.replace(target)
    _sync_folder(folder)
    for old in sorted(complete(folder))[:-keep]:
        shutil.rmtree(old)
    return target


def complete(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{STATE}"))


def load(path: Path, *, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint into model, optimizer and the global random streams; returns its state, `step` included.

    Raises UserError when its tensors are not those of the model.
    """
    parameters = dict(model.named_parameters())
    tensors = load_file(path / "model.safetensors")
    if tensors.keys() != parameters.keys():
        name = sorted(tensors.keys() ^ parameters.keys())[0]
        raise UserError(
            f"{path} is not a checkpoint of this student (it differs in {name}): remove it or set resume=never"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    load_state_tensors(optimizer, dict(model.named_parameters()), load_file(path / "optimizer.safetensors"))
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    torch.set_rng_state(load_file(path / "rng.safetensors")["torch"])
    version, internal, gauss = state["rng"]["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["rng"]["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    return state


def _python_rng() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
    }


def _save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
