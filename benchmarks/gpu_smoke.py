"""The first ten minutes on a GPU machine, in order; each step has a verdict and its time, and one table is printed.

    python -m benchmarks.gpu_smoke                # on a GPU; without one it says so and ends with 0
    python -m benchmarks.gpu_smoke --device cpu   # the same steps where there is none, as the tests run them

A step whose packages are not installed is left out and says which one it lacks: torch and transformers alone run the
layers and the update. Exit code 1 where a step failed. Nothing is downloaded but the kernel of FP8 weights.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from harness.config.gpus import GPUS
from harness.errors import UserError, first_line
from harness.models.devices import device_of, use_device
from harness.models.kernels import has_fp8, missing_linear, try_fp8, try_linear

LINEAR_BOUND = 0.05
"""Largest difference of a bf16 layer by two kernels, relative to its largest gradient."""
FP8_BOUND = 0.08
TOKENS, REPEATS = 64, 5


@dataclass(frozen=True)
class Row:
    name: str
    verdict: str
    """`ok`, `FAILED` or `left out`."""
    seconds: float
    text: str


class LeftOut(Exception):
    """A step cannot be made here."""


def devices(device: str) -> str:
    """Every parameter of a loaded model is on the numbered device, also those that library threads copied."""
    from harness.config.schema import ModelConfig
    from harness.models.loading import load_model

    model = load_model(ModelConfig(name="s", path="tiny:hybrid", dtype="float32"), device)
    places = {str(parameter.device) for parameter in model.parameters()}
    if places != {device_of(device)}:
        raise UserError(f"parameters are on {', '.join(sorted(places))}, not on {device_of(device)}")
    return f"{sum(1 for _ in model.parameters())} parameters on {device_of(device)}"


def fp8(device: str) -> str:
    """One layer of FP8 weights against its product in fp32."""
    if not has_fp8():
        raise LeftOut("kernels is not installed")
    error = try_fp8(device)
    if not error < FP8_BOUND:
        raise UserError(f"the product is {error:.1%} off")
    return f"{error:.1%} from fp32"


def linear(device: str) -> str:
    """One linear-attention layer by what is installed, and by transformers' own code."""
    sizes = {"hidden": 1024, "num_tokens": 2048} if device != "cpu" else {"hidden": 64, "num_tokens": 70}
    times, found = [], []
    for plain in (False, True):
        found.append(try_linear(device, plain=plain, **sizes))  # compiles
        begin = _now(device)
        try_linear(device, plain=plain, **sizes)
        times.append(_now(device) - begin)
    gap = float((found[0] - found[1]).abs().max() / found[1].abs().max())
    if not gap < LINEAR_BOUND:
        raise UserError(f"the kernels' gradient is {gap:.1%} off transformers' own")
    what = f"without {' and '.join(missing_linear())}" if missing_linear() else "fla"
    return f"{what}: {times[0] * 1e3:.0f} ms, transformers' own {times[1] * 1e3:.0f} ms, {gap:.1%} apart"


def update(device: str) -> str:
    """Forward, backward and AdamW of a random Qwen3.5 under bf16 autocast, with its share of the GPU's peak."""
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    on_gpu = device != "cpu"
    hidden, layers, num_tokens = (1024, 8, 4096) if on_gpu else (64, 4, 64)
    config = Qwen3_5TextConfig(
        hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers, num_attention_heads=hidden // 64,
        num_key_value_heads=1, head_dim=64, vocab_size=8 * hidden, linear_num_key_heads=hidden // 64,
        linear_num_value_heads=hidden // 64, linear_key_head_dim=64, linear_value_head_dim=64,
    )  # fmt: skip
    model = Qwen3_5ForCausalLM(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    ids_1T = torch.arange(num_tokens, device=device)[None] % config.vocab_size
    seconds = 0.0
    for _ in range(REPEATS):
        begin = _now(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=on_gpu):
            loss = model(input_ids=ids_1T, labels=ids_1T).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds = _now(device) - begin
    if not bool(loss.isfinite()):
        raise UserError("the loss is not finite")
    flops = 6 * sum(parameter.numel() for parameter in model.parameters()) * num_tokens
    peak = _peak_flops(device)
    share = f", {flops / seconds / peak:.1%} of the peak" if peak else ""
    memory = f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB at most" if on_gpu else ""
    return f"{num_tokens / seconds:.0f} tokens a second, {flops / seconds / 1e12:.3g} TFLOP/s{share}{memory}"


def engine(device: str) -> str:
    """vLLM: start, transfer, probe, sleep, wake, transfer, probe, and greedy tokens against transformers."""
    try:
        import vllm  # noqa: F401
    except (ImportError, OSError) as error:
        raise LeftOut(f"vLLM: {first_line(error)}") from None
    from harness.config.engines import RolloutConfig, VllmConfig
    from harness.config.schema import ModelConfig, UpdateConfig
    from harness.data.arithmetic import make_questions
    from harness.models.chat import Chat
    from harness.models.forward import LanguageModel
    from harness.models.loading import load_model, load_tokenizer, resolve_path
    from harness.rollout.base import Sampling
    from harness.rollout.transformers_engine import TransformersEngine
    from harness.rollout.vllm_engine import VllmEngine
    from harness.training.transfer import Transfer
    from harness.training.update import Updater
    from methods.base import plain_prompt
    from methods.grpo import GRPO

    model = ModelConfig(name="s", path="tiny:hybrid", dtype="float32")
    chat = Chat(load_tokenizer(model), model)
    student = LanguageModel.for_chat(load_model(model, device), chat)
    config = RolloutConfig(max_sequences=32, vllm=VllmConfig(max_model_len=1024))
    own = VllmEngine(resolve_path(model), chat, sampler="student", model=model, config=config, empty=True)
    try:
        updater = Updater(
            student=student, teacher=None, method=GRPO(GRPO.Config()), config=UpdateConfig(), temperature=1.0
        )
        transfer = Transfer(
            own, student, logprobs=updater.logprobs, dtype="float32", temperature=1.0, timeout=300.0
        )  # fmt: skip
        gaps = [transfer(0)["transfer/probe_gap"]]
        own.sleep()
        gaps.append(transfer(1)["transfer/probe_gap"])
        prompts = [plain_prompt(question) for question in make_questions([1], 4, seed=0, split="train")]
        sampling = Sampling(temperature=0.0, max_new_tokens=TOKENS)
        theirs = TransformersEngine(student, chat, "student", 32)
        texts = [
            {group.uid: group.rollouts[0].completion_ids for group in one.generate(prompts, sampling)}
            for one in (own, theirs)
        ]
        same = sum(texts[0][uid] == texts[1][uid] for uid in texts[0])
        if same < len(prompts):
            raise UserError(f"{same} of {len(prompts)} greedy replies are those of transformers; probes {gaps}")
        return f"probe gaps {gaps[0]:.1e} and, after sleep, {gaps[1]:.1e}; greedy replies are those of transformers"
    finally:
        own.close()


def plan(device: str) -> str:
    """Updates and rollouts of one step at a shape, with memory and time next to the plan's (`benchmarks.gpu_step`)."""
    line = ["--device", "cuda" if device != "cpu" else "cpu"]
    if device == "cpu":
        line += ["--shape", "tiny:hybrid", "--response-tokens", "16", "--batch-size", "4", "--steps", "1"]
    elif name := _known_gpu(device):
        line += ["--gpu", name, "--kernels", "torch" if missing_linear() else "fla"]
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu_step", *line], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise LeftOut(last) if "ModuleNotFoundError" in last else UserError(last)
    return "\n".join(done.stdout.splitlines()[1:])


def zppo(device: str) -> str:
    """One step of `zppo train` with the tiny family."""
    from harness.app import main as app

    with tempfile.TemporaryDirectory() as folder:
        words = [
            "train", "method=zppo", "student=tiny_xs", "steps=1", "eval=none", "data.batch_size=2", "data.pool_size=8",
            "data.num_questions=16", "data.levels=[1]", "method.group_size=2", "method.teacher_group_size=2",
            "rollout.max_response_tokens=16", f"device={device}", f"outputs={folder}",
        ]  # fmt: skip
        with contextlib.redirect_stderr(io.StringIO()) as said:
            code = app(words)
    if code:
        raise UserError((said.getvalue().strip().splitlines() or [f"exit code {code}"])[-1])
    return "a step of zppo, its model saved"


STEPS: tuple[Callable[[str], str], ...] = (devices, engine, fp8, linear, update, zppo, plan)


def rows(device: str, steps: tuple[Callable[[str], str], ...] = STEPS) -> Iterator[Row]:
    """What each step gives. None of them keeps the next from being made."""
    for step in steps:
        begin = time.perf_counter()
        try:
            verdict, text = "ok", step(device)
        except (LeftOut, ModuleNotFoundError) as error:
            verdict, text = "left out", first_line(error)
        except Exception as error:
            verdict, text = "FAILED", first_line(error) if isinstance(error, UserError) else repr(error)[:300]
        yield Row(step.__name__, verdict, time.perf_counter() - begin, text)


def table(found: list[Row]) -> str:
    lines = [f"{'step':10}{'verdict':10}{'seconds':>8}  "]
    for row in found:
        first, *more = row.text.splitlines() or [""]
        lines += [f"{row.name:10}{row.verdict:10}{row.seconds:8.1f}  {first}", *(f"{'':30}{line}" for line in more)]
    return "\n".join(line.rstrip() for line in lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--steps", nargs="*", choices=[step.__name__ for step in STEPS], help="default: all of them")
    args = parser.parse_args(argv)
    if args.device != "cpu" and not torch.cuda.is_available():
        print("no GPU here: nothing was tried (--device cpu makes the same steps on a CPU)")
        return 0
    use_device(device := device_of(args.device))
    chosen = tuple(step for step in STEPS if args.steps is None or step.__name__ in args.steps)
    name = torch.cuda.get_device_name(device) if device != "cpu" else "CPU"
    found = list(rows(device, chosen))
    print(f"{name}, torch {torch.__version__}\n{table(found)}")
    return int(any(row.verdict == "FAILED" for row in found))


def _now(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def _known_gpu(device: str) -> str:
    """The name that `zppo plan` has for the GPU; empty for another."""
    here = torch.cuda.get_device_name(device).replace(" ", "") if device != "cpu" else ""
    memory = torch.cuda.get_device_properties(device).total_memory / 1e9 if here else 0.0
    near = [name for name in GPUS if name.partition("-")[0] in here]
    return min(near, key=lambda name: abs(GPUS[name].memory_gb - memory), default="")


def _peak_flops(device: str) -> float:
    name = _known_gpu(device)
    return GPUS[name].bf16_tflops * 1e12 if name else 0.0


if __name__ == "__main__":
    sys.exit(main())
