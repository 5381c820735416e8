"""Products with few rows are those of `nn.Linear`, whatever the order of the factors."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from harness.config.schema import ModelConfig
from harness.models.cpu import FEW_ROWS, FastLinear, multiply_fast, product
from harness.models.forward import LanguageModel
from harness.models.loading import load_model


@pytest.mark.parametrize("rows", [1, 2, 7, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("shape", [(256, 256), (1000, 100), (16, 8)])
def test_product(rows, shape):
    torch.manual_seed(rows)
    x_NK, weight_MK = torch.randn(rows, shape[1]), torch.randn(*shape)
    with torch.no_grad():
        found = product(x_NK, weight_MK)
    assert found.is_contiguous() and found.shape == (rows, shape[0])
    torch.testing.assert_close(found, F.linear(x_NK, weight_MK), rtol=1e-5, atol=1e-4)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(256, 300, bias=False), nn.Linear(300, 256), nn.Linear(256, 8, bias=False))


@pytest.mark.parametrize("shape", [(3, 1, 256), (2, 256), (5, 40, 256), (0, 1, 256)])
def test_a_model_computes_what_it_did(shape):
    plain, fast = model(), model()
    names = list(fast.state_dict())
    multiply_fast(fast)
    assert [type(layer) for layer in fast] == [FastLinear, FastLinear, nn.Linear]  # the last one is too small
    assert list(fast.state_dict()) == names
    x = torch.randn(*shape)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-5)
    fast(x).square().sum().backward()
    plain(x).square().sum().backward()
    for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)  # with gradients nothing has changed


@pytest.mark.parametrize(("rows", "first"), [(2, (256, 256)), (FEW_ROWS + 1, (FEW_ROWS + 1, 256))])
def test_the_weights_come_first_where_rows_are_few(rows, first):
    shapes = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.mm.default:
                shapes.append(tuple(args[0].shape))
            return func(*args, **(kwargs or {}))

    layer = nn.Sequential(nn.Linear(256, 256, bias=False))
    multiply_fast(layer)
    with torch.no_grad(), Record():
        layer(torch.randn(rows, 1, 256))
    assert shapes == [first]


def test_a_language_model_on_a_cpu_uses_it():
    model = LanguageModel(load_model(ModelConfig(name="teacher", path="tiny:teacher", dtype="float32"), "cpu")).module
    large = [m for m in model.modules() if isinstance(m, nn.Linear) and m.weight.numel() >= 1 << 16]
    assert large and all(type(layer) is FastLinear for layer in large)
