"""lmms-eval's tasks by name on the live student, against the library's own command on the exported folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.app import main
from harness.models.tiny import tiny_path
from tests.harness.evaluation.test_lm_eval_tasks import rows_of, scores_of
from tests.support.library_tasks import LMMS_COMMAND, NUM, PICTURED, write_pictured_copies


@pytest.mark.slow
def test_samples_and_scores_are_those_of_the_librarys_own_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data, model = tmp_path / "data", tiny_path("s")
    write_pictured_copies(data)
    words = [f"eval.tasks=[{','.join(f'lmms_eval:{name}' for name in PICTURED)}]", f"data_root={data}"]
    assert main(["eval", f"model={model}", "student.dtype=float32", f"outputs={tmp_path}", "study=s", *words]) == 0
    folder = next(tmp_path.rglob("scores.csv")).parent
    command = [
        sys.executable, "-c", LMMS_COMMAND, "--model", "huggingface", "--model_args",
        f"pretrained={model},device=cpu,device_map=cpu", "--tasks", ",".join(PICTURED), "--batch_size", "1",
        "--output_path", str(tmp_path / "theirs"), "--log_samples",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=data, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]

    scores, rows = scores_of(folder), rows_of(folder)
    results = json.loads(next((tmp_path / "theirs").rglob("*results.json")).read_text())["results"]
    compared = set()
    for task, values in results.items():
        for key, value in values.items():
            metric, _, chosen = key.partition(",")
            if not chosen or "_stderr" in metric or not isinstance(value, int | float):
                continue
            name = f"lmms_eval:{task}/{metric}" + ("" if chosen == "none" else f"/{chosen}")
            percent = 100.0 if metric == "exact_match" else 1.0
            assert float(scores[name]["score"]) == pytest.approx(percent * value, abs=1e-4), name
            compared.add(name)
    assert compared == set(scores)
    replies = set()
    for task in PICTURED:
        (file,) = (tmp_path / "theirs").rglob(f"*samples_{task}.jsonl")
        own = next(some for name, some in rows.items() if name.startswith(f"lmms_eval:{task}/"))
        samples = [json.loads(line) for line in file.read_text().splitlines()]
        assert len(samples) == len(own) == NUM
        for sample in samples:
            assert own[str(sample["doc_id"])]["response"] == sample["resps"]
            replies.add(sample["resps"])
    assert len(replies) > 12, "the pictures have to matter"
