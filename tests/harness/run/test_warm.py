"""A cell that is forked writes what one writes whose process imports for itself, to the bit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from harness.app import main
from harness.process.devices import has_gpus, num_cores
from harness.study.scheduler import THREAD_VARIABLES
from tests.support.faults import assert_same_end

WORDS = [
    "student=tiny_xs", "data=mixture", "steps=2", "data.batch_size=8", "data.pool_size=16", "data.num_questions=24",
    "method.group_size=4", "rollout.max_response_tokens=16", "eval.num_questions=2", "study=s", "device=cpu",
]  # fmt: skip


@pytest.mark.slow
def test_a_forked_cell_has_the_bits_of_a_fresh_one(tmp_path, monkeypatch):
    if has_gpus():
        pytest.skip("with GPUs no cell is forked")
    forked, fresh = tmp_path / "forked", tmp_path / "fresh"
    assert main(["train", "-m", "method=zppo,on_policy_kd", f"outputs={forked}", *WORDS]) == 0
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(max(1, num_cores() // 2)))
    for method in ("zppo", "on_policy_kd"):
        words = [f"method={method}", f"label='{method}'", f"outputs={fresh}", *WORDS]
        subprocess.run([sys.executable, "-m", "harness.app", "train", *words], env=environment, check=True)
        assert_same_end(*(place / "s" / method / "tiny_xs" / "seed0" for place in (forked, fresh)))
