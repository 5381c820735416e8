"""A run whose second update has a loss that is not finite: it ends before the optimizer moves, or leaves it out."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.compose import compose
from harness.config import from_hydra
from harness.errors import UserError
from harness.run import run
from harness.testing import run_metrics
from methods.sft import SFT

SMALL = [
    "student=tiny_xs", "eval=none", "data.batch_size=6", "data.pool_size=24", "data.num_questions=60", "data.epochs=2",
    "data.levels=[1,2]", "num_threads=1", "method=sft", "teacher=null", "checkpoint_every=1",
]  # fmt: skip


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Runs of three updates of which those numbered in `broken` have a loss that is not finite."""
    calls = []
    loss = SFT.loss

    def broken_loss(self, logits_NV, batch, teacher):
        calls.append(1)
        output = loss(self, logits_NV, batch, teacher)
        return output if len(calls) not in broken else type(output)(loss_N=output.loss_N / 0.0, sums=output.sums)

    broken = {2}
    monkeypatch.setattr(SFT, "loss", broken_loss)

    def start(*overrides: str) -> Path:
        return run(from_hydra(compose([*SMALL, f"outputs={tmp_path}", "steps=3", *overrides])))

    return start


def folder(tmp_path: Path) -> Path:
    return tmp_path / "default/sft/tiny_xs/seed0"


def test_the_run_ends_names_the_sample_and_saves_it(start, tmp_path):
    with pytest.raises(UserError, match=r"step 2: the loss of token id \d+ is not finite \(sample .*\); saved in"):
        start()
    saved = json.loads((folder(tmp_path) / "nonfinite/step_000002.json").read_text())
    assert saved["step"] == 2 and "is not finite" in saved["reason"]
    assert len(saved["token_ids"]) == len(saved["loss_mask"]) and "boxed" in saved["text"]
    assert [row["step"] for row in run_metrics(folder(tmp_path))] == [1]


def test_an_update_is_left_out_and_counted(start, tmp_path):
    rows = run_metrics(start("update.on_nonfinite=skip"))
    assert [row["train/nonfinite_skipped"] for row in rows] == [0, 1, 0]
    assert [row["train/num_updates"] for row in rows] == [1, 0, 1]
    states = folder(tmp_path) / "checkpoints"
    weights = {p.name: load_file(p / "model.safetensors") for p in states.iterdir()}
    assert all(torch.isfinite(t).all() for w in weights.values() for t in w.values())
    assert "update is left out" in (folder(tmp_path) / "run.log").read_text()


def test_a_run_that_ended_so_goes_on_when_told_to_skip(start, tmp_path):
    with pytest.raises(UserError):
        start()
    rows = run_metrics(start("update.on_nonfinite=skip"))
    assert [row["step"] for row in rows] == [1, 2, 3]
