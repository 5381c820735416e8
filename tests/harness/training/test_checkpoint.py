"""Checkpoints: everything comes back, a failure leaves the earlier ones, a foreign one is refused."""

import errno
import random

import numpy as np
import pytest
import torch

from harness.errors import UserError
from harness.training import checkpoint


def trained(seed: int = 0) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        model(torch.randn(4, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def one_more_step(model, optimizer):
    model(torch.ones(4, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def save(folder, step, model, optimizer, keep=2):
    return checkpoint.save(folder, step=step, model=model, optimizer=optimizer, state={"buffer": [1, "a"]}, keep=keep)


def test_weights_optimizer_state_and_random_streams_come_back(tmp_path):
    model, optimizer = trained()
    save(tmp_path, 3, model, optimizer)
    draws = (random.random(), np.random.rand(), float(torch.rand(1)))
    expected = one_more_step(model, optimizer)

    other, other_optimizer = trained(seed=1)
    state = checkpoint.load(tmp_path / "step-000003", model=other, optimizer=other_optimizer)
    assert state["step"] == 3 and state["buffer"] == [1, "a"]
    assert (random.random(), np.random.rand(), float(torch.rand(1))) == draws
    found = one_more_step(other, other_optimizer)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_newest_complete_checkpoints_are_kept(tmp_path):
    model, optimizer = trained()
    for step in (1, 2, 10):
        save(tmp_path, step, model, optimizer)
    assert [p.name for p in checkpoint.complete(tmp_path)] == ["step-000002", "step-000010"]
    assert {p.name for p in (tmp_path / "step-000010").iterdir()} == {
        "model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json",
    }  # fmt: skip


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    model, optimizer = trained()
    save(tmp_path, 1, model, optimizer)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device", "optimizer.safetensors")

    monkeypatch.setattr(checkpoint, "state_tensors", full)
    with pytest.raises(OSError):
        save(tmp_path, 2, model, optimizer)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_a_killed_write_is_no_checkpoint(tmp_path):
    model, optimizer = trained()
    save(tmp_path, 1, model, optimizer)
    (tmp_path / ".step-000002.tmp").mkdir()
    (tmp_path / ".step-000002.tmp" / "model.safetensors").write_bytes(b"half")
    assert [p.name for p in checkpoint.complete(tmp_path)] == ["step-000001"]
    save(tmp_path, 2, model, optimizer)  # written over the remains
    assert [p.name for p in checkpoint.complete(tmp_path)] == ["step-000001", "step-000002"]


def test_another_model_is_refused(tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, 1, model, optimizer)
    other = torch.nn.Sequential(torch.nn.Linear(3, 2))
    with pytest.raises(UserError, match="not a checkpoint of this student"):
        checkpoint.load(path, model=other, optimizer=torch.optim.AdamW(other.parameters()))
