"""The sides of `benchmarks.rollout`, each in a process of its own: a pass for every line, a JSON line for each.

    python -m benchmarks.rollout_sides engine|plain|generate|vllm SETTING    # SETTING is a `Setting` as JSON

`benchmarks.rollout` starts them. The side `vllm` runs in an environment of its own and imports nothing of the harness.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Setting:
    """What all sides have in common."""

    model: str
    """A folder or tiny:<size>."""
    dtype: str
    device: str
    threads: int
    prompts: int
    more_terms: int
    """Terms of each question's sum beyond the 2 to 21 that it has by itself."""
    rollouts: int
    max_new_tokens: int
    max_sequences: int
    block_size: int | None
    """Tokens of a block of vLLM's cache: prompts share complete blocks alone. None is its default, 128."""
    vocab: int | None
    """Ids of a random model of SmolLM2's shape, in place of the model's own."""
    prompt_ids: list[list[int]] | None = None
    stop_ids: list[int] | None = None
    banned_ids: list[int] | None = None
    """The ids of the prompts and what every side has to know of the tokenizer: vLLM is given them."""


Pass = Callable[[int], int]
"""One pass over all prompts, from its number: completion tokens sampled, end tokens included."""


def main() -> None:
    name, setting = sys.argv[1], Setting(**json.loads(sys.argv[2]))
    run, about = SIDES[name](setting)
    print(json.dumps(about), flush=True)
    for step, _ in enumerate(sys.stdin):
        start, cpu = time.perf_counter(), time.process_time()
        num_tokens = run(step)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        print(json.dumps({"num_tokens": num_tokens, "seconds": seconds, "cpu": cpu, "peak_mb": peak}), flush=True)


def parts(setting: Setting) -> tuple[Any, Any, list[Any]]:
    """Model, chat and prompts of a setting."""
    import torch

    from harness.config.schema import ModelConfig
    from harness.models.chat import Chat
    from harness.models.forward import LanguageModel
    from harness.models.loading import load_model, load_tokenizer

    torch.set_num_threads(setting.threads)
    config = ModelConfig(name="benchmark", path=setting.model, dtype=setting.dtype)
    chat = Chat(load_tokenizer(config), config)
    module = load_model(config, setting.device)
    if setting.vocab is not None:
        module.resize_token_embeddings(setting.vocab, mean_resizing=False)
    model = LanguageModel(module, chat.banned_ids, num_tokens=setting.vocab or chat.num_tokens)
    return model, chat, [make_prompt(i, setting.more_terms) for i in range(setting.prompts)]


def open_engine(setting: Setting, **options: Any) -> tuple[Pass, dict[str, Any]]:
    """The transformers engine, with freed memory kept as a run does it."""
    import torch

    from harness.models.cpu import keep_freed_memory
    from harness.rollout.base import Sampling
    from harness.rollout.transformers_engine import TransformersEngine

    keep_freed_memory()
    model, chat, prompts = parts(setting)
    engine = TransformersEngine(model, chat, "student", setting.max_sequences, **options)

    def run(step: int) -> int:
        sampling = Sampling(num_rollouts=setting.rollouts, step=step, max_new_tokens=setting.max_new_tokens)
        return sum(len(r.completion_ids) for group in engine.generate(prompts, sampling) for r in group.rollouts)

    rows = model.module.get_output_embeddings().weight.shape[0]
    return run, {
        "versions": {"torch": torch.__version__},
        "prompt_ids": [chat.pack(prompt).ids for prompt in prompts],
        "stop_ids": sorted(chat.stop_ids),
        "banned_ids": [*model.banned_ids, *range(model.num_tokens, rows)],
    }


def open_vllm(setting: Setting) -> tuple[Pass, dict[str, Any]]:
    """`vllm.LLM.generate` with vLLM's defaults, as its user calls it."""
    import vllm
    from vllm import LLM, SamplingParams

    # Without a bound for its cache vLLM wants 92 % of the machine's memory, and does not start where others use some.
    options: dict[str, Any] = {"max_num_seqs": setting.max_sequences, "kv_cache_memory_bytes": 4 << 30}
    if setting.block_size is not None:
        options["block_size"] = setting.block_size
    engine = LLM(model=setting.model, dtype=setting.dtype, **options)
    params = SamplingParams(
        n=setting.rollouts,
        temperature=1.0,
        max_tokens=setting.max_new_tokens,
        stop_token_ids=setting.stop_ids,
        logit_bias=dict.fromkeys(setting.banned_ids or (), -100.0) or None,
        detokenize=False,
    )
    prompts: Any = [{"prompt_token_ids": ids} for ids in setting.prompt_ids or ()]

    def run(step: int) -> int:
        outputs = engine.generate(prompts, params, use_tqdm=False)
        return sum(len(reply.token_ids) for output in outputs for reply in output.outputs)

    return run, {"versions": {"vllm": vllm.__version__}}


def open_generate(setting: Setting) -> tuple[Pass, dict[str, Any]]:
    """transformers' `generate`, in batches of as many sequences."""
    import transformers

    model, chat, prompts = parts(setting)
    size = max(1, setting.max_sequences // setting.rollouts)

    def run(step: int) -> int:
        starts = range(0, len(prompts), size)
        return sum(
            run_generate(model, chat, prompts[start : start + size], setting, 1000 * step + start) for start in starts
        )

    return run, {"versions": {"transformers": transformers.__version__}}


def run_generate(model: Any, chat: Any, prompts: list[Any], setting: Setting, seed: int) -> int:
    """Completion tokens, the end token included, sampled by transformers."""
    import torch

    torch.manual_seed(seed)
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
        num_return_sequences=setting.rollouts,
        max_new_tokens=setting.max_new_tokens,
        eos_token_id=sorted(chat.stop_ids),
        pad_token_id=pad_id,
        suppress_tokens=[*model.banned_ids, *range(model.num_tokens, rows)],
    )
    return sum(num_real(ids, chat.stop_ids) for ids in out[:, width:].tolist())


def num_real(ids: list[int], stop_ids: frozenset[int]) -> int:
    """Tokens up to and including the first end token."""
    return next((i + 1 for i, token_id in enumerate(ids) if token_id in stop_ids), len(ids))


def make_prompt(i: int, more_terms: int = 0) -> Any:
    """Sums of 2 to 21 terms: prompts of different lengths, and replies of different lengths to them."""
    from harness.types import Question
    from methods.base import plain_prompt

    numbers = [(7 * i + 31 * k) % 90 + 3 for k in range(2 + i % 20 + more_terms)]
    question = Question(id=str(i), text=f"Compute {'+'.join(map(str, numbers))}.", answer=str(sum(numbers)))
    return plain_prompt(question)


SIDES: dict[str, Callable[[Setting], tuple[Pass, dict[str, Any]]]] = {
    "engine": open_engine,
    "plain": partial(open_engine, fast_from=math.inf),
    "generate": open_generate,
    "vllm": open_vllm,
}

if __name__ == "__main__":
    main()
