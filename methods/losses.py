"""Per-token losses as pure functions: logits [N, V] and ids [N] of N trained tokens in, loss [N] out.

Everything is computed in fp32 or wider. Banned ids may have logits of -1e9: their probability is exactly 0.
Nothing but gradients has the size of the logits: what is needed in between is formed for a block of rows at a time.
Torch is imported where it runs, so that configurations are checked without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MAX_LOG_RATIO = 20.0
BLOCK_ELEMENTS = 1 << 21
"""Logits that are worked on at once: 8 MiB in fp32, small enough for a processor's cache."""


def policy_gradient_loss(
    logits_NV: torch.Tensor,
    ids_N: torch.Tensor,
    advantages_N: torch.Tensor,
    old_logprobs_N: torch.Tensor,
    *,
    clip_ratio_low: float,
    clip_ratio_high: float,
    dual_clip: float,
    rollout_logprobs_N: torch.Tensor | None = None,
    importance_cap: float | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """PPO surrogate with asymmetric clip and dual clip (Table 8; arXiv 1707.06347, 2503.14476, 1912.09729).

    With rho = exp(logprob - old_logprob) the objective is min(rho A, clip(rho, 1 - low, 1 + high) A), bounded below by
    c A where A < 0; the loss is its negative. Returns loss [N] and token sums of detached statistics:

    - `clip_low_frac`: A < 0 and rho < 1 - low
    - `clip_high_frac`: A > 0 and rho > 1 + high
    - `clip_frac`: either of the two
    - `dual_clip_frac`: A < 0 and rho > c
    - `entropy` (nats), `ratio`, `approx_kl` (k3: rho - 1 - log rho)

    An `importance_cap` C multiplies the loss of each token by a constant, min(C, exp(old_logprob - rollout_logprob)):
    the engine that sampled has log-probabilities of its own. This is token-level truncated importance sampling
    (https://fengyao.notion.site/off-policy-rl). The weight is 1 where the engine gave none (NaN).
    Sums then also have `importance_weight` and `importance_capped_frac` (weights cut to C). Raises ValueError where a
    cap comes without `rollout_logprobs_N`.
    """
    import torch

    logprobs_N = token_logprobs(logits_NV, ids_N)
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
            "entropy": entropy_sum(logits_NV),
            "ratio": ratio_N.sum(),
            "approx_kl": (ratio_N - 1.0 - log_ratio_N).sum(),
        }
    if importance_cap is not None:
        if rollout_logprobs_N is None:
            raise ValueError("importance_cap weighs by the engine's log-probabilities: rollout_logprobs_N is missing")
        weights_N, capped_N = _importance_weights(old_logprobs_N, rollout_logprobs_N, importance_cap)
        loss_N = loss_N * weights_N
        sums |= {"importance_weight": weights_N.sum(), "importance_capped_frac": capped_N.sum()}
    return loss_N, sums


def _importance_weights(
    old_logprobs_N: torch.Tensor, rollout_logprobs_N: torch.Tensor, cap: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(min(cap, exp(old - rollout)) [N], whether it was cut to the cap [N]); 1 and not cut where rollout is NaN."""
    import torch

    with torch.no_grad():
        log_weight_N = old_logprobs_N - rollout_logprobs_N
        missing_N = log_weight_N.isnan()
        weight_N = log_weight_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        capped_N = weight_N > cap  # never where it is NaN
        return weight_N.clamp(max=cap).masked_fill(missing_N, 1.0), capped_N


def jsd_loss(student_logits_NV: torch.Tensor, teacher_logits_NV: torch.Tensor, beta: float) -> torch.Tensor:
    """Generalised Jensen-Shannon divergence of each token, in nats (Algs. 2 and 3; GKD, arXiv 2306.13649).

    M = beta P_T + (1 - beta) P_S and JSD = beta KL(P_T || M) + (1 - beta) KL(P_S || M).
    The limits after dividing by beta or 1 - beta are KL(P_T || P_S) for beta = 0 and KL(P_S || P_T) for beta = 1.
    The loss is differentiable in the student only.

    Everything is formed from delta = log P_T - log P_S, because log M - log P_S = log(1 + beta (e^delta - 1)).
    The gradient is P_S (d - sum P_S d) with d = (1 - beta) (log P_S - log M).
    Both are exactly zero where the logits are equal. Autograd would give rounding noise, which Adam scales up.
    """
    import torch

    loss_N = _empty_like(student_logits_NV, student_logits_NV.shape[:1])
    gradient_NV = _empty_like(student_logits_NV, student_logits_NV.shape)
    with torch.no_grad():
        for rows in _blocks(student_logits_NV):
            loss_N[rows], gradient_NV[rows] = _jsd_rows(student_logits_NV[rows], teacher_logits_NV[rows], beta)
    return _functions()["given"].apply(student_logits_NV, loss_N, gradient_NV)


def jsd_topk_loss(
    student_logits_NV: torch.Tensor, ids_NK: torch.Tensor, teacher_logprobs_NK: torch.Tensor, beta: float
) -> torch.Tensor:
    """`jsd_loss` of the two distributions coarsened to K + 1 events: the K listed tokens, and the tail, which is every
    other token. For a teacher of which only `teacher_logprobs_NK` of the tokens `ids_NK` is known.

    Both sides are summed over the same events, so it is a divergence. By the data processing inequality it is at most
    `jsd_loss`; the two are equal where every token is listed. A list without its tail would be neither: it can be
    negative. Ids of a row are distinct; -1 fills up shorter lists. Inside the tail nothing is known, so the gradient
    there moves tokens in proportion to P_S.

    The student's tail is the log-sum-exp of its tokens. The teacher's is 1 - sum P_T of the list. It is known only to
    the rounding eps of its log-probabilities, and taken as eps at least. That is worth eps log(1 / eps) for beta < 1.
    For beta = 1, which reads the tail's logarithm, it is worth P_S(tail) eps / P_T(tail).
    A student's tail that underflows is taken as the smallest normal number. Loss and gradient are exactly zero where
    all listed log-probabilities are equal: then so are the tails, and the rounded one is not consulted.
    """
    import torch

    loss_N = _empty_like(student_logits_NV, student_logits_NV.shape[:1])
    gradient_NV = _empty_like(student_logits_NV, student_logits_NV.shape)
    with torch.no_grad():
        for rows in _blocks(student_logits_NV):
            loss_N[rows], gradient_NV[rows] = _jsd_topk_rows(
                student_logits_NV[rows], ids_NK[rows], teacher_logprobs_NK[rows], beta
            )
    return _functions()["given"].apply(student_logits_NV, loss_N, gradient_NV)


def _jsd_topk_rows(
    student_logits_NV: torch.Tensor, ids_NK: torch.Tensor, teacher_logprobs_NK: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Like `_jsd_rows`, of the coarsened distributions."""
    import torch

    student_NV = _log_softmax(student_logits_NV)
    num_rows, num_ids = student_NV.shape
    none = math.log(torch.finfo(student_NV.dtype).tiny)  # no mass, yet finite
    given_NK = ids_NK >= 0
    columns_NK = ids_NK.where(given_NK, num_ids)  # padding goes to a column after the vocabulary
    student_NK = torch.cat([student_NV, student_NV.new_full((num_rows, 1), none)], -1).gather(-1, columns_NK)
    teacher_NK = teacher_logprobs_NK.to(student_NV.dtype).where(given_NK, none)

    listed_NV = torch.zeros(num_rows, num_ids + 1, dtype=torch.bool, device=ids_NK.device)
    listed_NV = listed_NV.scatter_(-1, columns_NK, True)[:, :num_ids]
    rest_NV = student_NV.masked_fill_(listed_NV, -torch.inf)
    student_tail_N1 = rest_NV.logsumexp(-1, keepdim=True).clamp(min=none)
    # Equal lists have equal tails; and where all is listed, the tail is empty on both sides.
    known_N1 = (student_NK == teacher_NK).all(-1, keepdim=True) | listed_NV.all(-1, keepdim=True)
    teacher_tail_N1 = torch.where(known_N1, student_tail_N1, _tail_logprob(teacher_logprobs_NK, given_NK))

    loss_N, gradient_NE = _jsd_of_logprobs(
        torch.cat([student_NK, student_tail_N1], -1), torch.cat([teacher_NK, teacher_tail_N1], -1), beta
    )
    gradient_NK, tail_gradient_N1 = gradient_NE[:, :-1], gradient_NE[:, -1:]
    gradient_NV = (rest_NV - student_tail_N1).exp_() * tail_gradient_N1  # P_S within the tail; 0 where listed
    scattered_NV = torch.cat([gradient_NV, gradient_NV.new_zeros(num_rows, 1)], -1)
    return loss_N, scattered_NV.scatter_add_(-1, columns_NK, gradient_NK.masked_fill(~given_NK, 0.0))[:, :num_ids]


def _tail_logprob(teacher_logprobs_NK: torch.Tensor, given_NK: torch.Tensor) -> torch.Tensor:
    """log(1 - sum of the listed probabilities) [N, 1], summed in float64, at least log(eps) of how they are stored."""
    import torch

    listed_N1 = teacher_logprobs_NK.double().exp().where(given_NK, 0.0).sum(-1, keepdim=True)
    eps = torch.finfo(teacher_logprobs_NK.dtype).eps
    return torch.log1p(-listed_N1.clamp(max=1.0 - eps)).to(_wide(teacher_logprobs_NK))


def _jsd_rows(
    student_logits_NV: torch.Tensor, teacher_logits_NV: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(JSD [N], its gradient in the student's logits [N, V])."""
    return _jsd_of_logprobs(_log_softmax(student_logits_NV), _log_softmax(teacher_logits_NV), beta)


def _jsd_of_logprobs(
    student_NV: torch.Tensor, teacher_NV: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient from log-probabilities, which are overwritten."""
    delta_NV = teacher_NV - student_NV
    student_NV, teacher_NV = student_NV.exp_(), teacher_NV.exp_()
    if beta == 0.0:
        return (teacher_NV * delta_NV).sum(-1), student_NV - teacher_NV
    d_NV, loss_N = _jsd_terms(student_NV, teacher_NV, delta_NV, beta)
    return loss_N, student_NV * (d_NV - (student_NV * d_NV).sum(-1, keepdim=True))


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
    return -token_logprobs(logits_NV, ids_N)


def token_logprobs(logits_NV: torch.Tensor, ids_N: torch.Tensor) -> torch.Tensor:
    """log softmax(logits)[id] of each token, in nats [N]; differentiable in the logits, which its backward reads."""
    return _functions()["logprob"].apply(logits_NV, ids_N)


def entropy_sum(logits_NV: torch.Tensor) -> torch.Tensor:
    """Sum over tokens of the entropy -sum_v P log P of their distribution, in nats; detached."""
    import torch

    with torch.no_grad():
        total = logits_NV.new_zeros((), dtype=_wide(logits_NV))
        for rows in _blocks(logits_NV):
            logprobs_NV = _log_softmax(logits_NV[rows])
            total -= (logprobs_NV.exp() * logprobs_NV).sum()
    return total


@cache
def _functions() -> dict[str, Any]:
    """Autograd functions whose backward writes one tensor of the logits' size and no other."""
    import torch

    class Given(torch.autograd.Function):
        """A loss whose gradient was computed with it."""

        @staticmethod
        def forward(ctx: Any, logits_NV: torch.Tensor, loss_N: torch.Tensor, gradient_NV: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(gradient_NV)
            ctx.dtype = logits_NV.dtype
            return loss_N

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> Any:
            (gradient_NV,) = ctx.saved_tensors
            return (gradient_NV * grads[0].unsqueeze(-1)).to(ctx.dtype), None, None

    class Logprob(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits_NV: torch.Tensor, ids_N: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(logits_NV, ids_N)
            logprobs_N = _empty_like(logits_NV, ids_N.shape)
            for rows in _blocks(logits_NV):
                logprobs_NV = _log_softmax(logits_NV[rows])
                logprobs_N[rows] = logprobs_NV.gather(-1, ids_N[rows].unsqueeze(-1)).squeeze(-1)
            return logprobs_N

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> Any:
            logits_NV, ids_N = ctx.saved_tensors
            gradient_NV = torch.empty_like(logits_NV)
            for rows in _blocks(logits_NV):
                # d log p(id) / d logit = [v = id] - p(v)
                block_NV = torch.softmax(logits_NV[rows], -1, dtype=_wide(logits_NV)).neg_()
                block_NV.scatter_add_(-1, ids_N[rows].unsqueeze(-1), torch.ones_like(block_NV[:, :1]))
                gradient_NV[rows] = block_NV.mul_(grads[0][rows].unsqueeze(-1))
            return gradient_NV, None

    return {"given": Given, "logprob": Logprob}


def _empty_like(logits_NV: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Uninitialised, on the logits' device, in fp32 or wider."""
    return logits_NV.new_empty(shape, dtype=_wide(logits_NV))


def _blocks(logits_NV: torch.Tensor) -> Iterator[slice]:
    num_rows = max(1, BLOCK_ELEMENTS // max(1, logits_NV.shape[-1]))
    return (slice(start, start + num_rows) for start in range(0, len(logits_NV), num_rows))


def _log_softmax(logits_NV: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.log_softmax(logits_NV, dim=-1, dtype=_wide(logits_NV))


def _wide(logits_NV: torch.Tensor) -> torch.dtype:
    import torch

    return torch.promote_types(logits_NV.dtype, torch.float32)
