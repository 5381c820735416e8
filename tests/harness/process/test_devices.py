"""Which GPUs there are: the parent's list, else what nvidia-smi says. No GPU is needed."""

from __future__ import annotations

import pytest

from harness.process.devices import visible_gpus


@pytest.mark.parametrize(
    ("listed", "names"),
    [("0,1", ["0", "1"]), ("GPU-8f, MIG-1", ["GPU-8f", "MIG-1"]), ("", []), ("-1", []), ("2,-1,3", ["2"])],
)
def test_the_parents_list_is_what_there_is(monkeypatch, listed, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert visible_gpus() == names


def test_without_a_list_nvidia_smi_is_asked(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 0\necho 1\n")
    program.chmod(0o755)
    assert visible_gpus() == ["0", "1"]
    program.write_text("#!/bin/sh\necho no driver\nexit 9\n")
    assert visible_gpus() == []
