"""One whole ZPPO step on one GPU, its memory and times beside what `zppo plan` expects.

    python -m benchmarks.gpu_step --gpu H100-80GB      # the shape of Qwen3.5-0.8B, responses of 2,048 tokens
    python -m benchmarks.gpu_step --device cpu --shape tiny:hybrid --response-tokens 64 --batch-size 4

Student and teacher have random weights and the tiny tokenizer, whose vocabulary is filled up to the shape's own (but
for 70 rows that pad it), so hardly a reply ends or is right: responses are as long as they may be, which is what the
plan assumes. Rewards are coin flips and every rewrite counts as a summary at its limit; all else is the harness's own:
ZPPO's `collect` and `credit`, the transformers engine, four updates. The teacher, of the student's shape, shares the
GPU. Memory is what torch allocates on a GPU, and what the process has grown by on a CPU.

Expected times use the plan's assumptions (`zppo plan --help`) but for --mfu, --bandwidth and --max-steps-per-second.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

from harness.config.compose import compose
from harness.config.deployment import build_method
from harness.config.gpus import GPUS
from harness.config.schema import ModelConfig, RunConfig, from_hydra
from harness.data.arithmetic import make_questions
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.loading import load_tokenizer
from harness.models.shapes import ModelShape, config_of
from harness.models.tiny import tiny_path
from harness.preflight.plan.cells import Plan, plan_cell
from harness.preflight.plan.counting import Assumptions
from harness.rewards.workers import Grader
from harness.rollout.actors import LiveActors
from harness.rollout.transformers_engine import TransformersEngine
from harness.testing.checks import peak_memory
from harness.training.dealing import deal, mini_batches
from harness.training.memory import GB, memory_text
from harness.training.update import Updater
from harness.types import Prompt, Question, QuestionBatch, ReplayedQuestion, Rewrite, RolloutGroup, Sampler
from methods.base import Method

PADDING_ROWS = 70


@dataclass
class Batch:
    new: Sequence[Question]
    replayed: Sequence[ReplayedQuestion] = ()
    step: int = 1
    num_steps: int = 2

    def more(self, num_questions: int) -> list[Question]:
        return make_questions([2], num_questions, seed=9, split="train")


@dataclass
class Clock:
    """Seconds by part, and the highest memory in bytes."""

    device: str
    base: int = field(default_factory=lambda: psutil.Process().memory_info().rss)
    """Of a process on a CPU before there are models."""
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    peaks: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def measuring(self, part: str) -> Iterator[None]:
        cuda = self.device == "cuda"
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        before, start = psutil.Process().memory_info().rss, time.perf_counter()
        with peak_memory() as rise:
            yield
            if cuda:
                torch.cuda.synchronize()
        self.seconds[part] += time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated() if cuda else before + rise[0] - self.base
        self.peaks[part] = max(self.peaks[part], peak)


class CoinActors(LiveActors):
    """The actors of a run whose rewards are coin flips and whose rewrites are all accepted."""

    coins = np.random.default_rng(0)

    def _grade(self, group: RolloutGroup) -> None:
        for rollout in group.rollouts:
            right = bool(self.coins.random() < 0.5)
            rollout.reward, rollout.verdict = float(right), "correct" if right else "wrong"
            rollout.answer = group.prompt.question.answer if right else str(rollout.index)

    def rewrite(
        self, prompts: Sequence[Prompt], *, tag: str, max_tokens: int, sample: bool = False, budget: int | None = None
    ) -> list[Rewrite]:
        written = super().rewrite(prompts, tag=tag, max_tokens=max_tokens, sample=sample, budget=budget)
        text = "1" * max_tokens  # a token a digit
        return [
            Rewrite(uid=rewrite.uid, text=text, answer=None, same_answer=True, truncated=False) for rewrite in written
        ]


def filled_tokenizer(folder: Path, num_rows: int) -> None:
    """The tiny tokenizer in `folder`, with pieces that no text has up to `num_rows` less `PADDING_ROWS`."""
    for file in tiny_path("s").iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    first = 1 + max([*vocabulary.values(), *(token["id"] for token in content["added_tokens"])])
    vocabulary |= {f"unused{i}": i for i in range(first, num_rows - PADDING_ROWS)}
    path.write_text(json.dumps(content), encoding="utf-8")


def make_model(described: dict, chat: Chat, device: str, dtype: torch.dtype) -> LanguageModel:
    """Random weights of this shape. A trained student has fp32 weights and computes in bf16 on a GPU."""
    vocabulary = chat.tokenizer.get_vocab()
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    ids = {key: vocabulary[token] for key, token in names.items()}
    config = Qwen3_5Config(**{**described, **ids})
    with torch.device(device):
        module = Qwen3_5ForConditionalGeneration(config).to(dtype).eval()
    compute = torch.bfloat16 if device == "cuda" and dtype == torch.float32 else None
    return LanguageModel.for_chat(module, chat, compute_dtype=compute)


def step(
    config: RunConfig, method: Method, actors: LiveActors, updater: Updater, clock: Clock, questions: Sequence[Question]
) -> None:
    actors.begin(1)
    batch: QuestionBatch = Batch(questions)
    with clock.measuring("rollout"):
        groups = method.collect(batch, actors, np.random.default_rng(0))
    samples = method.credit(groups)
    updater.fill_old_logprobs(samples)
    uids = list(dict.fromkeys(sample.uid for sample in samples))
    dealt = deal(uids, num_batches=method.config.updates_per_step, rng=np.random.default_rng(1))
    parts = mini_batches(samples, dealt)
    for part in parts:
        if part:
            with clock.measuring("update"):
                updater.update(part)


def expected(config: RunConfig, method: Method, shape: ModelShape, args: argparse.Namespace, kernels: str) -> Plan:
    assumed = Assumptions(
        prompt_tokens=args.prompt_tokens, accuracy=0.5, teacher_accuracy=0.5, mfu=args.mfu, bandwidth=args.bandwidth,
        max_steps_per_second=args.max_steps_per_second,
    )  # fmt: skip
    return plan_cell("zppo", 1, config, method, (shape, shape), assumed, "fla" if kernels == "fla" else "torch")


def main() -> None:
    args = parse_args()
    described = config_of(ModelConfig(name="student", path=args.shape))
    shape = ModelShape.read(described, args.shape)
    options = {
        "method": "zppo",
        "method.replay": "false",
        "steps": 1,
        "recipe": "paper",
        "rollout": "transformers",
        "rollout.max_response_tokens": args.response_tokens,
        "rollout.max_prompt_tokens": 256,
        "data.batch_size": args.batch_size,
        "update.gradient_checkpointing": str(args.gradient_checkpointing).lower(),
        "update.micro_batch_tokens": args.micro_batch_tokens,
        "update.optimizer": args.optimizer,
        "student.dtype": "bfloat16" if args.device == "cuda" else "float32",
        "student.path": args.shape,
    } | ({"cluster.gpu": args.gpu} if args.gpu else {})
    config = from_hydra(compose([f"{key}={value}" for key, value in options.items()]))
    method = build_method(config)
    assert method is not None
    clock = Clock(args.device)
    with tempfile.TemporaryDirectory() as folder, Grader(config.reward) as grader:
        filled_tokenizer(Path(folder), shape.vocab)
        model = ModelConfig(name="student", path=folder)
        chat = Chat(load_tokenizer(model), model)
        student = make_model(described, chat, args.device, torch.float32)
        teacher = make_model(described, chat, args.device, torch.bfloat16 if args.device == "cuda" else torch.float32)
        names: tuple[tuple[Sampler, LanguageModel], ...] = (("student", student), ("teacher", teacher))
        engines = {name: TransformersEngine(lm, chat, name, config.rollout.max_sequences) for name, lm in names}
        actors = CoinActors(
            student=engines["student"],
            teacher=engines["teacher"],
            chat=chat,
            grader=grader,
            config=config.rollout,
            seed=0,
        )
        updater = Updater(student=student, teacher=None, method=method, config=config.update, temperature=1.0)
        print(memory_text(student, config.update))
        questions = make_questions([1, 2, 3], args.batch_size, seed=0, split="train")
        for _ in range(args.steps):
            clock.seconds.clear()
            step(config, method, actors, updater, clock, questions)
        actors.close()
        report(clock, expected(config, method, shape, args, args.kernels), actors.counts, args)


def report(clock: Clock, plan: Plan, counts: dict[str, float], args: argparse.Namespace) -> None:
    """What was measured beside what was expected, of the last step."""
    assert plan.memory is not None and plan.count is not None and plan.cost is not None
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(
        f"{name}, torch {torch.__version__}, {args.shape}, {args.batch_size} questions, {args.response_tokens} tokens"
    )
    print(f"{'':22}{'measured':>10} {'expected':>10} {'ratio':>7}")

    def line(what: str, measured: float, wanted: float | None, unit: str) -> None:
        ratio = f"{measured / wanted:7.2f}" if wanted else f"{'-':>7}"
        print(f"{what:22}{measured:10.2f} {wanted if wanted is not None else float('nan'):10.2f} {ratio}  {unit}")

    wanted = plan.cost.step_seconds or {}
    for part, phase in (("rollout", "sampling"), ("update", "update")):
        line(f"memory, {phase}", clock.peaks[part] / GB, _allocated(plan.memory[phase]) / GB, "GB")
    for part in ("rollout", "update"):
        line(f"time, {part}", clock.seconds[part], wanted.get(part), "s")
    for key in ("tokens/student_generated", "tokens/teacher_generated", "tokens/student_prompt"):
        line(key, counts.get(key, 0.0) / 1e3, plan.count.tokens.get(key, 0.0) / 1e3, "thousand")
    generated = counts["tokens/student_generated"] + counts.get("tokens/teacher_generated", 0.0)
    print(f"{generated / clock.seconds['rollout']:.0f} tokens a second sampled", end="")
    gpu = GPUS.get(args.gpu)
    if gpu is not None:
        flops = plan.cost.step_flops["flops/student_update"]
        print(f", updates at {flops / clock.seconds['update'] / (gpu.bf16_tflops * 1e12):.1%} of the peak", end="")
    print()


def _allocated(parts: dict[str, float]) -> float:
    return sum(size for part, size in parts.items() if part != "runtime")


def parse_args() -> argparse.Namespace:
    default = Assumptions()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--shape", default="Qwen/Qwen3.5-0.8B", help="a model whose config.json is known, or tiny:<size>"
    )
    parser.add_argument("--gpu", choices=("", *GPUS), default="", help="for expected times")
    parser.add_argument("--response-tokens", type=int, default=2048)
    parser.add_argument("--prompt-tokens", type=int, default=24, help="mean length of the generated questions' prompts")
    parser.add_argument("--batch-size", type=int, default=8, help="questions")
    parser.add_argument("--micro-batch-tokens", type=int, default=8192)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--gradient-checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--kernels", choices=("torch", "fla"), default="torch", help="what transformers finds installed"
    )
    parser.add_argument("--steps", type=int, default=2, help="the last is reported")
    parser.add_argument("--mfu", type=float, default=default.mfu)
    parser.add_argument("--bandwidth", type=float, default=default.bandwidth)
    parser.add_argument("--max-steps-per-second", type=float, default=default.max_steps_per_second)
    return parser.parse_args()


if __name__ == "__main__":
    main()
