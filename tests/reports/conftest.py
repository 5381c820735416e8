"""Synthetic run folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WriteRun = Callable[..., Path]


def writer(root: Path) -> WriteRun:
    """Writes `study/<label>/<student>/seed<k>` and returns it; `scores` is {benchmark: score} of suite `mini`, `judged`
    how many replies the judge gave on each, and how many of them were malformed.

    The family of a benchmark is what its name starts with (`VLM_level1`), LLM where it starts with none.
    """

    def write(
        label: str,
        scores: dict[str, float] | None = None,
        *,
        student: str = "tiny_s",
        seed: int = 0,
        protocol: str = "p1",
        accuracies: list[float] | None = None,
        judged: dict[str, tuple[int, int]] | None = None,
        **info: Any,
    ) -> Path:
        folder = root / "study" / label / student / f"seed{seed}"
        folder.mkdir(parents=True)
        record = {
            "status": "done", "error": None, "label": label, "method": label.split(",")[0], "student": student,
            "teacher": "tiny_teacher", "seed": seed, "started": "2026-01-01T10:00:00+00:00",
            "finished": "2026-01-01T10:03:00+00:00", "cost": {}, "num_steps": 2,
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(record | info))
        if scores is not None:
            (folder / "eval" / "mini").mkdir(parents=True)
            families = {name: "LLM" if "_" not in name else name.partition("_")[0] for name in scores}
            rows = [f"{name},{families[name]},{score},1.5,200,{protocol}" for name, score in scores.items()]
            header = "benchmark,family,score,stderr,n,protocol"
            if judged is not None:
                header += ",num_judged,num_malformed"
                rows = [f"{row},{','.join(map(str, judged[row.partition(',')[0]]))}" for row in rows]
            (folder / "eval" / "mini" / "scores.csv").write_text("\n".join([header, *rows]) + "\n")
        if accuracies is not None:
            lines = [json.dumps({"step": i + 1, "rollout/accuracy": a}) for i, a in enumerate(accuracies)]
            (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    return write


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    return writer(tmp_path)
