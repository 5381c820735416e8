"""What a model's folder says, in the forms that versions of transformers write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from harness.errors import UserError
from harness.models.folder import FolderSettings, folder_settings
from harness.models.tiny import tiny_path

EXPORTED = Path(__file__).parents[2] / "fixtures/study_at_39ecb1c/zppo/tiny_xs/seed0/model"


def test_a_folder_that_a_run_exported_and_one_of_the_family() -> None:
    assert folder_settings(EXPORTED) == FolderSettings(dtype="float32", pixels=(256, 65_536))
    assert folder_settings(tiny_path("xs")) == FolderSettings(dtype="bfloat16", pixels=(256, 65_536))


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"dtype": "float16"}, "float16"),
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "torch.float32"}, "float32"),
        ({"text_config": {"dtype": "float16"}}, "float16"),
        ({"dtype": None, "text_config": {"torch_dtype": "float16"}}, "float16"),
        ({}, "float32"),  # that of its weights
        ({"dtype": "float64"}, None),  # none that a student has
    ],
)
def test_dtypes(config: dict[str, Any], dtype: str | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    assert folder_settings(tmp_path) == FolderSettings(dtype=dtype, pixels=None)


@pytest.mark.parametrize(
    ("name", "processor", "pixels"),
    [
        ("processor_config.json", {"image_processor": {"size": {"shortest_edge": 9, "longest_edge": 99}}}, (9, 99)),
        ("preprocessor_config.json", {"size": {"shortest_edge": 9, "longest_edge": 99}}, (9, 99)),
        ("preprocessor_config.json", {"min_pixels": 9, "max_pixels": 99}, (9, 99)),
        ("preprocessor_config.json", {"size": {"min_pixels": 9, "max_pixels": 99}}, (9, 99)),
        ("preprocessor_config.json", {"size": {"shortest_edge": 224}}, None),
        ("preprocessor_config.json", {"size": 224}, None),
        ("processor_config.json", {"image_processor": "a name"}, None),
    ],
)
def test_pixel_limits(name: str, processor: Any, pixels: tuple[int, int] | None, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps(processor))
    assert folder_settings(tmp_path) == FolderSettings(dtype=None, pixels=pixels)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json is no JSON.*: copy the model's folder again$"):
        folder_settings(tmp_path)
