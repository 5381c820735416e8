"""Peak memory and time of one update by response length and vocabulary, against the naive computation.

    python -m benchmarks.memory                  # every length and vocabulary: most of an hour on two cores
    python -m benchmarks.memory --quick          # three minutes
    python -m benchmarks.memory --device cuda --vocabularies 248320 --no-naive --peak-tflops 989

The update is the trainer's own, at the default `update.logit_memory_mb` unless --logit-memory-mb says otherwise; naive
is all logits at once in fp32 with autograd. One sequence is trained behind a prompt of 2 tokens. A model of one layer
of width 64 stands in on a CPU, since the memory of logits does not depend on the width; on a GPU it is one of the shape
of Qwen3.5-0.8B, in bf16 with fp32 weights. Weights are random, head and embedding one. Teachers have the same shape.

`extra` is what an update takes above weights, gradients, optimizer states and the backbone's activations: its peak less
that of the backbone's forward and backward pass alone, while all gradients and states exist in both. Every measurement
has a process of its own. Naive beyond --naive-limit-gb is not run: `computed` is 4 bytes x tokens x vocabulary x the
tensors of that size which smaller runs were seen to hold at once. `head s` is the update without the backbone's passes
(the teacher's too); it contains the optimizer's step. MB and GB are decimal.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3_5ForCausalLM, Qwen3_5TextConfig

from benchmarks.losses import plain_jsd, plain_policy_gradient
from harness.config.schema import UpdateConfig
from harness.models.batching import PaddedBatch, pad
from harness.models.forward import LanguageModel
from harness.teacher.base import hidden_of
from harness.teacher.local import LocalScorer
from harness.testing.checks import peak_memory
from harness.training.update import Updater
from harness.types import TrainingSample
from methods import registry
from methods.base import Method

LENGTHS, VOCABULARIES = (1024, 2048, 4096, 8192, 12_288), (32_768, 151_936, 248_320)
QUICK_LENGTHS, QUICK_VOCABULARIES = (1024, 2048), (32_768, 248_320)
METHODS = {"grpo": "policy gradient", "on_policy_kd": "jsd 0.5"}
NAIVE_TENSORS = {"grpo": 4, "on_policy_kd": 11}
"""Tensors of the logits' size that the naive losses hold at once."""
WARM_UP = 8  # tokens
MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Case:
    kind: str
    """ours or naive."""
    method: str
    num_tokens: int
    num_ids: int
    device: str
    threads: int
    logit_memory_mb: float
    gradient_checkpointing: bool


@dataclass(frozen=True, kw_only=True)
class Result:
    """Bytes and seconds. `backbone_peak` contains weights, gradients and states."""

    extra: float
    backbone_peak: float
    seconds: float
    head_seconds: float
    num_weights: int


@dataclass
class Peak:
    bytes: float = 0.0
    seconds: float = 0.0


@contextmanager
def watch(device: str) -> Iterator[Peak]:
    """The highest memory inside, what existed before included, and the time."""
    peak, cuda = Peak(), device == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = psutil.Process().memory_info().rss
    with peak_memory() as rise:
        start = time.perf_counter()
        yield peak
        if cuda:
            torch.cuda.synchronize()
        peak.seconds = time.perf_counter() - start
    peak.bytes = torch.cuda.max_memory_allocated() if cuda else before + rise[0]


def measure(case: Case) -> Result:
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    student, teacher = make_model(case), make_model(case) if case.method == "on_policy_kd" else None
    config = UpdateConfig(logit_memory_mb=case.logit_memory_mb, gradient_checkpointing=case.gradient_checkpointing)
    updater = Updater(
        student=student,
        teacher=None if teacher is None else LocalScorer(teacher, 1.0),
        method=make_method(case.method),
        config=config,
        temperature=1.0,
    )

    def step(sample: TrainingSample) -> None:
        if case.kind == "ours":
            updater.update([sample])
        else:
            naive_update(case.method, student, teacher, updater.optimizer, sample)

    step(make_sample(WARM_UP, case.num_ids))  # makes the optimizer's states
    sample = make_sample(case.num_tokens, case.num_ids)
    batch = pad([sample], student.device)
    for parameter in student.module.parameters():
        parameter.grad = torch.empty_like(parameter).zero_()
    forward, backward = run_backbone(case, student, batch)
    with watch(case.device) as update:
        step(sample)
    passes = forward.seconds * (1 if teacher is None else 2) + backward.seconds
    backbone_peak = max(forward.bytes, backward.bytes)
    return Result(
        extra=update.bytes - backbone_peak,
        backbone_peak=backbone_peak,
        seconds=update.seconds,
        head_seconds=update.seconds - passes,
        num_weights=sum(p.numel() for p in student.module.parameters()),
    )


def run_backbone(case: Case, student: LanguageModel, batch: PaddedBatch) -> tuple[Peak, Peak]:
    """Forward and backward pass under a trivial loss. The embedding gets no gradient, whose temporary of the head's
    size would count as activations."""
    embedding = student.module.get_input_embeddings().weight
    embedding.requires_grad_(False)
    student.module.train(case.gradient_checkpointing)
    with watch(case.device) as forward:
        hidden_NH = student.hidden(batch.ids_BT, batch.mask_BT)[batch.rows_N, batch.columns_N]
    with watch(case.device) as backward:
        hidden_NH.backward(torch.zeros_like(hidden_NH))
    student.module.eval()
    embedding.requires_grad_(True)
    return forward, backward


def naive_update(
    method: str,
    student: LanguageModel,
    teacher: LanguageModel | None,
    optimizer: torch.optim.Optimizer,
    sample: TrainingSample,
) -> None:
    """All logits at once, fp32, autograd."""
    batch = pad([sample], student.device)
    logits_NV = student.logits(student.hidden(batch.ids_BT, batch.mask_BT)[batch.rows_N, batch.columns_N])
    if teacher is not None:
        with torch.no_grad():
            teacher_NV = teacher.logits(hidden_of(teacher, batch))
        loss = plain_jsd(logits_NV, teacher_NV)
    else:
        tokens = batch.tokens
        loss = plain_policy_gradient(logits_NV, tokens.ids_N, tokens.advantages_N, tokens.old_logprobs_N)
    (loss / len(logits_NV)).backward()
    torch.nn.utils.clip_grad_norm_(student.module.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def make_model(case: Case) -> LanguageModel:
    """Random weights, fp32. The shape on a GPU is that of Qwen3.5-0.8B's text model."""
    positions = case.num_tokens + 2 + WARM_UP
    if case.device == "cpu":
        config = LlamaConfig(
            vocab_size=case.num_ids,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=positions,
            tie_word_embeddings=True,
        )
        return LanguageModel(LlamaForCausalLM(config).eval())
    qwen = Qwen3_5TextConfig(
        vocab_size=case.num_ids,
        hidden_size=1024,
        intermediate_size=3584,
        num_hidden_layers=24,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=256,
        linear_num_key_heads=16,
        linear_num_value_heads=16,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
    )
    model = Qwen3_5ForCausalLM(qwen).eval()
    model.to(torch.device(case.device))
    return LanguageModel(model, compute_dtype=torch.bfloat16)


def make_method(name: str) -> Method:
    method = registry.build({"name": name, "class": name})
    assert method is not None
    return method


def make_sample(num_tokens: int, num_ids: int) -> TrainingSample:
    """A prompt of 2 tokens and `num_tokens` trained ones, sampled by a uniform policy."""
    length = num_tokens + 2
    logprobs = [-float(torch.tensor(num_ids).log())] * length
    return TrainingSample(
        uid="benchmark",
        token_ids=torch.randint(num_ids, (length,)).tolist(),
        loss_mask=[0, 0] + [1] * num_tokens,
        advantages=torch.randn(length).tolist(),
        old_logprobs=logprobs,
        rollout_logprobs=logprobs,
    )


def run_case(case: Case) -> Result:
    """In a fresh interpreter, which takes its memory along when it ends."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, case).result()


def main() -> None:
    args = parse_args()
    print(
        f"{args.device}, {args.threads} threads, torch {torch.__version__}, logit_memory_mb {args.logit_memory_mb:g}; "
        f"load {os.getloadavg()[0]:.1f}"
    )
    columns = f"{'vocabulary':>10} {'tokens':>6}   {'extra MB':>9} {'head s':>8} {'update s':>8}"
    slope = f"{'head s/1k':>9} {'upd. s/1k':>9}"
    for method in args.methods:
        heading = f"\n{METHODS[method]}\n{columns} {slope}"
        heading += f"   {'naive MB':>9} {'naive s':>8}" if args.naive else ""
        print(heading + (f"   {'MFU':>5}" if args.peak_tflops else "") + f"   {'load':>4}", flush=True)
        for num_ids in args.vocabularies:
            for num_tokens in args.lengths:
                print(line(method, num_ids, num_tokens, args), flush=True)


def line(method: str, num_ids: int, num_tokens: int, args: argparse.Namespace) -> str:
    """Measure one length with one vocabulary: a line of the table."""

    def run(kind: str) -> Result:
        return run_case(
            Case(
                kind=kind,
                method=method,
                num_tokens=num_tokens,
                num_ids=num_ids,
                device=args.device,
                threads=args.threads,
                logit_memory_mb=args.logit_memory_mb,
                gradient_checkpointing=args.gradient_checkpointing,
            )
        )

    ours, thousands = run("ours"), num_tokens / 1000
    text = f"{num_ids:10} {num_tokens:6}   {ours.extra / MB:9.0f} {ours.head_seconds:8.2f} {ours.seconds:8.2f} "
    text += f"{ours.head_seconds / thousands:9.3f} {ours.seconds / thousands:9.3f}"
    if args.naive:
        needed = 4 * num_tokens * num_ids * NAIVE_TENSORS[method]
        if needed > 1e9 * args.naive_limit_gb:
            text += f"   {needed / MB:9.0f} computed"
        else:
            naive = run("naive")
            text += f"   {naive.extra / MB:9.0f} {naive.seconds:8.2f}"
    if args.peak_tflops:
        flops = 6 * ours.num_weights * (num_tokens + 2)
        text += f"   {flops / (ours.seconds * args.peak_tflops * 1e12):5.1%}"
    return f"{text}   {os.getloadavg()[0]:4.1f}"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--lengths", type=int, nargs="+", help="trained tokens")
    parser.add_argument("--vocabularies", type=int, nargs="+")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--naive", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--naive-limit-gb", type=float, help="default 10, with --quick 6")
    parser.add_argument("--logit-memory-mb", type=float, default=UpdateConfig().logit_memory_mb)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--peak-tflops", type=float, help="of the device in its dtype: adds model FLOP utilisation")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="two lengths, two vocabularies")
    args = parser.parse_args()
    args.lengths = args.lengths or (QUICK_LENGTHS if args.quick else LENGTHS)
    args.vocabularies = args.vocabularies or (QUICK_VOCABULARIES if args.quick else VOCABULARIES)
    args.naive_limit_gb = args.naive_limit_gb or (6.0 if args.quick else 10.0)
    return args


if __name__ == "__main__":
    main()
