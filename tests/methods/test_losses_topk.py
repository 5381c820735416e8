"""The divergence of coarsened distributions: K listed tokens and one tail."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.types import TeacherDistribution
from methods.base import distillation_loss, jsd_loss, jsd_topk_loss

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
BANNED = -1e9


def top(teacher_NV: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, log-probabilities) of the k likeliest tokens."""
    logprobs_NK, ids_NK = torch.log_softmax(teacher_NV, -1).topk(k)
    return ids_NK, logprobs_NK


def pair(num_tokens: int, num_ids: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student_NV, teacher_NV = (
        3 * torch.randn(num_tokens, num_ids, dtype=torch.float64, generator=generator) for _ in range(2)
    )
    return student_NV, teacher_NV


def by_autograd(student_NV: torch.Tensor, ids_NK: torch.Tensor, teacher_NK: torch.Tensor, beta: float) -> torch.Tensor:
    """The definition on K + 1 probabilities, its tail as 1 - sum; float64 and no padding."""
    student_NK = torch.softmax(student_NV, -1).gather(-1, ids_NK)
    s_NE = torch.cat([student_NK, 1 - student_NK.sum(-1, keepdim=True)], -1)
    t_NE = torch.cat([teacher_NK.exp(), 1 - teacher_NK.exp().sum(-1, keepdim=True)], -1)
    if beta in (0.0, 1.0):
        return (t_NE * (t_NE / s_NE).log()).sum(-1) if beta == 0.0 else (s_NE * (s_NE / t_NE).log()).sum(-1)
    m_NE = beta * t_NE + (1 - beta) * s_NE
    return (beta * t_NE * (t_NE / m_NE).log() + (1 - beta) * s_NE * (s_NE / m_NE).log()).sum(-1)


def test_by_hand() -> None:
    # P_S = (1/4, 1/4, 1/4, 1/4) with one token listed: (1/4, 3/4). The teacher lists it with 1/2: (1/2, 1/2).
    # KL(T || S) = 1/2 ln 2 + 1/2 ln 2/3; KL(S || T) = 1/4 ln 1/2 + 3/4 ln 3/2; M = (3/8, 5/8)
    student_NV, ids_NK = torch.zeros(1, 4), torch.tensor([[2]])
    teacher_NK = torch.tensor([[math.log(0.5)]])
    values = {
        0.0: 0.5 * math.log(2) + 0.5 * math.log(2 / 3),
        1.0: 0.25 * math.log(0.5) + 0.75 * math.log(1.5),
        0.5: 0.5 * (0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5) + 0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)),
    }
    for beta, expected in values.items():
        assert jsd_topk_loss(student_NV, ids_NK, teacher_NK, beta).item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_by_hand() -> None:
    # KL(T || S) of the same: s - t of an event is -1/4 for the listed token and 1/4 for the tail, a third for each of
    # its tokens.
    student_NV = torch.zeros(1, 4, requires_grad=True)
    jsd_topk_loss(student_NV, torch.tensor([[2]]), torch.tensor([[math.log(0.5)]]), 0.0).sum().backward()
    assert student_NV.grad is not None
    assert student_NV.grad[0].tolist() == pytest.approx([1 / 12, 1 / 12, -1 / 4, 1 / 12], rel=1e-6)


@pytest.mark.parametrize("beta", BETAS)
def test_it_is_the_exact_divergence_where_every_token_is_listed(beta: float) -> None:
    student_NV, teacher_NV = pair(8, 12)
    exact_NV, coarse_NV = (student_NV.clone().requires_grad_() for _ in range(2))
    exact_N, coarse_N = jsd_loss(exact_NV, teacher_NV, beta), jsd_topk_loss(coarse_NV, *top(teacher_NV, 12), beta)
    torch.testing.assert_close(coarse_N, exact_N, rtol=1e-12, atol=1e-14)
    (exact_N.sum() + coarse_N.sum()).backward()
    torch.testing.assert_close(coarse_NV.grad, exact_NV.grad, rtol=1e-12, atol=1e-14)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 10),
    st.lists(st.floats(-20, 20), min_size=10, max_size=10),
    st.lists(st.floats(-20, 20), min_size=10, max_size=10),
    st.sampled_from(BETAS),
)
def test_it_lies_between_zero_and_the_exact_divergence(k: int, student: Any, teacher: Any, beta: float) -> None:
    student_NV = torch.tensor([student], dtype=torch.float64)
    teacher_NV = torch.tensor([teacher], dtype=torch.float64)
    exact = jsd_loss(student_NV, teacher_NV, beta).item()
    coarse = jsd_topk_loss(student_NV, *top(teacher_NV, k), beta).item()
    slack = 1e-12 + rounding(student_NV, teacher_NV, k, beta, eps=2.3e-16)
    assert -slack <= coarse <= exact + slack
    single = jsd_topk_loss(student_NV.float(), *top(teacher_NV.float(), k), beta).item()
    slack = 1e-5 * (1 + exact) + rounding(student_NV, teacher_NV, k, beta, eps=1.2e-7)
    assert -slack <= single <= exact + slack


def rounding(student_NV: torch.Tensor, teacher_NV: torch.Tensor, k: int, beta: float, *, eps: float) -> float:
    """Reverse KL reads the logarithm of the teacher's tail, of which eps is known: a few P_S(tail) eps / P_T(tail)."""
    if beta < 1.0 or k == student_NV.shape[-1]:
        return 0.0
    ids_K = teacher_NV[0].topk(k).indices
    mask_V = torch.ones(student_NV.shape[-1], dtype=torch.bool)
    mask_V[ids_K] = False
    student, teacher = (torch.softmax(x[0], -1)[mask_V].sum().item() for x in (student_NV, teacher_NV))
    return 8 * student * eps / max(teacher, eps)


def test_finer_lists_are_larger_and_a_bare_list_would_be_negative() -> None:
    student_NV, teacher_NV = pair(16, 40, seed=1)
    rows = [jsd_topk_loss(student_NV, *top(teacher_NV, k), 0.5) for k in (1, 4, 16, 39)]
    assert all((coarse <= finer + 1e-12).all() for coarse, finer in itertools.pairwise(rows))
    # the student has 0.9 where the teacher has 0.5; without its tail the sum is 0.5 ln(5/9) < 0
    confident = torch.tensor([[math.log(9.0), 0.0]])
    value = jsd_topk_loss(confident, torch.tensor([[0]]), torch.tensor([[math.log(0.5)]]), 0.0).item()
    assert value == pytest.approx(0.5 * math.log(5 / 9) + 0.5 * math.log(5), rel=1e-5)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("k", [1, 3, 7])
def test_loss_and_gradient_match_autograd_of_the_definition(beta: float, k: int) -> None:
    student_NV, teacher_NV = pair(6, 9, seed=2)
    ids_NK, teacher_NK = top(teacher_NV, k)
    ours_NV, theirs_NV = (student_NV.clone().requires_grad_() for _ in range(2))
    ours_N, theirs_N = (
        jsd_topk_loss(ours_NV, ids_NK, teacher_NK, beta),
        by_autograd(theirs_NV, ids_NK, teacher_NK, beta),
    )
    torch.testing.assert_close(ours_N, theirs_N, rtol=1e-9, atol=1e-12)
    weights_N = torch.linspace(-1, 2, 6, dtype=torch.float64)
    ((ours_N + theirs_N) * weights_N).sum().backward()
    torch.testing.assert_close(ours_NV.grad, theirs_NV.grad, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("k", [1, 5, 400])
def test_nothing_moves_where_the_lists_are_equal(beta: float, k: int) -> None:
    """Exactly: the rounded tail of the teacher is not consulted."""
    logits_NV = 5 * torch.randn(16, 500, generator=torch.Generator().manual_seed(3))
    logits_NV[:, 400:] = BANNED
    student_NV = logits_NV.clone().requires_grad_()
    loss_N = jsd_topk_loss(student_NV, *top(logits_NV, k), beta)
    (loss_N * torch.rand(16)).sum().backward()
    assert torch.count_nonzero(loss_N) == 0 and torch.count_nonzero(student_NV.grad) == 0


@pytest.mark.parametrize("beta", BETAS)
def test_padding_of_the_list_changes_nothing(beta: float) -> None:
    student_NV, teacher_NV = pair(4, 9, seed=4)
    ids_NK, teacher_NK = top(teacher_NV, 3)
    padded_ids_NK = torch.cat([torch.full((4, 1), -1), ids_NK, torch.full((4, 2), -1)], -1)
    # whatever stands at a padded place
    padded_NK = torch.cat([torch.zeros(4, 1), teacher_NK, torch.full((4, 2), math.nan)], -1)
    plain_NV, padded_NV = (student_NV.clone().requires_grad_() for _ in range(2))
    plain_N = jsd_topk_loss(plain_NV, ids_NK, teacher_NK, beta)
    padded_N = jsd_topk_loss(padded_NV, padded_ids_NK, padded_NK, beta)
    (plain_N.sum() + padded_N.sum()).backward()
    torch.testing.assert_close(padded_N, plain_N, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(padded_NV.grad, plain_NV.grad, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("beta", BETAS)
def test_a_small_tail_of_the_student_is_exact_in_single_precision(beta: float) -> None:
    """P_S of the tail is 2 e^-30, which 1 - sum would call 0."""
    student_NV = torch.tensor([[0.0, -30.0, -30.0]])
    ids_NK, teacher_NK = torch.tensor([[0]]), torch.tensor([[math.log(0.5)]])
    wide = by_autograd_of_two(math.log(2) - 30.0, beta)
    assert jsd_topk_loss(student_NV, ids_NK, teacher_NK, beta).item() == pytest.approx(wide, rel=1e-5)


def by_autograd_of_two(log_tail: float, beta: float) -> float:
    """Students (1 - e^x, e^x) and teacher (1/2, 1/2) in Python floats."""
    s, t = (-math.expm1(log_tail), math.exp(log_tail)), (0.5, 0.5)
    kl = lambda p, q: math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))  # noqa: E731
    if beta in (0.0, 1.0):
        return kl(s, t) if beta else kl(t, s)
    m = tuple(beta * b + (1 - beta) * a for a, b in zip(s, t, strict=True))
    return beta * kl(t, m) + (1 - beta) * kl(s, m)


@pytest.mark.parametrize("beta", BETAS)
def test_rounding_of_the_teacher_is_not_blown_up(beta: float) -> None:
    """All that the student may say is listed, and the list sums to 1 - 2e-7, 1 or more: the loss stays near 0."""
    logits_NV = torch.tensor([[1.0, 0.0, -1.0, BANNED, BANNED]])
    for error in (-2e-7, 0.0, 3e-7):
        ids_NK, teacher_NK = top(logits_NV, 3)
        student_NV = logits_NV.clone().requires_grad_()
        loss_N = jsd_topk_loss(student_NV, ids_NK, teacher_NK + error, beta)
        loss_N.sum().backward()
        assert abs(loss_N.item()) < 5e-5
        assert student_NV.grad is not None and student_NV.grad.abs().max() < 5e-5


@pytest.mark.parametrize("elements", [1, 27, 60])
def test_blocks_change_no_bit(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    student_NV, teacher_NV = (x.float() for x in pair(13, 9, seed=5))
    ids_NK, teacher_NK = top(teacher_NV, 4)

    def run() -> list[torch.Tensor]:
        leaf_NV = student_NV.clone().requires_grad_()
        loss_N = jsd_topk_loss(leaf_NV, ids_NK, teacher_NK, 0.5)
        loss_N.sum().backward()
        assert leaf_NV.grad is not None
        return [loss_N.detach(), leaf_NV.grad]

    whole = run()
    monkeypatch.setattr("methods.losses.BLOCK_ELEMENTS", elements)
    assert all(torch.equal(a, b) for a, b in zip(whole, run(), strict=True))


def test_the_form_of_the_teacher_decides() -> None:
    student_NV, teacher_NV = pair(3, 8)
    ids_NK, teacher_NK = top(teacher_NV, 2)
    whole = TeacherDistribution(logits_NV=teacher_NV)
    partial = TeacherDistribution(topk_ids_NK=ids_NK, topk_logprobs_NK=teacher_NK)
    assert (whole.is_partial, partial.is_partial) == (False, True)
    assert torch.equal(distillation_loss(student_NV, whole, 0.3), jsd_loss(student_NV, teacher_NV, 0.3))
    expected = jsd_topk_loss(student_NV, ids_NK, teacher_NK, 0.3)
    assert torch.equal(distillation_loss(student_NV, partial, 0.3), expected)
    assert torch.equal(distillation_loss(student_NV, partial.to(torch.device("cpu")), 0.3), expected)


def test_what_a_form_does_not_have_is_refused() -> None:
    ids_NK = torch.zeros(1, 1, dtype=torch.long)
    partial = TeacherDistribution(topk_ids_NK=ids_NK, topk_logprobs_NK=ids_NK.float())
    with pytest.raises(
        ValueError, match=r"top-k log-probabilities, not logits_NV: use methods\.base\.distillation_loss"
    ):
        _ = partial.logits_NV
    with pytest.raises(ValueError, match="its complete distribution: read logits_NV"):
        _ = TeacherDistribution(logits_NV=torch.zeros(1, 2)).topk_ids_NK
    for wrong in ({}, {"topk_ids_NK": ids_NK}, {"logits_NV": ids_NK, "topk_ids_NK": ids_NK}):
        with pytest.raises(ValueError, match="give logits_NV, or topk_ids_NK with topk_logprobs_NK"):
            TeacherDistribution(**wrong)
