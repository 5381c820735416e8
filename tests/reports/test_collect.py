from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from reports.collect import COLUMNS, collect, find_runs, seconds_of


def test_one_row_a_score_and_base_first(write_run, tmp_path):
    write_run("a_method", {"level1": 40.0}, seed=1)
    write_run("base", {"level1": 30.0, "level2": 20.0})
    table = collect(tmp_path / "study")
    assert list(table.columns) == [*(column.name for column in COLUMNS), "suite"]
    rows = table[["label", "student", "seed", "suite", "benchmark", "score", "stderr", "n", "protocol"]]
    assert rows.to_numpy().tolist() == [
        ["base", "tiny_s", 0, "mini", "level1", 30.0, 1.5, 200, "p1"],
        ["base", "tiny_s", 0, "mini", "level2", 20.0, 1.5, 200, "p1"],
        ["a_method", "tiny_s", 1, "mini", "level1", 40.0, 1.5, 200, "p1"],
    ]


def test_incomplete_runs_are_named_with_the_reason_and_give_no_row(write_run, tmp_path):
    write_run("failed", {"level1": 1.0}, status="failed", error="Traceback\nOutOfMemory: 3 GB")
    write_run("not_evaluated")
    write_run("running", status="running")
    reasons = {run.info["label"]: run.incomplete for run in find_runs(tmp_path / "study")}
    assert reasons == {
        "failed": "failed: OutOfMemory: 3 GB",
        "not_evaluated": "done, but not evaluated",
        "running": "running",
    }
    assert collect(tmp_path / "study").empty


def test_evaluations_during_training_are_not_read(write_run, tmp_path):
    folder = write_run("grpo", {"level1": 40.0})
    step = folder / "eval" / "mini" / "step-000010"
    step.mkdir()
    (step / "scores.csv").write_text("benchmark,family,score,stderr,n,protocol\nlevel1,arithmetic,1.0,1,200,p1\n")
    assert collect(tmp_path / "study")["score"].tolist() == [40.0]


def test_optional_columns_may_be_missing_and_required_ones_not(write_run, tmp_path):
    folder = write_run("grpo", {"level1": 40.0})
    scores = folder / "eval" / "mini" / "scores.csv"
    scores.write_text("benchmark,score,n,protocol\nlevel1,40,200,p1\n")
    assert collect(tmp_path / "study")["family"].tolist() == [None]
    scores.write_text("benchmark,score,n\nlevel1,40,200\n")
    with pytest.raises(ValueError, match="has no column 'protocol'"):
        collect(tmp_path / "study")


def test_missing_empty_and_foreign_studies_are_refused(write_run, tmp_path):
    with pytest.raises(ValueError, match="no study folder"):
        collect(tmp_path / "study")
    (tmp_path / "study").mkdir()
    with pytest.raises(ValueError, match="has no runs"):
        collect(tmp_path / "study")
    write_run("grpo", method=None)
    with pytest.raises(ValueError, match="has no 'method'"):
        collect(tmp_path / "study")


def test_seconds_run_from_start_to_end():
    times = {"started": "2026-01-01T10:00:00+00:00", "finished": "2026-01-01T10:03:00+00:00"}
    assert seconds_of(times) == 180.0
    assert seconds_of(times | {"finished": None}) is None


def test_reports_import_no_torch_and_no_harness():
    code = "import sys, reports.report; print([m for m in ('torch', 'harness', 'methods') if m in sys.modules])"
    root = Path(__file__).parents[2]
    answer = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
