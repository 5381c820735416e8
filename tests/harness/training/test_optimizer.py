"""Optimizers: no update is lost, states take the bytes they should, a resumed run is the same bit for bit."""

import copy
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.config.schema import UpdateConfig
from harness.errors import UserError
from harness.training import optimizer as module
from harness.training.optimizer import load_state_tensors, make_optimizer, round_randomly, state_tensors

NAMES = ["adamw", "adamw_bf16", "adamw_8bit"]


def build(name, parameters, **changes) -> torch.optim.Optimizer:
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes", reason="pip install -e '.[optim]'")
    return make_optimizer(parameters, UpdateConfig(**({"learning_rate": 1e-3, "optimizer": name} | changes)))


def make_parameters(device="cpu") -> dict[str, torch.nn.Parameter]:
    """Two of 4096 numbers, from where on bitsandbytes keeps 8 bits, a short vector and a scalar."""
    rng = torch.Generator().manual_seed(0)
    shapes = {"matrix": (16, 256), "long": (4096,), "short": (100,), "scalar": ()}
    return {name: torch.nn.Parameter(torch.randn(shape, generator=rng).to(device)) for name, shape in shapes.items()}


def run(optimizer, parameters, steps) -> None:
    for step in steps:
        rng = torch.Generator().manual_seed(100 + step)
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=rng).to(parameter.device)
        optimizer.step()


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_no_update_is_lost_at_the_papers_rate():
    # A constant gradient makes exp_avg / sqrt(exp_avg_sq) 1 after bias correction: 100 steps of 1e-6 are 1e-4. An fp32
    # weight in [2^-6, 2^-5) is off by 2^-30 a step at most: 0.1 % of the sum. A state's rounding is at most
    # 2^-8 standard deviations; exp_avg forgets its in 10 steps, exp_avg_sq piles up to 0.23 % * sqrt(100), of which the
    # root halves: 1 % of a weight's sum, 0.01 % of the mean of 10,000. So: 5 % for each, 0.2 % for the mean.
    # bf16 has spacings of 2^-13 there: 1e-6 is a hundredth of one, and every update of a bf16 weight rounds to none.
    start = torch.linspace(0.016, 0.031, 10_000)
    moved = {}
    for name in ("adamw", "adamw_bf16"):
        weight = torch.nn.Parameter(start.clone())
        optimizer = build(name, [weight], learning_rate=1e-6, weight_decay=0.0)
        for _ in range(100):
            weight.grad = torch.full_like(weight, 0.003)
            optimizer.step()
        moved[name] = start - weight.detach()
    assert moved["adamw"].mean().item() == pytest.approx(1e-4, rel=1e-3)
    assert moved["adamw_bf16"].mean().item() == pytest.approx(moved["adamw"].mean().item(), rel=2e-3)
    assert float((moved["adamw_bf16"] / moved["adamw"] - 1).abs().max()) < 0.05

    low = torch.nn.Parameter(start.bfloat16())
    optimizer = torch.optim.AdamW([low], lr=1e-6, weight_decay=0.0)
    for _ in range(100):
        low.grad = torch.full_like(low, 0.003)
        optimizer.step()
    assert torch.equal(low.detach(), start.bfloat16())


def test_exp_avg_sq_does_not_stall():
    # Gradient 1: v moves by 0.001 (1 - v). Rounded to nearest it stops at 0.25, where bf16's next number is 2^-9 away:
    # 0.00075 is less than half of that. Unrounded, 1000 steps give 1 - 0.999^1000 = 0.6323. Without a gradient v should
    # fall by 0.999^1000 = 0.3677; from 0.25 a step is 0.00025, less than half of 2^-10.
    naive = torch.zeros((), dtype=torch.bfloat16)
    weight = torch.nn.Parameter(torch.zeros(4096))
    optimizer = build("adamw_bf16", [weight])
    for gradient, expected in ((1.0, 0.6323), (0.0, 0.6323 * 0.3677)):
        for _ in range(1000):
            naive = (0.999 * naive.float() + 0.001 * gradient**2).bfloat16()
            weight.grad = torch.full_like(weight, gradient)
            optimizer.step()
        assert naive.item() == 0.25
        exp_avg_sq = optimizer.state[weight]["exp_avg_sq"]
        assert exp_avg_sq.dtype == torch.bfloat16
        assert exp_avg_sq.float().mean().item() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("value", [1 + 2**-9, -(1 + 3 * 2**-9), 3e-5, -1e-30, 0.0, 1.0])
def test_rounding_is_unbiased(value):
    # All 2^16 draws: the mean is the value itself, and only the two neighbours occur. 1 + 2^-9 lies a quarter of the
    # way from 1 to 1 + 2^-7.
    exact = torch.full((2**16,), value)
    draws = torch.arange(2**16, dtype=torch.int32)
    rounded = round_randomly(exact.clone(), draws)
    assert rounded.dtype == torch.bfloat16
    assert rounded.double().mean().item() == exact[0].double().item()
    if value == 1 + 2**-9:
        assert rounded.float().unique(return_counts=True)[1].tolist() == [3 * 2**14, 2**14]
    assert float((rounded.float() - exact).abs().max()) <= abs(value) * 2**-7


def test_infinity_and_nan_stay():
    values = torch.tensor([torch.inf, -torch.inf, torch.nan])
    rounded = round_randomly(values.clone(), torch.full((3,), 0xFFFF, dtype=torch.int32))
    assert torch.equal(rounded[:2].float(), values[:2])
    assert rounded[2].isnan()


@pytest.mark.parametrize(("name", "low", "high"), zip(NAMES, (8, 4, 2), (8, 4, 2.1), strict=True))
def test_bytes_a_weight(name, low, high):
    # 8 bits: one byte for each of two moments, and 4 for the scale of 256 numbers: 2 + 2 * 4 / 256 = 2.03. Its two maps
    # of 256 numbers are shared by all parameters.
    parameters = {"matrix": torch.nn.Parameter(torch.zeros(64, 256))}
    optimizer = build(name, parameters.values())
    run(optimizer, parameters, range(1))
    state = optimizer.state[parameters["matrix"]]
    sizes = {slot: value.nbytes for slot, value in state.items() if slot != "step" and not slot.startswith("qmap")}
    assert low <= sum(sizes.values()) / (64 * 256) <= high


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["state_dict", "file"])
def test_resume_is_exact(name, way, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 512)
    whole = make_parameters()
    run(build(name, whole.values()), whole, range(6))

    first = make_parameters()
    optimizer = build(name, first.values())
    run(optimizer, first, range(3))
    second = {key: torch.nn.Parameter(parameter.detach().clone()) for key, parameter in first.items()}
    torch.manual_seed(17)  # the global stream plays no part
    resumed = build(name, second.values())
    if way == "state_dict":
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        save_file(state_tensors(optimizer, first), tmp_path / "optimizer.safetensors")
        load_state_tensors(resumed, second, load_file(tmp_path / "optimizer.safetensors"))
    assert_equal(state_tensors(resumed, second), state_tensors(optimizer, first))
    assert type(resumed.state[second["matrix"]]["step"]) is type(optimizer.state[first["matrix"]]["step"])
    run(resumed, second, range(3, 6))
    assert_equal(second, whole)


def test_kept_dtypes_survive_a_round_trip():
    parameters = make_parameters()
    optimizer = build("adamw_bf16", parameters.values())
    run(optimizer, parameters, range(1))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    dtypes = {slot: value.dtype for slot, value in optimizer.state[parameters["matrix"]].items()}
    assert dtypes == {"step": torch.float32, "exp_avg": torch.bfloat16, "exp_avg_sq": torch.bfloat16}


def test_bf16_draws_leave_the_global_stream_alone_and_differ_by_step_and_parameter():
    parameters = {name: torch.nn.Parameter(torch.zeros(1000)) for name in "ab"}
    optimizer = build("adamw_bf16", parameters.values())
    before = torch.get_rng_state()
    seen = []
    for _ in range(2):
        for parameter in parameters.values():
            parameter.grad = torch.full_like(parameter, 0.003)
        optimizer.step()
        for parameter in parameters.values():
            state = optimizer.state[parameter]
            seen.append(state["exp_avg_sq"] == state["exp_avg_sq"].max())
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_pieces_are_views_of_bounded_size(monkeypatch):
    # 10 rows of 3 in pieces of at most 7 numbers: two rows each; a row of 8 is one piece; a scalar too.
    monkeypatch.setattr(module, "PIECE", 7)
    for shape, sizes in (((10, 3), [6] * 5), ((2, 8), [8, 8]), ((15,), [7, 7, 1]), ((), [1])):
        tensor = torch.zeros(shape)
        pieces = list(module._pieces(tensor, tensor + 1))
        assert [piece.numel() for piece, _ in pieces] == sizes
        for piece, other in pieces:
            piece.copy_(other)
        assert torch.equal(tensor, torch.ones(shape))


def test_8bit_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "bitsandbytes.optim", raising=False)
    with pytest.raises(UserError, match=r"needs bitsandbytes: pip install -e '\.\[optim\]' in the checkout"):
        make_optimizer(make_parameters().values(), UpdateConfig(optimizer="adamw_8bit"))


def test_16_bit_weights_are_refused():
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="have to be float32"):
        build("adamw", [weight])
    weight.requires_grad_(False)  # frozen: nothing to lose
    build("adamw", [weight])
