"""Time of each stage of an evaluation of 2,000 rows, text and pictures: `python -m benchmarks.evaluation`.

The data are made up, the student is tiny, the judge compares strings on loopback: what is measured is everything
around a model. Quote ratios, with the load of the machine.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
from PIL import Image

from harness.config.evaluation import EvalJudgeConfig, MediaConfig
from harness.config.schema import EvalConfig, ModelConfig, RewardConfig
from harness.evaluation.evaluate import evaluate
from harness.evaluation.suites import load_suite
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.loading import load_model, load_tokenizer
from harness.rewards.workers import Grader
from harness.rollout.transformers_engine import TransformersEngine
from tests.support.judge_server import serve

CHOICES = ["red", "green", "blue", "white"]


def write_mmlu(root: Path, num: int) -> None:
    rng = random.Random(0)
    rows = [
        {"question": f"Which word is number {i}?", "subject": "lists", "choices": CHOICES, "answer": rng.randrange(4)}
        for i in range(num)
    ]
    _write(root / "cais" / "mmlu", "all", "test", datasets.Dataset.from_list(rows))


def write_ai2d(root: Path, num: int) -> None:
    rng = random.Random(0)
    rows = []
    for i in range(num):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 48), tuple(rng.randrange(256) for _ in range(3))).save(buffer, "PNG")
        image = {"bytes": buffer.getvalue(), "path": None}
        rows.append({"question": f"Colour {i}?", "options": CHOICES, "answer": str(rng.randrange(4)), "image": image})
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "options": datasets.Sequence(datasets.Value("string")),
            "answer": datasets.Value("string"),
            "image": datasets.Image(),
        }
    )
    _write(root / "lmms-lab" / "ai2d", "default", "test", datasets.Dataset.from_list(rows, features=features))


def _write(folder: Path, config: str, split: str, table: datasets.Dataset) -> None:
    (folder / config).mkdir(parents=True)
    table.to_parquet(folder / config / f"{split}-00000-of-00001.parquet")
    files = f"  data_files:\n  - split: {split}\n    path: {config}/{split}-00000-of-00001.parquet\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n{files}---\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    num = parser.parse_args().rows
    model = ModelConfig(name="tiny_xs", path="tiny:xs", dtype="float32")
    chat = Chat(load_tokenizer(model), model)
    engine = TransformersEngine(LanguageModel.for_chat(load_model(model, "cpu"), chat), chat, "student", 256)
    print(f"{num} rows, tiny_xs, at most 32 tokens each; load of the machine {os.getloadavg()[0]:.1f}")
    print(f"{'column':<8}{'stage':<34}{'seconds':>8}{'rows/s':>9}")
    with tempfile.TemporaryDirectory() as folder, serve() as server, Grader(RewardConfig()) as grader:
        root = Path(folder) / "data"
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        write_mmlu(root, num)
        write_ai2d(root, num)
        for column in ("mmlu", "ai2d"):
            media = MediaConfig(min_pixels=256, max_pixels=65_536)
            config = EvalConfig(
                suite="paper31", columns=[column], data_root=str(root), max_response_tokens=32, media=media
            )
            judged = replace(config, stage="judge", judge=EvalJudgeConfig(url=server.url))
            out = Path(folder) / column

            def run(chosen: EvalConfig, out: Path = out) -> None:
                evaluate(chosen, engine, grader, out_dir=out, model_name="tiny_xs", identity="tiny_xs")

            stages: list[tuple[str, Callable[[], object]]] = [
                ("load the questions", lambda config=config: load_suite(config)),
                ("load, generate, mark", lambda config=config: run(replace(config, stage="generate"))),
                ("the same from the store, and write", lambda config=config: run(replace(config, stage="judge"))),
                ("the same, every row judged", lambda judged=judged: run(judged)),
                ("the same, verdicts from the cache", lambda judged=judged: run(judged)),
            ]
            for name, stage in stages:
                started = time.perf_counter()
                stage()
                seconds = time.perf_counter() - started
                print(f"{column:<8}{name:<34}{seconds:>8.2f}{num / seconds:>9.0f}", flush=True)


if __name__ == "__main__":
    main()
