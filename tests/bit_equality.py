"""Whether two commits do the same, to the bit: `python tests/bit_equality.py COMMIT [OTHER]`.

Each of the two trees (OTHER is by default the working tree) runs two ZPPO steps of a tiny student with its evaluation.
Rollouts, buffer events, metrics, weights, moments, replies and scores are compared, types and digits included. Left out
are clocks, memory and open files, `run.json`, `run.log`, `config.yaml` and `state.json`, which name the run.
Exit code 1 where something differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors.numpy import load_file

ROOT = Path(__file__).parent.parent
OPTIONS = (
    "train", "method=zppo", "student=tiny_xs", "steps=2", "num_threads=1", "device=cpu", "study=same",
    "data.batch_size=24", "eval.num_questions=20", "checkpoint.every=1",
)  # fmt: skip
MACHINE = ("time/", "busy/", "memory/", "process/")
"""Metrics of clocks and memory."""


@contextmanager
def tree_of(commit: str | None) -> Iterator[Path]:
    """A checkout of a commit that lasts as long as the context; the working tree for None."""
    if commit is None:
        yield ROOT
        return
    folder = Path(tempfile.mkdtemp(prefix="bit-equality-"))
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", folder, commit], cwd=ROOT, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", folder], cwd=ROOT, check=True)


def run(tree: Path, outputs: Path) -> Path:
    """One run with the code of a tree. Returns its folder."""
    command = [sys.executable, "-m", "harness.app", *OPTIONS, f"outputs={outputs}"]
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{tree}: exit code {done.returncode}\n{done.stderr}")
    return outputs / "same" / "zppo" / "tiny_xs" / "seed0"


def contents(folder: Path) -> dict[str, Any]:
    """What a run has written, by kind, in forms that can be compared."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("rollouts/*.parquet")):
        table = pq.read_table(path)
        found[str(path.relative_to(folder))] = (str(table.schema.remove_metadata()), repr(table.to_pylist()))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if not k.startswith(MACHINE)} for row in rows]
    found["metrics.jsonl"] = json.dumps(kept, sort_keys=True)
    found["buffer.jsonl"] = (folder / "buffer.jsonl").read_text()
    for path in sorted(folder.rglob("*.safetensors")):
        tensors = {name: (t.dtype.str, t.shape, t.tobytes()) for name, t in load_file(path).items()}
        found[str(path.relative_to(folder))] = tensors
    texts = [*folder.glob("eval/**/*.csv"), *folder.glob("eval/**/*.json*"), *folder.glob("model/*.j*")]
    for path in sorted(texts):
        found[str(path.relative_to(folder))] = path.read_text()
    missing = {"rollouts/step-000002.parquet", "model/model.safetensors", "eval/mini/scores.csv"} - found.keys()
    assert not missing, f"{folder} has no {missing}"
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", help="the one that counts as right")
    parser.add_argument("other", nargs="?", help="what is compared with it; default: the working tree")
    args = parser.parse_args()
    outputs = Path(tempfile.mkdtemp(prefix="bit-equality-outputs-"))
    sides = []
    for name, commit in (("a", args.commit), ("b", args.other)):
        with tree_of(commit) as tree:
            sides.append(contents(run(tree, outputs / name)))
    shutil.rmtree(outputs)
    right, other = sides
    different = [name for name in sorted({*right, *other}) if right.get(name) != other.get(name)]
    for name in sorted({*right, *other}):
        print(f"{'differs' if name in different else 'equal':<8}{name}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
