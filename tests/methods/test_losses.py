"""Per-token losses against hand numbers, a float64 oracle and finite differences."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.losses import cross_entropy_loss, entropy_sum, jsd_loss, policy_gradient_loss, token_logprobs

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
BANNED = -1e9


def surrogate(ratio: float, advantage: float, *, low: float = 0.2, high: float = 0.28, dual: float = 10.0):
    """(loss, d loss / d logprob, sums) of one token of probability 1/2 whose ratio to the old policy is given."""
    logits_NV = torch.zeros(1, 2, requires_grad=True)
    loss_N, sums = policy_gradient_loss(
        logits_NV,
        torch.tensor([0]),
        torch.tensor([advantage]),
        torch.tensor([math.log(0.5 / ratio)]),
        clip_ratio_low=low,
        clip_ratio_high=high,
        dual_clip=dual,
    )
    loss_N.sum().backward()
    assert logits_NV.grad is not None
    # d logprob / d logit of the token itself is 1 - p = 1/2
    return loss_N.item(), logits_NV.grad[0, 0].item() / 0.5, {k: float(v) for k, v in sums.items()}


@pytest.mark.clause("C063", "C064", "C066")
@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        # unclipped: loss = -rho A, and d rho / d logprob = rho
        (1.0, 2.0, -2.0, -2.0),
        (1.0, -2.0, 2.0, 2.0),
        (0.5, 2.0, -1.0, -1.0),  # min(0.5 * 2, 0.8 * 2): a small ratio does not clip a positive advantage
        (1.5, -2.0, 3.0, 3.0),  # min(-3, -2.56)
        # clipped: constant
        (1.5, 2.0, -2.56, 0.0),  # min(3, 1.28 * 2)
        (0.5, -2.0, 1.6, 0.0),  # min(-1, 0.8 * -2)
        # dual clip: the objective is at least 10 A
        (20.0, -2.0, 20.0, 0.0),
        (9.0, -2.0, 18.0, 18.0),
        (20.0, 2.0, -2.56, 0.0),
    ],
)
def test_surrogate_by_hand(ratio, advantage, loss, gradient):
    value, slope, _ = surrogate(ratio, advantage)
    assert value == pytest.approx(loss, rel=1e-5)
    assert slope == pytest.approx(gradient, rel=1e-5, abs=1e-12)


def test_ratio_one_is_the_policy_gradient():
    """At rho = 1 the gradient is that of -A log p."""
    torch.manual_seed(0)
    logits_NV, ids_N = torch.randn(5, 7, dtype=torch.float64, requires_grad=True), torch.tensor([0, 3, 6, 1, 1])
    advantages_N = torch.tensor([1.0, -0.5, 0.0, 2.0, -3.0], dtype=torch.float64)
    logprobs_N = torch.log_softmax(logits_NV, -1).gather(1, ids_N[:, None]).squeeze(1)
    (expected,) = torch.autograd.grad((-advantages_N * logprobs_N).sum(), logits_NV)
    loss_N, _ = policy_gradient_loss(
        logits_NV, ids_N, advantages_N, logprobs_N.detach(), clip_ratio_low=0.2, clip_ratio_high=0.28, dual_clip=10.0
    )
    (gradient,) = torch.autograd.grad(loss_N.sum(), logits_NV)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(loss_N.detach(), -advantages_N)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 15.0), st.floats(-3.0, 3.0))
def test_wide_clips_leave_importance_weighting(ratio, advantage):
    value, _, _ = surrogate(ratio, advantage, low=1e9, high=1e9, dual=1e9)
    assert value == pytest.approx(-ratio * advantage, rel=1e-4, abs=1e-6)


def test_statistics_by_hand():
    names = ("clip_low_frac", "clip_high_frac", "clip_frac", "dual_clip_frac")
    for ratio, advantage, counts in [
        (0.5, -1.0, (1, 0, 1, 0)),
        (0.5, 1.0, (0, 0, 0, 0)),
        (1.5, 1.0, (0, 1, 1, 0)),
        (1.5, -1.0, (0, 0, 0, 0)),
        (11.0, -1.0, (0, 0, 0, 1)),
    ]:
        _, _, sums = surrogate(ratio, advantage)
        assert tuple(sums[name] for name in names) == counts
        assert sums["ratio"] == pytest.approx(ratio, rel=1e-5)
        assert sums["approx_kl"] == pytest.approx(ratio - 1 - math.log(ratio), rel=1e-4)  # k3
        assert sums["entropy"] == pytest.approx(math.log(2), rel=1e-6)  # two equal ids


@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("log_ratio", [500.0, -500.0])
def test_extreme_ratios_have_finite_gradients(log_ratio, advantage):
    logits_NV = torch.zeros(1, 2, requires_grad=True)
    options = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "dual_clip": 10.0}
    old_N, ids_N = torch.tensor([-log_ratio]), torch.tensor([0])
    loss_N, _ = policy_gradient_loss(logits_NV, ids_N, torch.tensor([advantage]), old_N, **options)
    loss_N.sum().backward()
    assert torch.isfinite(loss_N).all() and torch.isfinite(logits_NV.grad).all()


def test_statistics_carry_no_gradient_and_banned_ids_no_nan():
    logits_NV = torch.tensor([[0.0, 0.0, BANNED]], requires_grad=True)
    options = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "dual_clip": 10.0}
    old_N, ids_N = torch.tensor([math.log(0.5)]), torch.tensor([0])
    loss_N, sums = policy_gradient_loss(logits_NV, ids_N, torch.ones(1), old_N, **options)
    loss_N.sum().backward()
    assert not any(value.requires_grad for value in sums.values())
    assert float(sums["entropy"]) == pytest.approx(math.log(2))
    assert logits_NV.grad.tolist() == [[-0.5, 0.5, 0.0]]  # -(1 - p), p, 0
    assert float(entropy_sum(logits_NV)) == pytest.approx(math.log(2))


def oracle(student: list[float], teacher: list[float], beta: float) -> float:
    """JSD(beta) of two softmaxes from its definition in Python floats."""

    def softmax(logits):
        weights = [math.exp(x - max(logits)) for x in logits]
        return [w / math.fsum(weights) for w in weights]

    def kl(p, q):
        return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)

    p_s, p_t = softmax(student), softmax(teacher)
    if beta in (0.0, 1.0):
        return kl(p_s, p_t) if beta else kl(p_t, p_s)
    mixture = [beta * t + (1 - beta) * s for s, t in zip(p_s, p_t, strict=True)]
    return beta * kl(p_t, mixture) + (1 - beta) * kl(p_s, mixture)


logits = st.lists(st.floats(-8, 8), min_size=5, max_size=5)


@pytest.mark.clause("C075", "C077")
@settings(max_examples=80, deadline=None)
@given(logits, logits, st.sampled_from(BETAS))
def test_jsd_matches_the_definition(student, teacher, beta):
    exact = jsd_loss(torch.tensor([student], dtype=torch.float64), torch.tensor([teacher], dtype=torch.float64), beta)
    assert exact.item() == pytest.approx(oracle(student, teacher, beta), rel=1e-9, abs=1e-13)
    single = jsd_loss(torch.tensor([student]), torch.tensor([teacher]), beta)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(oracle(student, teacher, beta), rel=1e-4, abs=1e-5)


@pytest.mark.clause("C075", "C077")
def test_jsd_by_hand():
    # P_S = (1/2, 1/2), P_T = (3/4, 1/4), M = (5/8, 3/8):
    # 1/2 (3/4 ln 6/5 + 1/4 ln 2/3) + 1/2 (1/2 ln 4/5 + 1/2 ln 4/3) = 0.0338226
    student_NV, teacher_NV = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.5 * (0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3)) + 0.25 * (math.log(4 / 5) + math.log(4 / 3))
    assert expected == pytest.approx(0.033822, abs=1e-6)
    assert jsd_loss(student_NV, teacher_NV, 0.5).item() == pytest.approx(expected, rel=1e-5)
    # KL(T || S) = 3/4 ln 3/2 + 1/4 ln 1/2; KL(S || T) = 1/2 ln 2/3 + 1/2 ln 2
    assert jsd_loss(student_NV, teacher_NV, 0.0).item() == pytest.approx(0.130812, abs=1e-6)
    assert jsd_loss(student_NV, teacher_NV, 1.0).item() == pytest.approx(0.143841, abs=1e-6)


@pytest.mark.parametrize("beta", BETAS)
def test_jsd_gradient_by_finite_differences(beta):
    torch.manual_seed(1)
    student_NV = (2 * torch.randn(4, 6, dtype=torch.float64)).requires_grad_()
    teacher_NV = 2 * torch.randn(4, 6, dtype=torch.float64)
    teacher_NV[0] = student_NV[0].detach() + 1.0  # the same distribution
    teacher_NV[1, 0] += 30.0  # nearly disjoint
    assert torch.autograd.gradcheck(lambda s: jsd_loss(s, teacher_NV, beta), (student_NV,))


@pytest.mark.parametrize("beta", BETAS)
def test_jsd_and_its_gradient_are_exactly_zero_where_teacher_equals_student(beta):
    torch.manual_seed(2)
    logits_NV = 5 * torch.randn(16, 500)
    logits_NV[:, 400:] = BANNED
    student_NV = logits_NV.clone().requires_grad_()
    loss_N = jsd_loss(student_NV, logits_NV, beta)
    (loss_N * torch.rand(16)).sum().backward()
    assert torch.count_nonzero(loss_N) == 0
    assert torch.count_nonzero(student_NV.grad) == 0


@pytest.mark.parametrize("beta", BETAS)
def test_jsd_with_banned_ids_is_that_of_the_rest(beta):
    torch.manual_seed(3)
    student_NV, teacher_NV = torch.randn(3, 8), torch.randn(3, 8)
    expected = jsd_loss(student_NV[:, :6], teacher_NV[:, :6], beta)
    student_NV[:, 6:] = BANNED
    teacher_NV[:, 6:] = BANNED
    student_NV.requires_grad_()
    loss_N = jsd_loss(student_NV, teacher_NV, beta)
    loss_N.sum().backward()
    torch.testing.assert_close(loss_N.detach(), expected)
    assert torch.isfinite(student_NV.grad).all() and torch.count_nonzero(student_NV.grad[:, 6:]) == 0


def test_jsd_is_finite_when_only_one_side_bans():
    # P_S = (1, 0), P_T = (1/2, 1/2), M = (3/4, 1/4): 1/2 (1/2 ln 2/3 + 1/2 ln 2) + 1/2 ln 4/3
    student_NV, teacher_NV = torch.tensor([[0.0, BANNED]], requires_grad=True), torch.zeros(1, 2)
    expected = 0.25 * (math.log(2 / 3) + math.log(2)) + 0.5 * math.log(4 / 3)
    loss_N = jsd_loss(student_NV, teacher_NV, 0.5)
    loss_N.sum().backward()
    assert loss_N.item() == pytest.approx(expected, rel=1e-6)
    assert torch.isfinite(student_NV.grad).all()
    assert jsd_loss(teacher_NV, student_NV.detach(), 0.5).item() == pytest.approx(expected, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(logits, logits, st.floats(0.01, 0.99))
def test_jsd_swaps_and_is_bounded(a, b, beta):
    """JSD_beta(S, T) = JSD_{1-beta}(T, S), between 0 and the entropy of (beta, 1 - beta)."""
    x, y = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    value = jsd_loss(x, y, beta).item()
    assert value == pytest.approx(jsd_loss(y, x, 1 - beta).item(), rel=1e-9, abs=1e-14)
    assert -1e-15 <= value <= -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)


def test_jsd_limits_are_the_two_kls():
    """JSD(beta) / beta -> KL(T || S) and JSD(beta) / (1 - beta) -> KL(S || T)."""
    torch.manual_seed(4)
    x, y = torch.randn(6, 9, dtype=torch.float64), torch.randn(6, 9, dtype=torch.float64)
    small = 1e-6
    torch.testing.assert_close(jsd_loss(x, y, small) / small, jsd_loss(x, y, 0.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(jsd_loss(x, y, 1 - small) / small, jsd_loss(x, y, 1.0), rtol=1e-4, atol=0)


def test_cross_entropy_by_hand():
    # P = (3/4, 1/4): -ln 3/4 and -ln 1/4; gradient P - onehot
    logits_NV = torch.tensor([[math.log(3.0), 0.0]] * 2, requires_grad=True)
    loss_N = cross_entropy_loss(logits_NV, torch.tensor([0, 1]))
    loss_N.sum().backward()
    assert loss_N.tolist() == pytest.approx([-math.log(0.75), -math.log(0.25)], rel=1e-6)
    assert logits_NV.grad.flatten().tolist() == pytest.approx([-0.25, 0.25, 0.75, -0.75], rel=1e-6)


# log-probabilities and entropy in blocks of rows


def by_definition(logits_NV: torch.Tensor, ids_N: torch.Tensor, weights_N: torch.Tensor):
    """(log-probabilities [N], gradient of their weighted sum [N, V], entropy) by torch.log_softmax in float64."""
    wide_NV = logits_NV.detach().double().requires_grad_()
    logprobs_NV = torch.log_softmax(wide_NV, -1)
    logprobs_N = logprobs_NV.gather(1, ids_N[:, None]).squeeze(1)
    (gradient_NV,) = torch.autograd.grad((weights_N * logprobs_N).sum(), wide_NV)
    return logprobs_N.detach(), gradient_NV, -(logprobs_NV.exp() * logprobs_NV).sum().item()


@pytest.fixture
def example():
    """13 rows of 7 logits with one of -1e9 a row; ids that may repeat; weights of either sign and one 0."""
    generator = torch.Generator().manual_seed(6)
    logits_NV = 3 * torch.randn(13, 7, dtype=torch.float64, generator=generator)
    logits_NV[:, 4] = BANNED
    ids_N = torch.tensor([0, 1, 2, 3, 5, 6, 0, 0, 1, 5, 6, 2, 3])
    weights_N = torch.randn(13, dtype=torch.float64, generator=generator)
    weights_N[2] = 0.0
    return logits_NV, ids_N, weights_N


# rows in a block: 13 (one block), 1 (a block is never empty), 1, 3 (the last one is shorter), 6
BLOCKS = [1 << 21, 1, 7, 21, 48]


@pytest.mark.parametrize("elements", BLOCKS)
def test_token_logprobs_and_entropy_match_log_softmax(monkeypatch, example, elements):
    monkeypatch.setattr("methods.losses.BLOCK_ELEMENTS", elements)
    logits_NV, ids_N, weights_N = example
    values_N, slopes_NV, entropy = by_definition(*example)
    leaf_NV = logits_NV.clone().requires_grad_()
    logprobs_N = token_logprobs(leaf_NV, ids_N)
    (gradient_NV,) = torch.autograd.grad((weights_N * logprobs_N).sum(), leaf_NV)
    assert logprobs_N.dtype == gradient_NV.dtype == torch.float64
    torch.testing.assert_close(logprobs_N.detach(), values_N, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(gradient_NV, slopes_NV, rtol=1e-12, atol=1e-14)
    assert entropy_sum(leaf_NV).item() == pytest.approx(entropy, rel=1e-13)
    assert not entropy_sum(leaf_NV).requires_grad


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 999))
def test_token_logprobs_of_any_shape(num_tokens, num_ids, seed):
    generator = torch.Generator().manual_seed(seed)
    logits_NV = 5 * torch.randn(num_tokens, num_ids, dtype=torch.float64, generator=generator)
    ids_N = torch.randint(num_ids, (num_tokens,), generator=generator)
    weights_N = torch.randn(num_tokens, dtype=torch.float64, generator=generator)
    values_N, slopes_NV, entropy = by_definition(logits_NV, ids_N, weights_N)
    leaf_NV = logits_NV.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("methods.losses.BLOCK_ELEMENTS", 2 * num_ids)
        logprobs_N = token_logprobs(leaf_NV, ids_N)
        (weights_N * logprobs_N).sum().backward()
        assert entropy_sum(leaf_NV).item() == pytest.approx(entropy, rel=1e-12, abs=1e-14)
    torch.testing.assert_close(logprobs_N.detach(), values_N, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(leaf_NV.grad, slopes_NV, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("elements", BLOCKS[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_change_no_bit(monkeypatch, example, elements, dtype):
    logits_NV, ids_N, weights_N = example[0].to(dtype), example[1], example[2].float()
    teacher_NV = logits_NV.flip(0)
    options = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "dual_clip": 10.0}

    def run():
        rows = []
        for loss in (
            lambda x: token_logprobs(x, ids_N),
            lambda x: policy_gradient_loss(x, ids_N, weights_N, torch.full((13,), -2.0), **options)[0],
            *(partial(jsd_loss, teacher_logits_NV=teacher_NV, beta=beta) for beta in BETAS),
        ):
            leaf_NV = logits_NV.clone().requires_grad_()
            loss_N = loss(leaf_NV)
            (weights_N * loss_N).sum().backward()
            rows += [loss_N.detach(), leaf_NV.grad]
        return rows

    whole = run()
    monkeypatch.setattr("methods.losses.BLOCK_ELEMENTS", elements)
    assert all(torch.equal(a, b) and a.abs().sum() > 0 for a, b in zip(whole, run(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_fp32(dtype):
    """As if they had been widened first; only the gradient is rounded to their type."""
    generator = torch.Generator().manual_seed(7)
    half_NV, teacher_NV = (torch.randn(5, 300, generator=generator).to(dtype) for _ in range(2))
    ids_N, weights_N = torch.tensor([0, 7, 42, 299, 7]), torch.tensor([0.3, -1.7, 2.2, 0.9, -0.4])
    for loss in (
        lambda x: token_logprobs(x, ids_N),
        lambda x: cross_entropy_loss(x, ids_N),
        lambda x: jsd_loss(x, teacher_NV, 0.5),
        lambda x: entropy_sum(x) + token_logprobs(x, ids_N),
    ):
        narrow_NV, wide_NV = half_NV.clone().requires_grad_(), half_NV.float().requires_grad_()
        narrow_N, wide_N = loss(narrow_NV), loss(wide_NV)
        (weights_N * narrow_N).sum().backward()
        (weights_N * wide_N).sum().backward()
        assert narrow_N.dtype == torch.float32 and torch.equal(narrow_N, wide_N)
        assert narrow_NV.grad.dtype == dtype and torch.equal(narrow_NV.grad, wide_NV.grad.to(dtype))


def test_no_token_is_no_loss():
    leaf_NV, ids_N = torch.zeros(0, 5, requires_grad=True), torch.zeros(0, dtype=torch.long)
    for loss_N in (token_logprobs(leaf_NV, ids_N), jsd_loss(leaf_NV, torch.zeros(0, 5), 0.5)):
        loss_N.sum().backward()
        assert loss_N.shape == (0,)
    assert leaf_NV.grad.shape == (0, 5) and entropy_sum(leaf_NV).item() == 0.0
