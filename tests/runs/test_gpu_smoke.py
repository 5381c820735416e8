"""`benchmarks.gpu_smoke` where there is no GPU: it says so, and each of its steps runs on a CPU."""

from __future__ import annotations

import importlib.util

import pytest

from benchmarks import gpu_smoke
from benchmarks.gpu_smoke import LeftOut, main, rows, table
from harness.errors import UserError

has_vllm = bool(importlib.util.find_spec("vllm"))


def test_without_a_gpu_it_says_so_and_ends_with_0(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("no GPU here: nothing was tried")


def test_a_step_that_fails_or_lacks_a_package_keeps_no_other_from_being_made(capsys, monkeypatch):
    def failing(device):
        raise UserError("wrong numbers\nand more")

    def lacking(device):
        import no_such_package  # noqa: F401

    def fine(device):
        return f"on {device}\nand a second line"

    found = list(rows("cpu", (failing, lacking, fine)))
    assert [row.verdict for row in found] == ["FAILED", "left out", "ok"]
    lines = table(found).splitlines()
    assert lines[1].startswith("failing   FAILED") and lines[1].endswith("wrong numbers")
    assert lines[2].endswith("No module named 'no_such_package'") and lines[4].strip() == "and a second line"
    monkeypatch.setattr(gpu_smoke, "STEPS", (failing, fine))
    assert main(["--device", "cpu"]) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.slow
def test_layers_and_devices_on_a_cpu():
    found = {row.name: row for row in rows("cpu", (gpu_smoke.devices, gpu_smoke.linear))}
    assert {row.verdict for row in found.values()} == {"ok"}, table(list(found.values()))
    assert found["devices"].text.endswith("parameters on cpu")
    assert found["linear"].text.endswith("0.0% apart")


@pytest.mark.slow
def test_all_steps_on_a_cpu(capsys):
    """What is not installed is left out; nothing fails."""
    assert main(["--device", "cpu"]) == 0
    out = capsys.readouterr().out
    verdicts = {line.split()[0]: line[10:20].strip() for line in out.splitlines()[2:] if not line.startswith(" ")}
    assert verdicts == {
        "devices": "ok", "engine": "ok" if has_vllm else "left out", "fp8": "left out", "linear": "ok", "update": "ok",
        "zppo": "ok", "plan": "ok",
    }  # fmt: skip
    assert "memory, update" in out


@pytest.mark.skipif(has_vllm, reason="vLLM is installed")
def test_without_vllm_its_step_is_left_out():
    with pytest.raises(LeftOut, match="vLLM: No module named 'vllm'"):
        gpu_smoke.engine("cpu")
