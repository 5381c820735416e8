"""The embedded family: Qwen3.5-class students and a teacher, so small that every part of the harness runs on a CPU.

Students are weakened by design: they are pre-trained on traces with systematic errors (`corpus`). A model of this size
that sees clean traces solves the complete task, and then no method has anything to teach. Numbers measured on this
family say how the methods' machinery behaves, not how real students compare.

The weights are part of the package; `zppo tiny build` makes them anew. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path

from harness.errors import UserError, did_you_mean
from harness.models.tiny.shapes import SIZES, STUDENTS

__all__ = ["SIZES", "STUDENTS", "WEIGHTS", "tiny_path"]

WEIGHTS = Path(__file__).parent / "weights"


def tiny_path(size: str) -> Path:
    """The folder of a member of the family: weights, tokenizer, chat template and processor, for `from_pretrained`.

    Raises UserError for an unknown size and for one whose weights are not there.
    """
    if size not in SIZES:
        raise UserError(f"there is no tiny model '{size}'.{did_you_mean(size, SIZES)}")
    folder = WEIGHTS / size
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"the weights of tiny:{size} are missing in {folder}: run `zppo tiny build`")
    return folder
