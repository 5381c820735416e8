"""Time and memory of the losses against the same losses written plainly with autograd, interleaved A B A B.

    python benchmarks/losses.py --tokens 1024 --vocabulary 49152 --repeats 5

Each call forms the loss with its entropy and goes backward to the logits. Memory is the highest rise of resident memory
in multiples of the logits' own size (CPU only).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch

from harness.testing.checks import peak_memory
from methods.losses import entropy_sum, jsd_loss, policy_gradient_loss

CLIPS = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "dual_clip": 10.0}
Loss = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    size = (args.tokens, args.vocabulary)
    logits_NV, teacher_NV = torch.randn(size), torch.randn(size)
    ids_N, advantages_N = torch.randint(args.vocabulary, size[:1]), torch.randn(args.tokens)
    old_N = torch.log_softmax(logits_NV, -1).gather(1, ids_N[:, None])[:, 0]
    pairs: dict[str, tuple[Loss, Loss]] = {
        "policy gradient": (
            lambda x: policy_gradient_loss(x, ids_N, advantages_N, old_N, **CLIPS)[0].sum(),
            lambda x: plain_policy_gradient(x, ids_N, advantages_N, old_N),
        ),
        "jsd 0.5": (
            lambda x: jsd_loss(x, teacher_NV, 0.5).sum() + 0.0 * entropy_sum(x),
            lambda x: plain_jsd(x, teacher_NV),
        ),
    }
    print(f"{args.tokens} tokens, vocabulary {args.vocabulary}, {args.threads} threads, torch {torch.__version__}")
    for name, losses in pairs.items():
        rows: list[list[tuple[float, float]]] = [[], []]
        for repeat in range(args.repeats + 1):
            for which, loss in enumerate(losses):
                measured = measure(loss, logits_NV)
                if repeat > 0:  # the first pass warms up
                    rows[which].append(measured)
        (ours, our_tiles), (plain, plain_tiles) = (
            (statistics.median(t for t, _ in row), statistics.median(m for _, m in row)) for row in rows
        )
        print(
            f"{name:16} ours {1e3 * ours:8.1f} ms {our_tiles:4.1f} x logits   plain {1e3 * plain:8.1f} ms "
            f"{plain_tiles:4.1f} x logits   plain / ours {plain / ours:.2f}   load {os.getloadavg()[0]:.1f}"
        )


def measure(loss: Loss, logits_NV: torch.Tensor) -> tuple[float, float]:
    """Seconds, and the rise of memory relative to the logits."""
    leaf_NV = logits_NV.clone().requires_grad_()
    with peak_memory() as rise:
        start = time.perf_counter()
        loss(leaf_NV).backward()
        seconds = time.perf_counter() - start
    return seconds, rise[0] / (4 * logits_NV.numel())


def plain_policy_gradient(
    logits_NV: torch.Tensor, ids_N: torch.Tensor, advantages_N: torch.Tensor, old_N: torch.Tensor
) -> torch.Tensor:
    logprobs_NV = torch.log_softmax(logits_NV, -1)
    ratio_N = (logprobs_NV.gather(1, ids_N[:, None])[:, 0] - old_N).exp()
    objective_N = torch.minimum(ratio_N * advantages_N, ratio_N.clamp(0.8, 1.28) * advantages_N)
    with torch.no_grad():
        -(logprobs_NV.exp() * logprobs_NV).sum()  # the entropy that is logged
    return -torch.where(advantages_N < 0, torch.maximum(objective_N, 10.0 * advantages_N), objective_N).sum()


def plain_jsd(logits_NV: torch.Tensor, teacher_NV: torch.Tensor) -> torch.Tensor:
    student_NV, teacher_NV = torch.log_softmax(logits_NV, -1), torch.log_softmax(teacher_NV, -1)
    mixture_NV = torch.logaddexp(student_NV, teacher_NV) - torch.tensor(2.0).log()
    with torch.no_grad():
        -(student_NV.exp() * student_NV).sum()
    forward = teacher_NV.exp() * (teacher_NV - mixture_NV)
    return 0.5 * (forward + student_NV.exp() * (student_NV - mixture_NV)).sum()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
