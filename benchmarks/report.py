"""Time of a report over many runs: `python -m benchmarks.report outputs/quickstart [--runs 100] [--repeats 3]`.

The runs of a finished study are copied, each under further seeds, until there are that many (without weights and
checkpoints). Medians; say what the load of the machine was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from reports.report import write_report
from reports.runs.collect import find_runs


def copies(study: Path, root: Path, num_runs: int) -> Path:
    """`num_runs` run folders under `root`."""
    runs = [run for run in find_runs(study) if run.incomplete is None]
    for number, run in zip(range(num_runs), itertools.cycle(runs), strict=False):
        seed = 1000 * (number // len(runs)) + run.info["seed"]
        folder = root / run.info["label"] / run.info["student"] / f"seed{seed}"
        shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("checkpoints", "model"))
        (folder / "run.json").write_text(json.dumps(run.info | {"seed": seed}))
    return root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = copies(args.study, Path(folder) / "study", args.runs)
        seconds = []
        for _ in range(args.repeats):
            started = time.perf_counter()
            write_report([study])
            seconds.append(time.perf_counter() - started)
        print(
            f"{args.runs} runs: median {statistics.median(seconds):.1f} s of {', '.join(f'{s:.1f}' for s in seconds)}; "
            f"load of the machine {os.getloadavg()[0]:.1f}"
        )


if __name__ == "__main__":
    main()
