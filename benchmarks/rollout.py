"""Sampling speed of the rollout engines and of transformers' `generate`, interleaved A B C A B C on the same prompts.

    python -m benchmarks.rollout --model tiny:s --prompts 32 --rollouts 8 --max-new-tokens 64 --repeats 5
    python -m benchmarks.rollout --variants transformers,vllm --model outputs/smollm2_135m \\
        --prompts 64 --rollouts 8 --threads 2 --repeats 3

All sample at temperature 1 from the same weights, with the same end tokens and banned ids; the engines decode at most
--max-sequences at a time. `generate` repeats each prompt before it reads it and keeps finished sequences in the batch;
it returns no log-probabilities here, the engines do. Only completion tokens up to the end token count. They draw
different completions, so tokens per second compare, not seconds. vLLM needs an environment of its own (`make
test-vllm`).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from harness.config.engines import RolloutConfig, VllmConfig
from harness.config.schema import ModelConfig
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.loading import load_model, load_tokenizer, resolve_path
from harness.rollout.base import RolloutEngine, Sampling
from harness.rollout.transformers_engine import TransformersEngine
from harness.types import Prompt, Question
from methods.base import plain_prompt


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    config = ModelConfig(name="benchmark", path=args.model, dtype=args.dtype)
    chat = Chat(load_tokenizer(config), config)
    model = LanguageModel.for_chat(load_model(config, args.device), chat)
    prompts = [make_prompt(i) for i in range(args.prompts)]
    num_sequences = args.max_sequences or args.prompts * args.rollouts
    makers: dict[str, Callable[[], Callable[[int], int]]] = {
        "transformers": lambda: engine_run(TransformersEngine(model, chat, "student", num_sequences), prompts, args),
        "vllm": lambda: engine_run(vllm_engine(config, model, chat, args), prompts, args),
        "generate": lambda: lambda step: run_generate(model, chat, prompts, args, step),
    }
    variants = {name: makers[name]() for name in args.variants.split(",")}
    print(f"{args.model} on {args.device}, {args.dtype}, {args.threads} threads, torch {torch.__version__}")
    print(f"{args.prompts} prompts x {args.rollouts} rollouts, at most {args.max_new_tokens} new tokens; load {load()}")
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    for step in range(args.repeats + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            num_tokens = run(step)
            seconds = time.perf_counter() - start
            if step > 0:  # the first pass warms up
                speeds[name].append(num_tokens / seconds)
                print(
                    f"{name:13} {num_tokens:7} tokens {seconds:7.2f} s {speeds[name][-1]:9.0f} tokens/s  load {load()}"
                )
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    print("median       ", "  ".join(f"{name} {value:.0f} tokens/s" for name, value in medians.items()))
    first, *others = medians
    for name in others:
        print(f"{name} / {first}: {medians[name] / medians[first]:.2f}")


def engine_run(engine: RolloutEngine, prompts: list[Prompt], args: argparse.Namespace) -> Callable[[int], int]:
    """A pass of an engine: completion tokens that it sampled."""

    def run(step: int) -> int:
        sampling = Sampling(num_rollouts=args.rollouts, step=step, max_new_tokens=args.max_new_tokens)
        return sum(len(r.completion_ids) for group in engine.generate(prompts, sampling) for r in group.rollouts)

    return run


def vllm_engine(config: ModelConfig, model: LanguageModel, chat: Chat, args: argparse.Namespace) -> RolloutEngine:
    from harness.rollout.vllm_engine import VllmEngine

    options = VllmConfig(enforce_eager=args.eager, max_model_len=args.max_model_len, cache_gib=args.cache_gib)
    rollout = RolloutConfig(max_sequences=args.max_sequences or args.prompts * args.rollouts, vllm=options)
    engine = VllmEngine(resolve_path(config), chat, sampler="student", model=config, config=rollout, empty=True)
    engine.load_weights(model.module.named_parameters())
    return engine


def run_generate(model: LanguageModel, chat: Chat, prompts: list[Prompt], args: argparse.Namespace, step: int) -> int:
    """Completion tokens, the end token included, sampled by transformers."""
    torch.manual_seed(step)
    sequences = [chat.pack(prompt).ids for prompt in prompts]
    width = max(map(len, sequences))
    pad_id = chat.tokenizer.pad_token_id
    ids_BT = torch.tensor([[pad_id] * (width - len(ids)) + ids for ids in sequences], device=model.device)
    mask_BT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in sequences], device=model.device)
    rows = model.module.get_output_embeddings().weight.shape[0]
    generate: Any = model.module.generate
    out = generate(
        ids_BT,
        attention_mask=mask_BT,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        num_return_sequences=args.rollouts,
        max_new_tokens=args.max_new_tokens,
        eos_token_id=sorted(chat.stop_ids),
        pad_token_id=pad_id,
        suppress_tokens=[*model.banned_ids, *range(model.num_tokens, rows)],
    )
    return sum(num_real(ids, chat.stop_ids) for ids in out[:, width:].tolist())


def num_real(ids: list[int], stop_ids: frozenset[int]) -> int:
    """Tokens up to and including the first end token."""
    return next((i + 1 for i, token_id in enumerate(ids) if token_id in stop_ids), len(ids))


def make_prompt(i: int) -> Prompt:
    """Sums of 2 to 21 terms: prompts of different lengths, and replies of different lengths to them."""
    numbers = [(7 * i + 31 * k) % 90 + 3 for k in range(2 + i % 20)]
    question = Question(id=str(i), text=f"Compute {'+'.join(map(str, numbers))}.", answer=str(sum(numbers)))
    return plain_prompt(question)


def load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny:s", help="a folder, a hub id or tiny:<size>")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-sequences", type=int, help="that the engines decode at a time; default: all")
    parser.add_argument("--variants", default="transformers,generate", help="some of transformers, vllm, generate")
    parser.add_argument("--eager", action="store_true", help="vLLM without compilation")
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--cache-gib", type=float, default=4.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
