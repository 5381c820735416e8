"""Sampling speed: the engine, its reference path, transformers' `generate` and vLLM, interleaved on the same prompts.

    python -m benchmarks.rollout --model outputs/smollm2_135m --vllm .venv-vllm/bin/python
    python -m benchmarks.rollout --model tiny:s --threads 1 --prompts 32 --max-sequences 256 --sides plain generate
    python -m benchmarks.rollout --model outputs/smollm2_135m --growth

Each side has a process of its own, which waits while the others work; the first round warms up and does not count.
All sample at temperature 1 from the same weights and prompts, at most --max-sequences at a time. End tokens and banned
ids are the same, too. vLLM is `LLM.generate` with its defaults otherwise, in the environment of --vllm (`make
test-vllm` makes one). `generate` and vLLM return no log-probabilities, the engine does. They draw different
completions, so tokens per second compare, not seconds. `engine` is what a run samples with; `plain` is the model's own
forward pass, which small models take anyway. --growth shows how speed and memory grow.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.rollout_sides import SIDES, Setting

Row = dict[str, Any]
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile")
VLLM = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""By itself vLLM leaves one core to the process that talks to its engine, which of two cores is half."""
GROWTH: dict[str, Sequence[int]] = {
    "max_sequences": (8, 64, 256),
    "max_new_tokens": (128,),
    "more_terms": (100, 400),
    "vocab": (151_936, 248_320),
}
"""What is varied, one at a time, around 8 prompts x 8 rollouts, 64 at a time, 32 new tokens."""


class Side:
    """A side in its process, which ends with the context."""

    def __init__(self, name: str, setting: Setting, python: str, log: Path) -> None:
        self.name = name
        self._log = log
        threads = str(setting.threads)
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
        if name == "vllm":
            environment |= VLLM
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [python, "-m", "benchmarks.rollout_sides", name, json.dumps(asdict(setting))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment,
            )  # fmt: skip
        self.about = self._read()

    def run(self) -> Row:
        """One pass."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Row:
        """Its next line of JSON; what a library prints is passed over. Ends the program if it has died."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        tail = "\n".join(self._log.read_text().splitlines()[-30:])
        sys.exit(f"{tail}\n{self.name} has ended with {self._process.wait()}, see above")

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def opened(names: Sequence[str], setting: Setting, vllm: str | None) -> Iterator[list[Side]]:
    """The sides, ready. They open one after the other; vLLM is given the ids that the engine reads."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = []
        for name in names:
            python = sys.executable
            if name == "vllm":
                python = vllm or sys.exit("--vllm names the Python of an environment that has vLLM")
                if not sides:
                    sys.exit("name engine or plain before vllm: its prompts come from there")
                about = sides[0].about
                setting = replace(setting, **{key: about[key] for key in ("prompt_ids", "stop_ids", "banned_ids")})
            sides.append(Side(name, setting, python, folder / f"{name}.log"))
            stack.callback(sides[-1].end)
        yield sides


def race(sides: Sequence[Side], rounds: int) -> dict[str, list[Row]]:
    """The passes of all sides in turn, without the warm-up."""
    rows: dict[str, list[Row]] = {side.name: [] for side in sides}
    for number in range(rounds + 1):
        for side in sides:
            row = side.run()
            row["speed"] = row["num_tokens"] / row["seconds"]
            print(
                f"  {number or 'warm-up':>7} {side.name:9} {row['num_tokens']:6} tokens {row['seconds']:7.2f} s "
                f"{row['speed']:7.0f} tokens/s  load {load()}",
                flush=True,
            )
            if number:
                rows[side.name].append(row)
    return rows


def table(rows: dict[str, list[Row]]) -> str:
    """Medians, and their ratios to the first side."""
    lines = [f"{'':9} {'tokens/s':>9} {'least':>7} {'most':>7} {'tokens/CPU-s':>13} {'peak MB':>8} {'ratio':>6}"]
    first = None
    for name, side in rows.items():
        speeds = [row["speed"] for row in side]
        median = statistics.median(speeds)
        first = first or median
        cpu = statistics.median(row["num_tokens"] / row["cpu"] for row in side)
        peak = max(row["peak_mb"] for row in side)
        numbers = f"{median:9.0f} {min(speeds):7.0f} {max(speeds):7.0f} {cpu:13.0f} {peak:8.0f}"
        lines.append(f"{name:9} {numbers} {median / first:6.2f}")
    return "\n".join(lines)


def growth(setting: Setting) -> str:
    """Speed and peak of the engine, of which one thing at a time is varied. Each has a process of its own."""
    lines = [f"{'':15} {'value':>8} {'tokens/s':>9} {'peak MB':>8}"]
    for name, values in GROWTH.items():
        for value in values:
            changed = replace(setting, **{name: value})
            changed = replace(changed, prompts=max(setting.prompts, changed.max_sequences // setting.rollouts))
            with opened(["engine"], changed, None) as (side,):
                side.run()
                row = side.run()
            lines.append(f"{name:15} {value:8} {row['num_tokens'] / row['seconds']:9.0f} {row['peak_mb']:8.0f}")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def machine() -> str:
    """Processor, which of the vector instructions that matter it has, and the load."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = dict(line.split(":", 1) for line in text.replace("\t", "").splitlines() if ":" in line)
    flags = [flag for flag in FLAGS if flag in found.get("flags", "").split()]
    return f"{os.cpu_count()} x {found.get('model name', 'unknown').strip()} ({' '.join(flags)}); load {load()}"


def load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def main() -> None:
    args = parse_args()
    setting = Setting(
        model=args.model, dtype=args.dtype, device=args.device, threads=args.threads, prompts=args.prompts,
        more_terms=0, rollouts=args.rollouts, max_new_tokens=args.max_new_tokens, max_sequences=args.max_sequences,
        block_size=args.block_size, vocab=None,
    )  # fmt: skip
    print(machine())
    if args.growth:
        print(growth(replace(setting, prompts=8)))
        return
    names = args.sides or ["engine", "plain", "generate", *(["vllm"] if args.vllm else [])]
    with opened(names, setting, args.vllm) as sides:
        versions = {name: number for side in sides for name, number in side.about["versions"].items()}
        print(", ".join(f"{name} {number}" for name, number in versions.items()))
        print(f"{args.model}, {args.dtype}, {args.threads} threads, {args.prompts} prompts x {args.rollouts} rollouts")
        print(f"at most {args.max_new_tokens} new tokens, {args.max_sequences} sequences at a time", flush=True)
        rows = race(sides, args.rounds)
    print(table(rows))
    print(machine())


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny:s", help="a folder, a hub id or tiny:<size>")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), help="default: all that can run")
    parser.add_argument("--vllm", default=os.environ.get("VLLM_PYTHON"), help="Python that has vLLM ($VLLM_PYTHON)")
    parser.add_argument("--block-size", type=int, help="of vLLM's cache (its default: 128)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--max-sequences", type=int, default=64, help="decoded at a time")
    parser.add_argument("--rounds", type=int, default=5, help="without the warm-up")
    parser.add_argument("--growth", action="store_true", help="how the engine's speed and memory grow")
    return parser.parse_args()


if __name__ == "__main__":
    main()
