"""Products of few rows with a weight matrix on a CPU, as sampling makes them.

MKL computes x W^T up to twice as slowly as (W x^T)^T where x has some rows but few: at 8 rows and 576 x 49,152 weights
18 ms against 9 on two cores. Shape suffixes: N rows, K inputs, M outputs.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

FEW_ROWS = 64
MANY_WEIGHTS = 1 << 16
"""Smaller matrices stay in the processor's cache, and the order makes no difference."""


def product(x_NK: torch.Tensor, weight_MK: torch.Tensor) -> torch.Tensor:
    """x W^T [N, M], contiguous."""
    few = x_NK.device.type == "cpu" and 1 < len(x_NK) <= FEW_ROWS and weight_MK.numel() >= MANY_WEIGHTS
    if few and not torch.is_grad_enabled():
        return torch.mm(weight_MK, x_NK.t()).t().contiguous()
    return F.linear(x_NK, weight_MK)


class FastLinear(nn.Linear):
    """`nn.Linear` by `product`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.bias is not None or torch.is_grad_enabled():
            return super().forward(x)
        return product(x.reshape(-1, self.in_features), self.weight).view(*x.shape[:-1], self.out_features)


def multiply_fast(model: nn.Module) -> None:
    """Let the model's linear layers be `FastLinear`; weights and their names stay."""
    for layer in model.modules():
        if type(layer) is nn.Linear and layer.weight.numel() >= MANY_WEIGHTS:
            layer.__class__ = FastLinear
