"""What the folder of a model says about how the model is to be used. Reads JSON files; imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError

WEIGHTS = "model.safetensors"
SAFETENSORS_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
"""Newer versions of transformers write the first, with the image processor inside, older ones the second."""


@dataclass(frozen=True, kw_only=True)
class FolderSettings:
    """None where the folder does not say."""

    dtype: str | None
    """Number format of the weights: float32, bfloat16 or float16."""
    pixels: tuple[int, int] | None
    """Least and most pixels of a picture."""


def folder_settings(folder: Path) -> FolderSettings:
    """What `config.json`, the weights and the processor of a folder say. Raises UserError for a file that is no JSON
    object."""
    return FolderSettings(dtype=_dtype(folder), pixels=_pixels(folder))


def _dtype(folder: Path) -> str | None:
    config = _object(folder / "config.json")
    parts = (config, config.get("text_config"))
    named = [part.get(key) for part in parts if isinstance(part, dict) for key in ("dtype", "torch_dtype")]
    names = [name.removeprefix("torch.") for name in named if isinstance(name, str)]
    found = names[0] if names else _dtype_of_weights(folder / WEIGHTS)
    return found if found in SAFETENSORS_DTYPES.values() else None


def _dtype_of_weights(file: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as weights:
            dtypes = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None  # in several files, or no safetensors: loading says what is wrong
    return SAFETENSORS_DTYPES.get(dtypes.pop()) if len(dtypes) == 1 else None


def _pixels(folder: Path) -> tuple[int, int] | None:
    for name in PROCESSORS:
        described = _object(folder / name)
        described = described.get("image_processor", described)
        for part in (described.get("size"), described) if isinstance(described, dict) else ():
            for least, most in (("shortest_edge", "longest_edge"), ("min_pixels", "max_pixels")):
                pair = (part.get(least), part.get(most)) if isinstance(part, dict) else (None, None)
                if isinstance(pair[0], int) and isinstance(pair[1], int) and 0 < pair[0] <= pair[1]:
                    return pair[0], pair[1]
    return None


def _object(file: Path) -> dict[str, Any]:
    """Empty where there is no such file."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is no JSON: copy the model's folder again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is no JSON object: copy the model's folder again")
    return content
