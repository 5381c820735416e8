"""Pre-training of the tiny family: minutes on two cores, and the same seed gives the same weights.

Small batches (1024 tokens), AdamW with a short warm-up and a decay to almost zero, loss on the reply only, one thread,
fp32; saved as bf16. The number of steps is fixed per size, so that a build does not depend on the machine's speed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import Empty
from typing import Any

import torch
from rich.progress import Progress
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3_5ForConditionalGeneration

from harness.builders.tiny.corpus import RECIPES, Example, examples
from harness.builders.tiny.tokenizer import chat_frame, make_processor, make_tokenizer
from harness.config.schema import ModelConfig
from harness.errors import UserError, did_you_mean
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.loading import load_tokenizer
from harness.models.tiny import SIZES
from harness.models.tiny.shapes import SHAPES, make_config
from harness.models.vision import MediaInputs
from harness.types import Prompt
from methods.prompts import user_turn

STEPS = {"xs": 9000, "s": 6000, "m": 5000, "teacher": 5000, "hybrid": 300}
BATCH_TOKENS = 1024
BUCKET = 512
"""Examples that are sorted by length together."""
LEARNING_RATE = 2e-3
WARMUP = 40
FLOOR = 0.03


@dataclass(frozen=True)
class Batch:
    """B sequences of T tokens, padded on the right; `is_reply_BT` marks the tokens that are learned."""

    ids_BT: torch.Tensor
    mask_BT: torch.Tensor
    is_reply_BT: torch.Tensor
    media: list[MediaInputs | None]


def build(
    sizes: Sequence[str],
    out_dir: str | Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    num_processes: int | None = None,
    progress: bool = True,
) -> None:
    """Pre-train `sizes` and write each to `out_dir/<size>/`, two at a time where there are two cores.

    `steps` replaces the number of steps of every size. Raises UserError for an unknown size.
    """
    for size in sizes:
        if size not in SIZES:
            raise UserError(f"there is no tiny model '{size}'.{did_you_mean(size, SIZES)}")
    workers = min(num_processes or 2, os.cpu_count() or 1, len(sizes))
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(workers, mp_context=context) as pool,
        Progress(disable=not progress) as bars,
    ):
        reports = manager.Queue()
        tasks = {size: bars.add_task(f"tiny:{size}", total=STEPS[size] if steps is None else steps) for size in sizes}
        # Longest first, so that no core is left alone with it at the end.
        order = sorted(sizes, key=lambda size: -STEPS[size] * SHAPES[size].hidden)
        futures = [pool.submit(_job, size, out_dir, steps, seed, reports) for size in order]
        while not all(future.done() for future in futures) or not reports.empty():
            try:
                size, step, loss = reports.get(timeout=0.2)
            except Empty:
                continue
            bars.update(tasks[size], completed=step, description=f"tiny:{size} loss {loss:.3f}")
        for future in futures:
            future.result()


def train(
    size: str, *, steps: int, seed: int = 0, report: Callable[[int, float], None] | None = None
) -> tuple[Qwen3_5ForConditionalGeneration, dict[str, float]]:
    """Pre-train one size from seeded random weights; with the cost (steps, tokens, CPU seconds, last loss)."""
    chat = make_chat()
    model = make_model(size, make_tokenizer(), seed=seed)
    model.train()
    language_model = LanguageModel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    started, num_tokens, loss_mean = time.process_time(), 0, 0.0
    for step, batch in enumerate(islice(batches(size, chat, seed), steps)):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * schedule(step, steps)
        loss = reply_loss(language_model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        num_tokens += batch.ids_BT.numel()
        loss_mean = loss.item() if step == 0 else 0.98 * loss_mean + 0.02 * loss.item()
        if report is not None and (step % 20 == 19 or step == steps - 1):
            report(step + 1, loss_mean)
    seconds = round(time.process_time() - started, 1)
    cost = {"steps": steps, "tokens": num_tokens, "cpu_seconds": seconds, "loss": round(loss_mean, 4)}
    return model.eval(), cost


def make_chat() -> Chat:
    """A chat with the family's tokenizer, template and processor, which it reads from a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        make_processor(make_tokenizer()).save_pretrained(folder)
        (Path(folder) / "config.json").write_text('{"model_type": "qwen3_5"}')
        config = ModelConfig(name="tiny", path=folder)
        chat = Chat(load_tokenizer(config), config)
        assert chat.vision  # read while the folder is there
    return chat


def make_model(size: str, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> Qwen3_5ForConditionalGeneration:
    """Random weights of one size, fp32."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen3_5ForConditionalGeneration(make_config(size, tokenizer))


def schedule(step: int, steps: int) -> float:
    """Linear warm-up, then (1 - t)^0.8 down to a floor."""
    return min((step + 1) / WARMUP, max(FLOOR, (1 - step / steps) ** 0.8))


def reply_loss(model: LanguageModel, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy of the reply tokens, through the forward pass that runs use."""
    hidden_BTH = model.hidden(batch.ids_BT, batch.mask_BT, media=batch.media)
    learned_BT = batch.is_reply_BT[:, 1:]
    head: Any = model.module.get_output_embeddings()
    return cross_entropy(head(hidden_BTH[:, :-1][learned_BT]), batch.ids_BT[:, 1:][learned_BT])


def batches(size: str, chat: Chat, seed: int) -> Iterator[Batch]:
    """Endless batches of at most `BATCH_TOKENS` tokens, padding included, of sequences of similar length."""
    stream = examples(RECIPES[size], seed)
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows = sorted((_row(chat, example) for example in islice(stream, BUCKET)), key=lambda row: len(row.ids))
        cut = list(_cut(rows))
        for i in torch.randperm(len(cut), generator=generator).tolist():
            yield _pad(cut[i])


def save(model: Qwen3_5ForConditionalGeneration, size: str, folder: Path, *, seed: int, cost: dict[str, float]) -> None:
    """Write bf16 weights, tokenizer, processor, generation configuration and `build.json` (cost, seed)."""
    tokenizer = make_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.bfloat16()
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    record: dict[str, Any] = {"size": size, "seed": seed, **cost}
    (folder / "build.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "model.safetensors").chmod(0o644)  # it comes out readable by its owner only, which a wheel would keep


def _job(size: str, out_dir: str | Path, steps: int | None, seed: int, reports: Any) -> None:
    torch.set_num_threads(1)  # sums in another order, with more threads, would give other weights
    model, cost = train(
        size,
        steps=STEPS[size] if steps is None else steps,
        seed=seed,
        report=lambda step, loss: reports.put((size, step, loss)),
    )
    save(model, size, Path(out_dir) / size, seed=seed, cost=cost)


@dataclass(frozen=True)
class Row:
    """An example as ids; the first `num_prompt` are not learned."""

    ids: list[int]
    num_prompt: int
    media: MediaInputs | None


def _row(chat: Chat, example: Example) -> Row:
    reply = chat.tokenizer(example.reply + str(chat.tokenizer.eos_token)).input_ids
    if example.question is None or not (example.question.images or example.question.video):
        # Rendering the template once, not per example, makes a corpus of text in seconds.
        before, after = chat_frame(chat.tokenizer)
        prompt, media = chat.tokenizer(before + example.turn + after).input_ids, None
    else:
        asked = Prompt(uid="", question=example.question, messages=user_turn(example.question, example.turn))
        packed = chat.pack(asked)
        prompt, media = packed.ids, None if packed.media is None else packed.media.inputs()
    return Row([*prompt, *reply], len(prompt), media)


def _cut(rows: Sequence[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(row.ids) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _pad(rows: Sequence[Row]) -> Batch:
    length = max(len(row.ids) for row in rows)
    ids_BT = torch.zeros((len(rows), length), dtype=torch.long)
    mask_BT = torch.zeros((len(rows), length), dtype=torch.long)
    is_reply_BT = torch.zeros((len(rows), length), dtype=torch.bool)
    for i, row in enumerate(rows):
        end = len(row.ids)
        ids_BT[i, :end] = torch.tensor(row.ids)
        mask_BT[i, :end] = 1
        is_reply_BT[i, row.num_prompt : end] = True
    return Batch(ids_BT, mask_BT, is_reply_BT, [row.media for row in rows])
