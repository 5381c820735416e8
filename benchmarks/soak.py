"""A long sweep whose launcher and one cell are killed: `python -m benchmarks.soak --outputs FOLDER [--steps 4000]`.

Runs methods with a replay buffer that is always full, kills the launcher and a cell with SIGKILL after `--kill-after`
seconds, launches the same command again, and reads the run folders: every step once, memory and open files over steps
(`soak.png`). On a study that is done it only reads.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

METHODS = ("zppo", "grpo_replay", "on_policy_kd_replay", "off_policy_kd_replay")
CAPACITY = 64
OPTIONS = [
    "student=tiny_xs", "eval=none", "data.batch_size=8", "data.levels=[2,3,4]", "rollout.max_response_tokens=24",
    "num_threads=1", "device=cpu", "checkpoint.every=100", "checkpoint.keep_last=2", "rollouts.keep=20",
    f"method.buffer_capacity={CAPACITY}", "method.group_size=4",
]  # fmt: skip
SERIES = {"memory/resident_mb": "resident MiB", "process/num_open_files": "open files", "buffer/size": "buffer"}
WARM_UP = 0.1
"""Share of a cell's steps in which caches fill; the rest is compared, its first fifth with its last."""


def command(outputs: Path, steps: int, jobs: int) -> list[str]:
    cells = [f"study={outputs.name}", f"outputs={outputs.parent}", f"method={','.join(METHODS)}"]
    size = [f"steps={steps}", f"data.num_questions={steps}", "data.pool_size=null", "data.epochs=8"]
    return [sys.executable, "-m", "harness.app", "train", "-m", f"--jobs={jobs}", *cells, *OPTIONS, *size]


def run(outputs: Path, steps: int, jobs: int, kill_after: float) -> None:
    """The sweep, killed once."""
    first = subprocess.Popen(command(outputs, steps, jobs))
    try:
        first.wait(kill_after)
    except subprocess.TimeoutExpired:
        cells = psutil.Process(first.pid).children()
        victims = [first.pid, *(cell.pid for cell in cells[:1])]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        first.wait()
        print(f"killed after {kill_after:g} s: the launcher and {len(victims) - 1} of {len(cells)} cells", flush=True)
    subprocess.run(command(outputs, steps, jobs), check=True)


def read(outputs: Path, steps: int) -> dict[str, list[dict[str, Any]]]:
    """The metrics of each cell. Raises AssertionError for a step that is missing or there twice."""
    cells = {}
    for method in METHODS:
        (folder,) = (outputs / method).glob("*/seed0")
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, steps + 1)), f"{method}: a step is missing or doubled"
        assert json.loads((folder / "run.json").read_text())["status"] == "done"
        cells[method] = rows
    return cells


def growth(values: list[float]) -> tuple[float, float]:
    """Medians of the first and of the last fifth behind the warm-up."""
    kept = values[round(WARM_UP * len(values)) :]
    fifth = max(1, len(kept) // 5)
    return statistics.median(kept[:fifth]), statistics.median(kept[-fifth:])


def draw(cells: dict[str, list[dict[str, Any]]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, (key, name) in zip(figure.subplots(len(SERIES), sharex=True), SERIES.items(), strict=True):
        for method, rows in cells.items():
            axes.plot([row["step"] for row in rows], [row[key] for row in rows], label=method, linewidth=0.8)
        axes.set_ylabel(name)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[-1].set_xlabel("step")
    figure.axes[0].legend(frameon=False, ncols=len(cells), loc="lower left", fontsize="small")
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outputs", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kill-after", type=float, default=600.0, help="seconds; 0 leaves the sweep alone")
    args = parser.parse_args()
    started = time.monotonic()
    run(args.outputs.absolute(), args.steps, args.jobs, args.kill_after or float("inf"))
    print(f"{time.monotonic() - started:.0f} s, load of the machine {os.getloadavg()[0]:.1f}")
    cells = read(args.outputs, args.steps)
    print(f"{'':<24}{'steps':>7}{'hours':>7}{'buffer full from':>18}{'evicted':>9}   resident MiB     open files")
    for method, rows in cells.items():
        hours = sum(row["time/step"] for row in rows) / 3600
        full = next((row["step"] for row in rows if row["buffer/size"] == CAPACITY), None)
        memory, files = (growth([row[key] for row in rows]) for key in list(SERIES)[:2])
        print(
            f"{method:<24}{len(rows):>7}{hours:>7.2f}{full!s:>18}{rows[-1]['buffer/evicted']:>9.0f}"
            f"   {memory[0]:.0f} -> {memory[1]:.0f}     {files[0]:.0f} -> {files[1]:.0f}"
        )
    draw(cells, args.outputs / "soak.png")
    print(f"drawn: {args.outputs / 'soak.png'}")


if __name__ == "__main__":
    main()
