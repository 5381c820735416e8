"""Checkpoints: safetensors and JSON only, written under a temporary name, flushed, renamed.

Resume takes the newest intact one. `step-000010/` is the state after step 10. `step-000010.2/` is that after two
updates of step 11; a run that is preempted leaves one (`harness.training.resume`), and it counts only together with
the stored rollouts of its step.
"""

from __future__ import annotations

import json
import logging
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from harness.errors import UserError
from harness.process.preemption import fault_point
from harness.records.files import SUMS, read_sums, sha256, sums_text, sync
from harness.training.weights import Weights, write_tensors

logger = logging.getLogger(__name__)

FORMAT = 2
STATE = "state.json"
NAME = re.compile(r"step-(\d+)(?:\.(\d+))?")


def save(
    folder: Path,
    *,
    step: int,
    updates: int = 0,
    weights: Weights,
    state: dict[str, Any],
    tensors: dict[str, torch.Tensor] | None = None,
    rng: dict[str, Any] | None = None,
) -> Path:
    """Write the checkpoint after `step` and `updates` of the next. A failure leaves the earlier ones intact.

    `state` are JSON values, `tensors` what else belongs to it; `rng` (`rng_state`) is by default the present one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / (f"step-{step:06d}.{updates}" if updates else f"step-{step:06d}")
    aside = folder / f".{target.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    rng = rng or rng_state()
    try:
        sums = weights.write(aside)
        sums |= write_tensors(aside / "rng.safetensors", rng["torch"])
        if tensors is not None:
            sums |= write_tensors(aside / "update.safetensors", tensors)
        fault_point("checkpoint-tensors")
        described = {"format": FORMAT, "step": step, "updates": updates, "machine": machine(), "rng": rng["python"]}
        _write(aside / STATE, json.dumps(described | state))
        sums |= {STATE: sha256(aside / STATE)}
        _write(aside / SUMS, sums_text(sums))
        sync(aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    old = folder / f".{target.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.replace(old)
        fault_point("checkpoint-replaced")
    aside.replace(target)
    sync(folder)
    fault_point("checkpoint-renamed")
    shutil.rmtree(old, ignore_errors=True)
    return target


def prune(folder: Path, *, keep_last: int, keep_every: int | None) -> None:
    """Remove all but the newest `keep_last`, every `keep_every`-th step's, and the newest of all, which may be one in
    the middle of a step."""
    found = complete(folder)
    whole = [path for path in found if not _place(path)[1]]
    kept = {*whole[-keep_last:], *found[-1:]}
    kept |= {path for path in whole if keep_every and _place(path)[0] % keep_every == 0}
    for path in found:
        if path not in kept:
            _remove(path)
            fault_point("checkpoint-pruned")


def complete(folder: Path) -> list[Path]:
    """Checkpoints that were written to their end, oldest first; they may have been damaged since.

    A folder has its name only then, whatever it lacks now. One that a kill left under its second name (`recover`) is
    among them.
    """
    found = [*folder.glob("step-*"), *(old for old in folder.glob(".step-*.old") if not _target(old).exists())]
    return sorted((path for path in found if path.is_dir() and NAME.fullmatch(_target(path).name)), key=_place)


def _target(path: Path) -> Path:
    """A checkpoint's own name, of the one that it has while it is replaced."""
    return path.with_name(path.name.removeprefix(".").removesuffix(".old"))


def recover(folder: Path) -> None:
    """Clear away what a kill in `save` or `prune` left, and put a checkpoint back that was to be replaced."""
    for old in folder.glob(".step-*.old"):
        target = _target(old)
        if target.exists():
            shutil.rmtree(old)
        else:
            old.replace(target)
    for aside in folder.glob(".step-*.tmp"):
        shutil.rmtree(aside)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, in half a line; None where they are as they were written.

    Every file that is read has to have its checksum: without one nobody knows what was written. Raises UserError for a
    format of a later version, which is no damage.
    """
    try:
        read_state(path)
        sums = read_sums(path)
        for file in sorted(path.iterdir()):
            if file.suffix in (".json", ".safetensors") and file.name not in sums:
                return f"{file.name} has no line in {SUMS}"
        for name, expected in sums.items():
            if sha256(path / name) != expected:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, OSError) as error:
        return f"it cannot be read: {error}"
    return None


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, so that it is not looked at again; nothing is removed."""
    target = path.with_name(f"{path.name}.damaged")
    while target.exists():
        target = target.with_name(f"{target.name}.damaged")
    path.replace(target)
    return target


def read_state(path: Path) -> dict[str, Any]:
    """Raises UserError for a format of a later version, ValueError for what is no state."""
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    number = state.get("format") if isinstance(state, dict) else None
    if not isinstance(number, int) or number < FORMAT:
        raise ValueError(f"{STATE} has format {number}, and {FORMAT} is the earliest that is read")
    if number > FORMAT:
        raise UserError(
            f"{path} has format {number}, of a later version of zppo-bench: install that version, or choose another "
            "study=NAME"
        )
    return state


def load(path: Path, weights: Weights) -> dict[str, Any]:
    """Put a checkpoint into student, optimizer and the global random streams; returns its state, `step` included.

    Raises UserError when its tensors are not those of the student; nothing is changed then.
    """
    weights.read(path)
    state = read_state(path)
    set_rng_state({"torch": load_file(path / "rng.safetensors"), "python": state["rng"]})
    for key, value in machine().items():
        if state.get("machine", {}).get(key, value) != value:
            logger.warning(
                "%s was written with %s=%s, this is %s: from here on results may differ in their last bits",
                path, key, state["machine"][key], value,
            )  # fmt: skip
    return state


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """What `save` was given as `tensors`."""
    return load_file(path / "update.safetensors")


def machine() -> dict[str, Any]:
    """What the bits of a result depend on apart from the configuration."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": device, "num_threads": torch.get_num_threads(), "torch": torch.__version__}


def rng_state() -> dict[str, Any]:
    """The global random streams: tensors as `torch`, JSON values as `python`."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        tensors |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    streams = {
        "python": [version, list(internal), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
    }
    return {"torch": tensors, "python": streams}


def seed_rng(seed: int) -> None:
    """Begin the global random streams. The harness draws from none of them; a plugin, or a library, may."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"]["torch"])
    for name, tensor in state["torch"].items():
        if name.startswith("cuda:") and int(name[5:]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(tensor, int(name[5:]))
    version, internal, gauss = state["python"]["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["python"]["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))


def _place(path: Path) -> tuple[int, int]:
    """Steps, and updates of the next."""
    found = NAME.fullmatch(_target(path).name)
    assert found is not None
    return int(found[1]), int(found[2] or 0)


def _remove(path: Path) -> None:
    """Under another name, so that a kill leaves no half of a checkpoint."""
    aside = path.with_name(f".{path.name}.tmp")
    path.replace(aside)
    shutil.rmtree(aside)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    sync(path)
