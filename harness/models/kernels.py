"""Kernels that transformers takes where they are installed, and a layer of each kind to try them on.

Without them it computes linear attention with many small operations of torch. FP8 weights on a GPU it does not
multiply at all.
torch and transformers are imported only when a layer is tried.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import UserError, first_line

if TYPE_CHECKING:
    import torch

Kernels = Literal["torch", "fla"]
"""How linear attention is computed: transformers' own code, or flash-linear-attention and causal-conv1d."""
LINEAR_PACKAGES = {"fla": "flash-linear-attention", "causal_conv1d": "causal-conv1d"}
"""Modules, and the distributions that have them."""
INSTALL = "pip install -e '.[gpu]' in the checkout"
BLOCK = 128
"""Rows and columns of a block of FP8 weights that has a scale of its own."""


def missing_linear() -> list[str]:
    """Distributions for linear attention that are not installed."""
    return [name for module, name in LINEAR_PACKAGES.items() if importlib.util.find_spec(module) is None]


def installed_kernels() -> Kernels:
    return "torch" if missing_linear() else "fla"


def has_fp8() -> bool:
    """Whether transformers finds `kernels` in a release that it takes; the kernel itself comes from the hub or its
    cache."""
    from transformers.utils.import_utils import is_kernels_available

    return bool(is_kernels_available())


def try_linear(device: str, *, hidden: int = 256, num_tokens: int = 192, plain: bool = False) -> torch.Tensor:
    """Gradient [T, H] of a linear-attention layer's input, in fp32. `plain`: by transformers' own code, whatever is
    installed. Any two calls with the same sizes compute the same.

    Raises UserError where the kernels do not run on `device`.
    """
    import torch
    from transformers import Qwen3_5TextConfig
    from transformers.models.qwen3_5 import modeling_qwen3_5 as modeling

    config = Qwen3_5TextConfig(
        hidden_size=hidden, num_hidden_layers=1, layer_types=["linear_attention"], linear_num_key_heads=2,
        linear_num_value_heads=2, linear_key_head_dim=64, linear_value_head_dim=64, vocab_size=8,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    layer = modeling.Qwen3_5GatedDeltaNet(config, 0)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    layer = layer.to(device)
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    states_1TH = torch.randn(1, num_tokens, hidden, generator=generator).to(device).requires_grad_()
    with _plain(modeling, plain), torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
        try:
            (gradient_1TH,) = torch.autograd.grad(layer(states_1TH).square().mean(), states_1TH)
        except Exception as error:
            raise UserError(
                f"a linear-attention layer does not run on {device} ({first_line(error)}): install {INSTALL}, or take "
                f"{' and '.join(LINEAR_PACKAGES.values())} out"
            ) from error
    return gradient_1TH[0].float()


def try_fp8(device: str) -> float:
    """Mean error of an FP8 layer's product against that of its weights in fp32, relative to the product's size: some
    hundredths, since its input is rounded to 8 bits too.

    Raises UserError where the layer does not run.
    """
    import torch
    from transformers.integrations.finegrained_fp8 import FP8Linear

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2 * BLOCK, 2 * BLOCK, generator=generator)
    scales = weight.view(2, BLOCK, 2, BLOCK).abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
    spread = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    layer = FP8Linear(2 * BLOCK, 2 * BLOCK, block_size=(BLOCK, BLOCK))
    layer.weight.data = (weight / spread).to(torch.float8_e4m3fn)
    layer.weight_scale_inv.data = scales
    states = torch.randn(64, 2 * BLOCK, generator=generator).bfloat16()
    expected = states.float() @ (layer.weight.float() * spread).T
    try:
        with torch.no_grad():
            given = layer.to(device)(states.to(device)).float().cpu()
    except Exception as error:
        raise UserError(f"an FP8 layer does not run on {device} ({first_line(error)}): {INSTALL}") from error
    return float((given - expected).abs().mean() / expected.abs().mean())


@contextmanager
def _plain(modeling: Any, is_plain: bool) -> Iterator[None]:
    """In the block the layer's functions are transformers' own."""
    before = {name: getattr(modeling, name) for name in ("torch_chunk_gated_delta_rule", "causal_conv1d_fn")}
    try:
        for name, function in before.items():
            setattr(modeling, name, inspect.unwrap(function) if is_plain else function)
        yield
    finally:
        for name, function in before.items():
            setattr(modeling, name, function)
