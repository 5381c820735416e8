"""What vLLM refuses at its start, each in one line with the remedy. Every case is a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.config.schema import ModelConfig
from harness.models.loading import resolve_path

pytestmark = pytest.mark.vllm
TRAIN = ["method=grpo", "student=tiny_xs", "steps=1", "eval=none", "rollout=vllm", "rollout.vllm.enforce_eager=true"]


def refusal(outputs: Path, *overrides: str) -> str:
    command = [sys.executable, "-m", "harness.app", "train", *TRAIN, f"outputs={outputs}", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr[-2000:]
    return done.stderr.strip().splitlines()[-1]


def test_a_model_whose_architecture_vllm_lacks(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(resolve_path(ModelConfig(name="xs", path="tiny:xs")), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["UnheardOfForCausalLM"]}))
    line = refusal(tmp_path / "out", f"student.path={folder}")
    assert line == (
        "error: vLLM lacks the student's architecture UnheardOfForCausalLM: use rollout=transformers and no "
        "serve=true, or a newer vLLM"
    )


def test_a_context_that_the_model_does_not_have(tmp_path):
    line = refusal(tmp_path, "rollout.vllm.max_model_len=1000000")
    assert line.startswith("error: rollout.vllm.max_model_len is more than") and "(1000000)" in line
    assert line.endswith("lower it, or set it to null")


def test_a_cache_that_holds_no_sequence(tmp_path):
    line = refusal(tmp_path, "rollout.vllm.cache_gib=0.0001")
    assert line.startswith("error: vLLM has no memory for") and line.endswith("(rollout.vllm.cache_gib without a GPU)")
    assert "KV cache is needed" in line
