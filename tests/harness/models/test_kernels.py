"""A layer of each kind is tried as a GPU machine tries it; what is installed here are transformers' own functions."""

from __future__ import annotations

import pytest
import torch

from harness.errors import UserError
from harness.models.kernels import has_fp8, installed_kernels, missing_linear, try_fp8, try_linear


def test_a_linear_layer_runs_and_its_plain_form_is_the_same():
    """Without fla both are transformers' own; the delta rule reaches every token of the input."""
    assert installed_kernels() == "torch" and missing_linear() == ["flash-linear-attention", "causal-conv1d"]
    given, plain = (try_linear("cpu", hidden=64, num_tokens=70, plain=plain) for plain in (False, True))
    assert given.shape == (70, 64) and torch.equal(given, plain)
    assert bool(given.isfinite().all() and (given.abs().amax(1) > 0).all())


def test_linear_kernels_that_do_not_run_are_named(monkeypatch):
    from transformers.models.qwen3_5 import modeling_qwen3_5 as modeling

    def broken(*args, **kwargs):
        raise RuntimeError("no kernel image is available\nfor execution")

    monkeypatch.setattr(modeling, "causal_conv1d_fn", broken)
    with pytest.raises(UserError, match=r"does not run on cpu \(no kernel image is available\): install pip install"):
        try_linear("cpu", hidden=64, num_tokens=8)
    assert modeling.causal_conv1d_fn is broken  # put back, whatever happens


@pytest.mark.skipif(has_fp8(), reason="kernels is installed")
def test_an_fp8_layer_needs_kernels():
    with pytest.raises(UserError, match=r"FP8 layer does not run on cpu .*kernels.*: pip install -e '.\[gpu\]'"):
        try_fp8("cpu")
