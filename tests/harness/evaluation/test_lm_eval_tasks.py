"""lm-eval's tasks by name on the live student, against the library's own command on the exported folder."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from harness.app import main
from harness.models.tiny import tiny_path
from tests.support.library_tasks import TEN, write_copies, write_own_tasks

TOLERANCE = 1e-4


def rows_of(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The responses of an evaluation by row of the table and document."""
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for line in (folder / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        found[row["benchmark"]][row["question_id"]] = row
    return found


def scores_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "scores.csv").open(newline="") as lines:
        return {row["benchmark"]: row for row in csv.DictReader(lines)}


def theirs(model: Path, tasks: tuple[str, ...], data: Path, own: Path, out: Path, *words: str) -> Path:
    """The library's own command. Returns the folder with its results and samples."""
    command = [
        sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", ",".join(tasks), "--include_path", str(own),
        "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu", "--output_path", str(out),
        "--log_samples", "--batch_size", "8", *words,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=data, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return next(out.rglob("results_*.json")).parent


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Copies of data sets, and task files of one's own."""
    data, own = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("own")
    write_copies(data)
    write_own_tasks(own)
    return data, own


@pytest.mark.slow
@pytest.mark.parametrize("template", [False, True])
def test_samples_and_scores_are_those_of_the_librarys_own_command(
    template: bool, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, own = folders
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tasks = ("gsm8k", "own_sums") if template else TEN
    model = tiny_path("s")
    words = [f"eval.tasks=[{','.join(f'lm_eval:{name}' for name in tasks)}]", f"eval.task_paths=[{own}]"]
    words += [
        f"data_root={data}",
        f"outputs={tmp_path}",
        "study=s",
        f"eval.apply_chat_template={str(template).lower()}",
    ]
    assert main(["eval", f"model={model}", "student.dtype=float32", *words]) == 0
    folder = next(tmp_path.rglob("scores.csv")).parent
    command = ["--apply_chat_template"] if template else []
    library = theirs(model, tasks, data, own, tmp_path / "theirs", *command)

    results = json.loads(next(library.glob("results_*.json")).read_text())["results"]
    scores, rows = scores_of(folder), rows_of(folder)
    num_rows = num_samples = 0
    for task, values in results.items():
        for key, value in values.items():
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr") or not isinstance(value, float | int):
                continue
            name = f"lm_eval:{task}/{metric}" + ("" if chosen == "none" else f"/{chosen}")
            percent = 100.0 if metric in ("acc", "acc_norm", "acc_mutual_info", "exact_match") else 1.0
            assert float(scores[name]["score"]) == pytest.approx(percent * value, rel=TOLERANCE, abs=TOLERANCE), name
            num_rows += 1
    assert num_rows == len(scores), scores.keys()
    for file in library.glob("samples_*.jsonl"):
        task = file.name.removeprefix("samples_").rpartition("_")[0]
        for line in file.read_text().splitlines():
            sample = json.loads(line)
            for metric in sample["metrics"]:
                name = f"lm_eval:{task}/{metric}" + ("" if sample["filter"] == "none" else f"/{sample['filter']}")
                if name not in rows:
                    continue  # of a metric that is no mean over documents
                row = rows[name][str(sample["doc_id"])]
                assert row["score"] == pytest.approx(sample[metric], abs=TOLERANCE)
                said = flat(sample["resps"])
                assert (said == [row["response"]]) or answers(row["response"]) == pytest.approx(said, abs=TOLERANCE)
                num_samples += 1
    assert num_samples > 30
    kept = {len({row["score"] for row in some.values()}) for some in rows.values()}
    assert 2 in kept, "a student that knows nothing or everything shows nothing here"


def answers(response: str) -> list[Any]:
    """What a row keeps of several replies, or of log-probabilities, one after another."""
    found: list[Any] = []
    for one in json.loads(response):
        found += one if isinstance(one, list) else [one]
    return found


def flat(resps: list[Any]) -> list[Any]:
    """The same of a sample of the library's, whose log-probabilities are texts."""
    found: list[Any] = []
    for resp in resps:
        for one in resp:
            found += [float(one[0]), one[1] == "True"] if isinstance(one, list) else [one]
    return found
