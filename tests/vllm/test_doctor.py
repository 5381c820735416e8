"""`zppo doctor` where vLLM is installed."""

from __future__ import annotations

import pytest

from harness.app import main
from harness.preflight.machine import vllm_architectures

pytestmark = pytest.mark.vllm


def test_a_configuration_that_runs_here_passes(capsys, tmp_path):
    assert main(["doctor", "rollout=vllm", "student=tiny_s", "method=grpo", f"outputs={tmp_path}"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "ok vllm it knows the student's architecture Qwen3_5ForConditionalGeneration" in lines
    assert any(line.startswith("ok vllm vllm") and ", fits torch 2." in line for line in lines)


def test_an_architecture_that_vllm_lacks(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "architectures": ["MadeUpForCausalLM"]}')
    overrides = ["rollout=vllm", "student=hf", f"student.path={tmp_path}", "method=grpo"]
    assert main(["doctor", *overrides]) == 2
    output = " ".join(capsys.readouterr().out.split())
    assert "fail vllm vLLM lacks the student's architecture MadeUpForCausalLM: use rollout=transformers" in output


def test_a_vllm_that_does_not_answer_is_reported():
    known, problem = vllm_architectures(seconds=0.01)
    assert (known, problem) == (set(), "no answer in 0.01 s")
