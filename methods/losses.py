"""Per-token losses as pure functions: logits [N, V] and ids [N] of N trained tokens in, loss [N] out.

Everything is computed in fp32 or wider. Banned ids may have logits of -1e9: their probability is exactly 0.
Torch is imported where it runs, so that configurations are checked without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MAX_LOG_RATIO = 20.0


def policy_gradient_loss(
    logits_NV: torch.Tensor,
    ids_N: torch.Tensor,
    advantages_N: torch.Tensor,
    old_logprobs_N: torch.Tensor,
    *,
    clip_ratio_low: float,
    clip_ratio_high: float,
    dual_clip: float,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """PPO surrogate with asymmetric clip and dual clip (METHOD section 3; arXiv 1707.06347, 2503.14476, 1912.09729).

    With rho = exp(logprob - old_logprob) the objective is min(rho A, clip(rho, 1 - low, 1 + high) A), bounded below by
    c A where A < 0; the loss is its negative. Returns loss [N] and token sums of detached statistics: `clip_low_frac`
    (A < 0 and rho < 1 - low), `clip_high_frac` (A > 0 and rho > 1 + high), `clip_frac` (either), `dual_clip_frac`
    (A < 0 and rho > c), `entropy` (nats), `ratio`, `approx_kl` (k3: rho - 1 - log rho).
    """
    import torch

    logprobs_NV = _log_softmax(logits_NV)
    logprobs_N = logprobs_NV.gather(-1, ids_N.unsqueeze(-1)).squeeze(-1)
    # Past e^20 both clips bound the surrogate anyway; an infinite ratio would turn a zero gradient into NaN.
    log_ratio_N = (logprobs_N - old_logprobs_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio_N = log_ratio_N.exp()
    clipped_N = ratio_N.clamp(1.0 - clip_ratio_low, 1.0 + clip_ratio_high)
    objective_N = torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N)
    bounded_N = torch.maximum(objective_N, dual_clip * advantages_N)
    loss_N = -torch.where(advantages_N < 0, bounded_N, objective_N)
    with torch.no_grad():
        low_N = (advantages_N < 0) & (ratio_N < 1.0 - clip_ratio_low)
        high_N = (advantages_N > 0) & (ratio_N > 1.0 + clip_ratio_high)
        dual_N = (advantages_N < 0) & (ratio_N > dual_clip)
        sums = {
            "clip_low_frac": low_N.sum(),
            "clip_high_frac": high_N.sum(),
            "clip_frac": (low_N | high_N).sum(),
            "dual_clip_frac": dual_N.sum(),
            "entropy": _entropy(logprobs_NV),
            "ratio": ratio_N.sum(),
            "approx_kl": (ratio_N - 1.0 - log_ratio_N).sum(),
        }
    return loss_N, sums


def jsd_loss(student_logits_NV: torch.Tensor, teacher_logits_NV: torch.Tensor, beta: float) -> torch.Tensor:
    """Generalised Jensen-Shannon divergence of each token, in nats (METHOD section 5, GKD, arXiv 2306.13649).

    With M = beta P_T + (1 - beta) P_S, JSD = beta KL(P_T || M) + (1 - beta) KL(P_S || M). beta = 0 is KL(P_T || P_S)
    and beta = 1 is KL(P_S || P_T), the limits after dividing by beta or 1 - beta. Differentiable in the student only.

    Everything is formed from delta = log P_T - log P_S, because log M - log P_S = log(1 + beta (e^delta - 1)). So the
    loss and its gradient, P_S (d - sum P_S d) with d = (1 - beta) (log P_S - log M), are exactly zero where the logits
    are equal; through autograd they would be rounding noise, which Adam scales up to real updates.
    """
    import torch

    with torch.no_grad():
        student_NV, teacher_NV = _log_softmax(student_logits_NV), _log_softmax(teacher_logits_NV)
        delta_NV = teacher_NV - student_NV
        student_NV, teacher_NV = student_NV.exp_(), teacher_NV.exp_()
        if beta == 0.0:
            loss_N = (teacher_NV * delta_NV).sum(-1)
            gradient_NV = student_NV - teacher_NV
        else:
            d_NV, loss_N = _jsd_terms(student_NV, teacher_NV, delta_NV, beta)
            gradient_NV = student_NV * (d_NV - (student_NV * d_NV).sum(-1, keepdim=True))
    return _with_gradient(loss_N, student_logits_NV, gradient_NV)


def _jsd_terms(
    student_NV: torch.Tensor, teacher_NV: torch.Tensor, delta_NV: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dJSD / dP_S up to a constant [N, V], JSD [N]) for 0 < beta <= 1; no exponential can overflow."""
    import torch

    if beta == 1.0:
        return -delta_NV, -(student_NV * delta_NV).sum(-1)
    decay_NV = torch.expm1(-delta_NV.abs())
    # log(M / the larger of P_S and P_T): exactly 0 at delta = 0, and its log1p argument stays above -1.
    log_mixture_NV = torch.log1p(torch.where(delta_NV > 0, (1.0 - beta) * decay_NV, beta * decay_NV))
    student_excess_NV = -log_mixture_NV - delta_NV.clamp(min=0)  # log P_S - log M
    teacher_excess_NV = -log_mixture_NV + delta_NV.clamp(max=0)  # log P_T - log M
    weighted_NV = (1.0 - beta) * student_excess_NV
    return weighted_NV, (beta * teacher_NV * teacher_excess_NV + student_NV * weighted_NV).sum(-1)


def cross_entropy_loss(logits_NV: torch.Tensor, ids_N: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood -log P_S(id) of each token, in nats (supervised fine-tuning)."""
    return -_log_softmax(logits_NV).gather(-1, ids_N.unsqueeze(-1)).squeeze(-1)


def entropy_sum(logits_NV: torch.Tensor) -> torch.Tensor:
    """Sum over tokens of the entropy -sum_v P log P of their distribution, in nats; detached."""
    return _entropy(_log_softmax(logits_NV.detach()))


def _entropy(logprobs_NV: torch.Tensor) -> torch.Tensor:
    return -(logprobs_NV.exp() * logprobs_NV).sum()


def _log_softmax(logits_NV: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.log_softmax(logits_NV, dim=-1, dtype=torch.promote_types(logits_NV.dtype, torch.float32))


def _with_gradient(loss_N: torch.Tensor, logits_NV: torch.Tensor, gradient_NV: torch.Tensor) -> torch.Tensor:
    """`loss_N` with the given gradient in `logits_NV`; the added term is exactly zero."""
    linear_N = (logits_NV * gradient_NV).sum(-1)
    return loss_N + (linear_N - linear_N.detach())
