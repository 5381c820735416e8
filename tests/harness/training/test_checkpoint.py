"""Checkpoints: everything comes back, a failure leaves the earlier ones, a foreign or a damaged one is found."""

import errno
import json
import random
import shutil
import subprocess

import numpy as np
import pytest
import torch

from harness.errors import UserError
from harness.process import preemption
from harness.training import checkpoint, weights
from harness.training.weights import WholeWeights


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


def save(folder, step, model, optimizer, **options):
    return checkpoint.save(
        folder, step=step, weights=WholeWeights(model, optimizer), state={"buffer": [1, "a"]}, **options
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_weights_optimizer_state_and_random_streams_come_back(tmp_path):
    model, optimizer = trained()
    save(tmp_path, 3, model, optimizer)
    draws = (random.random(), np.random.rand(), float(torch.rand(1)))
    expected = one_more_step(model, optimizer)

    other, other_optimizer = trained(seed=1)
    state = checkpoint.load(tmp_path / "step-000003", WholeWeights(other, other_optimizer))
    assert state["step"] == 3 and state["buffer"] == [1, "a"]
    assert (random.random(), np.random.rand(), float(torch.rand(1))) == draws
    found = one_more_step(other, other_optimizer)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_files_and_their_sums(tmp_path):
    """`sha256sum -c` reads what is written."""
    path = save(tmp_path, 10, *trained())
    assert names(path) == ["SHA256SUMS", "model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json"]
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=path, check=True, capture_output=True)
    assert checkpoint.damage(path) is None


def test_the_newest_and_every_so_many_are_kept(tmp_path):
    model, optimizer = trained()
    for step in (1, 2, 3, 4, 10, 11):
        save(tmp_path, step, model, optimizer)
        checkpoint.prune(tmp_path, keep_last=2, keep_every=2)
    assert [p.name for p in checkpoint.complete(tmp_path)] == [
        "step-000002", "step-000004", "step-000010", "step-000011",
    ]  # fmt: skip
    checkpoint.prune(tmp_path, keep_last=1, keep_every=None)
    assert names(tmp_path) == ["step-000011"]


def test_one_in_the_middle_of_a_step_goes_with_the_next_whole_one(tmp_path):
    model, optimizer = trained()
    for step, updates in ((1, 0), (1, 2), (1, 10)):
        save(tmp_path, step, model, optimizer, updates=updates, tensors={"old": torch.ones(2)})
        checkpoint.prune(tmp_path, keep_last=1, keep_every=1)
    assert [p.name for p in checkpoint.complete(tmp_path)] == ["step-000001", "step-000001.10"]
    assert torch.equal(checkpoint.load_tensors(tmp_path / "step-000001.10")["old"], torch.ones(2))
    save(tmp_path, 2, model, optimizer)
    checkpoint.prune(tmp_path, keep_last=1, keep_every=1)
    assert names(tmp_path) == ["step-000001", "step-000002"]


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    model, optimizer = trained()
    save(tmp_path, 1, model, optimizer)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device", "optimizer.safetensors")

    monkeypatch.setattr(weights, "state_tensors", full)
    with pytest.raises(OSError):
        save(tmp_path, 2, model, optimizer)
    assert names(tmp_path) == ["step-000001"]


class Killed(BaseException):
    pass


def killed_at(name, action):
    """Leave the folder as a kill at that point would; nothing that the code does to clear up counts."""

    def stop(point):
        if point == name:
            copy = folder.with_name("copy")
            shutil.copytree(folder, copy)
            raise Killed

    folder = action[0]
    preemption.watch(stop)
    try:
        with pytest.raises(Killed):
            save(*action)
    finally:
        preemption.watch(None)
    shutil.rmtree(folder)
    folder.with_name("copy").rename(folder)


@pytest.mark.parametrize("point", ["checkpoint-tensors", "checkpoint-replaced", "checkpoint-renamed"])
def test_a_kill_while_one_is_replaced_leaves_one_whole(tmp_path, point):
    folder = tmp_path / "checkpoints"
    model, optimizer = trained()
    save(folder, 1, model, optimizer)
    one_more_step(model, optimizer)
    killed_at(point, (folder, 1, model, optimizer))
    checkpoint.recover(folder)
    assert names(folder) == ["step-000001"]
    assert checkpoint.damage(folder / "step-000001") is None


def test_a_killed_write_is_no_checkpoint(tmp_path):
    folder = tmp_path / "checkpoints"
    model, optimizer = trained()
    save(folder, 1, model, optimizer)
    killed_at("checkpoint-tensors", (folder, 2, model, optimizer))
    assert names(folder) == [".step-000002.tmp", "step-000001"]
    assert [p.name for p in checkpoint.complete(folder)] == ["step-000001"]
    save(folder, 2, model, optimizer)  # written over the remains
    assert names(folder) == ["step-000001", "step-000002"]


def test_another_model_is_refused_and_changes_nothing(tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, 1, model, optimizer)
    for other in (torch.nn.Sequential(torch.nn.Linear(3, 2)), torch.nn.Linear(3, 4)):
        before = {name: p.detach().clone() for name, p in other.named_parameters()}
        with pytest.raises(UserError, match=r"not a checkpoint of this student \(it differs in "):
            checkpoint.load(path, WholeWeights(other, torch.optim.AdamW(other.parameters())))
        assert all(torch.equal(before[name], p) for name, p in other.named_parameters())


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["cut", "flipped", "removed"])
def test_every_kind_of_damage_is_found(tmp_path, file, harm):
    path = save(tmp_path, 1, *trained()) / file
    content = bytearray(path.read_bytes())
    if harm == "removed":
        path.unlink()
    else:
        content[-3] ^= 1
        path.write_bytes(content if harm == "flipped" else content[:-3])
    problem = checkpoint.damage(tmp_path / "step-000001")
    assert problem is not None and (file in problem or file == "state.json")
    assert checkpoint.set_aside(tmp_path / "step-000001").name == "step-000001.damaged"
    assert checkpoint.complete(tmp_path) == []


def test_a_file_without_a_checksum_is_not_taken(tmp_path):
    """Emptied, shortened or removed sums would hide that weights were altered."""
    path = save(tmp_path, 1, *trained())
    sums = (path / "SHA256SUMS").read_text()
    for name in ("model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json"):
        (path / "SHA256SUMS").write_text("".join(line for line in sums.splitlines(True) if name not in line))
        assert checkpoint.damage(path) == f"{name} has no line in SHA256SUMS"
    (path / "SHA256SUMS").write_text("")
    assert "has no line" in checkpoint.damage(path)
    (path / "SHA256SUMS").unlink()
    assert checkpoint.damage(path) == "SHA256SUMS is missing"
    (path / "SHA256SUMS").write_text(sums + "0" * 64 + "  gone.safetensors\n")
    assert checkpoint.damage(path) == "gone.safetensors is missing"
    (path / "SHA256SUMS").write_text("no sums\n")
    assert "it cannot be read" in checkpoint.damage(path)
    (path / "SHA256SUMS").write_text(sums)
    (path / "extra.safetensors").write_bytes(b"")
    assert checkpoint.damage(path) == "extra.safetensors has no line in SHA256SUMS"
    (path / "extra.safetensors").unlink()
    (path / ".nfs0001").write_text("a file that nobody reads")
    assert checkpoint.damage(path) is None


@pytest.mark.parametrize("state", ["[]", "{}", '{"format": 1}', '{"format": "2"}', "null", "{"])
def test_a_state_that_is_none_is_damage(tmp_path, state):
    path = save(tmp_path, 1, *trained())
    (path / "state.json").write_text(state)
    assert "it cannot be read" in checkpoint.damage(path)


def test_a_later_format_is_refused_and_not_put_away(tmp_path):
    path = save(tmp_path, 1, *trained())
    file = path / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 3}))
    with pytest.raises(UserError, match=r"step-000001 has format 3, of a later version of zppo-bench: install"):
        checkpoint.damage(path)
    assert path.is_dir()


def test_other_threads_are_told(tmp_path, caplog):
    model, optimizer = trained()
    path = save(tmp_path, 1, model, optimizer)
    file = path / "state.json"
    state = json.loads(file.read_text())
    state["machine"]["num_threads"] = 63
    file.write_text(json.dumps(state))
    checkpoint.load(path, WholeWeights(model, optimizer))
    assert "was written with num_threads=63" in caplog.text
