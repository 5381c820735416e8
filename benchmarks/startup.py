"""How long a run takes to its first step on a file of many rows, and how much memory: first and second launch.

`python -m benchmarks.startup 1000000` writes that many JSONL rows, and reads them twice, each time in a new process. It
prints wall and CPU seconds, and the peak of resident memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MARK = "startup:"


def write_rows(path: Path, num_rows: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i in range(num_rows):
            question = f"Tom has {i} pens and buys {i % 97} more. He gives {i % 11} of them away. How many pens has he?"
            file.write(json.dumps({"question": question, "answer": str(i + i % 97 - i % 11), "level": i % 5}) + "\n")


def launch(path: str, student: str, grader: str) -> None:
    """What `zppo train` does before its models: grader, questions and sampler."""
    import resource

    start = time.perf_counter()
    from contextlib import ExitStack

    from harness.config.compose import compose
    from harness.config.deployment import Deployment, build_method
    from harness.config.schema import from_hydra
    from harness.preflight import checks
    from harness.preflight.parts import Preflight

    config = from_hydra(
        compose(
            [f"student={student}", "method=grpo", "data=jsonl", f"data.path={path}", f"reward={grader}", "eval=none"]
        )
    )
    method = build_method(config)
    with ExitStack() as stack:
        run = Preflight(config, method, Deployment.of(config, method), stack)
        for check in (checks.tokenizer, checks.grader):
            list(check(run))
        imported = time.perf_counter()
        loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = list(checks.questions(run))
        batch = run.sampler.next_batch()
        run.sampler.state_dict()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    end = time.perf_counter()
    print(
        MARK,
        f"{end - start:.1f} s ({imported - start:.1f} s to import), CPU {usage.ru_utime + usage.ru_stime:.1f} s, "
        f"peak {usage.ru_maxrss / 1024:.0f} MiB ({loaded / 1024:.0f} after the imports); "
        f"batch of {len(batch)}; {found[-1]}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("num_rows", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--student", default="tiny_s")
    parser.add_argument("--grader", default="math_verify", choices=("math_verify", "mathruler"))
    parser.add_argument("--launch", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.launch:
        launch(args.launch, args.student, args.grader)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, args.num_rows)
        print(f"{args.num_rows} rows, {path.stat().st_size / 2**20:.0f} MiB")
        for name in ("first", "second"):
            words = ["--launch", str(path), "--student", args.student, "--grader", args.grader]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.startup", *words], check=True, capture_output=True, text=True
            )
            line = next(line for line in done.stdout.splitlines() if line.startswith(MARK))
            print(f"{name} launch: {line.removeprefix(MARK).strip()}", flush=True)
        stored = sum(file.stat().st_size for file in Path(folder).glob("*.zppo-index/*"))
        print(f"index: {stored / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
