"""Images and video: resident memory over many pictures, and the cost of a mixed batch against text of the same length.

`python -m benchmarks.media [--images 10000] [--repeats 7] [--model tiny:s]`. Memory: that many PNG files of 256x256
random pixels are written, read by the JSONL source, measured as a run does before it starts, and then packed once more
in batches of 48, as steps do. Time: one update (forward, backward, optimizer) and one generation of a group of 8 for 16
prompts, text only and a third each of text, image and video, padded with text so that both have the same number of
tokens; interleaved, medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from harness.config.data import DataConfig
from harness.config.evaluation import MediaConfig
from harness.config.schema import ModelConfig, UpdateConfig
from harness.data.sources import load_questions
from harness.data.synthetic import make_questions
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.loading import load_model, load_tokenizer
from harness.rollout.base import Sampling
from harness.rollout.transformers_engine import TransformersEngine
from harness.training.metrics import process
from harness.training.update import Updater
from harness.types import MediaLimits, Question, TrainingSample
from methods import registry
from methods.base import plain_prompt
from methods.samples import rollout_sample

BATCH = 48
SIDE = 256
LIMITS = MediaLimits(min_pixels=256, max_pixels=65_536)


def resident_mb() -> float:
    return process()["memory/resident_mb"]


def memory(chat: Chat, num_images: int) -> None:
    """Print the resident size while a run over `num_images` files goes on."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        lines = []
        for i in range(num_images):
            pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(folder) / f"{i}.png", compress_level=1)
            lines.append(json.dumps({"question": "What is this?", "answer": "1", "images": f"{i}.png"}))
        path = Path(folder) / "train.jsonl"
        path.write_text("\n".join(lines))
        media = MediaConfig(min_pixels=256, max_pixels=65_536)
        config = DataConfig(source="jsonl", path=str(path), media=media)
        print(f"{num_images} images of {SIDE}x{SIDE}, before: {resident_mb():.0f} MiB")
        started, measured = time.perf_counter(), 0

        def measure(question: Question) -> int:
            nonlocal measured
            measured += 1
            if measured % (num_images // 5) == 0:
                print(f"  measured {measured}: {resident_mb():.0f} MiB")
            return chat.num_tokens_of(plain_prompt(question))

        loaded = load_questions(
            config, gold_errors=lambda questions: [None] * len(questions), measure=measure, max_prompt_tokens=4096
        )
        print(f"  {len(loaded.questions)} questions in {time.perf_counter() - started:.0f} s")
        for start in range(0, num_images, BATCH):
            batch = [chat.pack(plain_prompt(question)) for question in loaded.questions[start : start + BATCH]]
            pixels = [packed.media.inputs() for packed in batch if packed.media is not None]
            if start // BATCH % (num_images // BATCH // 5) == 0:
                size = sum(item.num_bytes for item in pixels) / 2**20
                print(f"  packed {start + len(batch)}: {resident_mb():.0f} MiB (this batch {size:.0f} MiB)")


def prompts_of_equal_length(chat: Chat) -> dict[str, list[Question]]:
    """16 questions of text, and 16 of which two thirds show something, each as long as its partner in tokens."""
    tasks = ["arithmetic", "bar_chart", "bar_clip"]
    mixed = make_questions(tasks, [4], 16, seed=0, split="train", limits=LIMITS)
    text = []
    for question in mixed:
        wanted = chat.num_tokens_of(plain_prompt(question))
        padded = Question(id=question.id, text="Compute 1", answer="1")
        missing = wanted - chat.num_tokens_of(plain_prompt(padded))
        text.append(Question(id=question.id, text="Compute 1" + "1" * missing, answer="1"))
        assert chat.num_tokens_of(plain_prompt(text[-1])) == wanted
    return {"text": text, "mixed": mixed}


def speed(chat: Chat, model: LanguageModel, repeats: int) -> None:
    """Print medians of update and generation for both batches, interleaved."""
    method = registry.build({"name": "grpo", "class": "grpo"})
    assert method is not None
    config = UpdateConfig(learning_rate=0.0)
    updater = Updater(student=model, teacher=None, method=method, config=config, temperature=1.0)
    engine = TransformersEngine(model, chat, sampler="student", max_sequences=256)
    # No stop token: both batches generate the same number of tokens.
    chat.stop_ids = frozenset()
    sampling = Sampling(num_rollouts=8, max_new_tokens=24)
    questions = prompts_of_equal_length(chat)
    samples: dict[str, list[TrainingSample]] = {}
    for name, asked in questions.items():
        groups = engine.generate([plain_prompt(question) for question in asked], sampling)
        samples[name] = [
            rollout_sample(group.uid, rollout, advantage=(-1.0) ** rollout.index)
            for group in groups
            for rollout in group.rollouts
        ]
        updater.fill_old_logprobs(samples[name])
    num_tokens = {name: sum(len(s.token_ids) for s in rows) for name, rows in samples.items()}
    assert len(set(num_tokens.values())) == 1, num_tokens
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(repeats):
        for name in questions:
            started = time.perf_counter()
            updater.update(samples[name])
            times.setdefault(("update", name), []).append(time.perf_counter() - started)
            started = time.perf_counter()
            list(engine.generate([plain_prompt(question) for question in questions[name]], sampling))
            times.setdefault(("generation", name), []).append(time.perf_counter() - started)
    generated = 16 * 8 * 24
    load, threads = os.getloadavg()[0], torch.get_num_threads()
    print(f"{num_tokens['text']} tokens in 128 sequences; load {load:.1f}, {threads} threads")
    for part, count in (("update", num_tokens["text"]), ("generation", generated)):
        medians = {name: statistics.median(times[part, name]) for name in questions}
        shown = ", ".join(f"{name} {m:.3f} s ({count / m:,.0f} tokens/s)" for name, m in medians.items())
        print(f"{part}: {shown}, mixed/text {medians['mixed'] / medians['text']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--model", default="tiny:s")
    arguments = parser.parse_args()
    config = ModelConfig(name="model", path=arguments.model, dtype="float32")
    chat = Chat(load_tokenizer(config), config)
    memory(chat, arguments.images)
    speed(chat, LanguageModel.for_chat(load_model(config, "cpu"), chat), arguments.repeats)


if __name__ == "__main__":
    main()
