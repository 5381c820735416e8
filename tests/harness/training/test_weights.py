"""Weights on disk: a tensor cut into any number of shards is read back, whole or by rows of another cut."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.distributed.balance import rows_of
from harness.errors import UserError
from harness.training.weights import (
    MODEL,
    OPTIMIZER,
    StoredTensors,
    WholeWeights,
    cut,
    shard_name,
    write_index,
    write_tensors,
)


def write_sharded(folder: Path, tensors: dict[str, torch.Tensor], num_shards: int, kind: str = MODEL) -> dict:
    """As ranks write them: each its own rows, what has none by the first one alone. Returns the cuts."""
    cuts = {}
    for name, tensor in tensors.items():
        length = tensor.shape[0] if tensor.dim() else 0
        cuts[name] = cut(tensor.shape, [rows_of(length, num_shards, shard) for shard in range(num_shards)])
    for shard in range(num_shards):
        own = {}
        for name, tensor in tensors.items():
            start, stop = cuts[name]["rows"][shard]
            if tensor.dim() and start < stop:
                own[name] = tensor[start:stop]
            elif not tensor.dim() and shard == 0:
                own[name] = tensor
        write_tensors(folder / shard_name(kind, shard, num_shards), own)
    return cuts


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 13), st.integers(1, 5), st.integers(1, 5))
def test_any_cut_is_read_by_any_other(num_rows, num_written, num_read):
    tensor = torch.arange(num_rows * 3, dtype=torch.float32).reshape(num_rows, 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cuts = write_sharded(folder, {"w": tensor, "step": torch.tensor(4.0)}, num_written)
        write_index(folder, {MODEL: cuts, OPTIMIZER: {}})
        stored = StoredTensors(folder, MODEL)
        assert stored.shapes == {"w": (num_rows, 3), "step": ()}
        assert torch.equal(stored.whole("w"), tensor) and float(stored.whole("step")) == 4.0
        for rank in range(num_read):
            rows = rows_of(num_rows, num_read, rank)
            if rows:
                assert torch.equal(stored.rows("w", rows.start, rows.stop), tensor[rows.start : rows.stop])


def trained(seed: int, width: int = 3) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = torch.nn.Linear(width, 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(4, width)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_one_process_reads_what_four_ranks_wrote(tmp_path):
    model, optimizer = trained(0)
    parameters = dict(model.named_parameters())
    moments = {f"{n}/{slot}": v for n, p in parameters.items() for slot, v in optimizer.state[p].items()}
    cuts = write_sharded(tmp_path, {n: p.detach() for n, p in parameters.items()}, 4)
    write_index(tmp_path, {MODEL: cuts, OPTIMIZER: write_sharded(tmp_path, moments, 4, OPTIMIZER)})
    other, other_optimizer = trained(1)
    WholeWeights(other, other_optimizer).read(tmp_path)
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, parameters[name])
        for slot, value in other_optimizer.state[parameter].items():
            assert torch.equal(value, optimizer.state[parameters[name]][slot]), slot


def test_another_students_weights_are_refused_and_nothing_changes(tmp_path):
    wide, _ = trained(0, width=4)
    cuts = write_sharded(tmp_path, {n: p.detach() for n, p in wide.named_parameters()}, 2)
    write_index(tmp_path, {MODEL: cuts, OPTIMIZER: {}})
    model, optimizer = trained(1)
    before = model.weight.detach().clone()
    with pytest.raises(UserError, match="it differs in weight"):
        WholeWeights(model, optimizer).read(tmp_path)
    assert torch.equal(model.weight, before)
