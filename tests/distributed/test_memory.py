"""`harness.training.memory.predict` against what two FSDP2 ranks really allocate, for two tiny shapes."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness.config.schema import UpdateConfig
from harness.models.shapes import ModelShape
from harness.training.memory import predict

pytestmark = pytest.mark.dist
SCRIPT = Path(__file__).parent / "memory_rank.py"
WORLD_SIZE = 2
TOKENS = 512


@pytest.fixture(scope="module")
def measured() -> list[dict]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(WORLD_SIZE), port],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD_SIZE)
    ]
    outputs = [rank.communicate(timeout=600) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs[0][1]
    return json.loads(outputs[0][0].splitlines()[-1])


@pytest.mark.parametrize("kind", ["full", "hybrid"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_parts_and_peak_are_within_a_tenth(measured, kind, checkpointing):
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from memory_rank import text_config
    finally:
        sys.path.remove(str(SCRIPT.parent))
    found = next(row for row in measured if row["kind"] == kind and row["checkpointing"] == checkpointing)
    # 1 MiB holds 2^20 / (4 buffers * 4 bytes * 2048 ids) = 32 trained tokens, as many as the ranks project.
    update = UpdateConfig(micro_batch_tokens=TOKENS, logit_memory_mb=1.0, gradient_checkpointing=checkpointing)
    parts = predict(ModelShape.read(text_config(kind).to_dict()), update=update, world_size=WORLD_SIZE, dtype="float32")
    for part in ("weights", "gradients", "optimizer", "gathered weights"):
        assert parts[part] == pytest.approx(found[part], rel=0.01)
    print(f"{kind} checkpointing={checkpointing}: {sum(parts.values()):.0f} predicted, {found['peak']:.0f} measured")
    assert sum(parts.values()) == pytest.approx(found["peak"], rel=0.10)
