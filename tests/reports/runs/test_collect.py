from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from reports.runs.collect import ADDED, COLUMNS, ORDER, collect, find_runs, rank, seconds_of


def test_one_row_a_score_and_base_first(write_run, tmp_path):
    write_run("a_method", {"level1": 40.0}, seed=1)
    write_run("base", {"level1": 30.0, "level2": 20.0})
    table = collect(tmp_path / "study")
    assert list(table.columns) == [*(column.name for column in COLUMNS), *ADDED]
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
        "running": "running, or killed while it ran: zppo status tells",
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
    (run,) = find_runs(tmp_path / "study")
    assert run.incomplete == "eval/mini/scores.csv has no column 'protocol': evaluate the run again"
    assert collect(tmp_path / "study").empty


def test_missing_empty_and_foreign_studies_are_refused(write_run, tmp_path):
    with pytest.raises(ValueError, match="no study folder"):
        collect(tmp_path / "study")
    (tmp_path / "study").mkdir()
    with pytest.raises(ValueError, match="has no runs"):
        collect(tmp_path / "study")


def test_a_run_that_cannot_be_read_is_listed_with_the_reason(write_run, tmp_path):
    write_run("zppo", {"level1": 40.0})
    write_run("grpo", {"level1": 40.0}, method=None)
    half = write_run("hint,option=2", {"level1": 40.0}, seed=3)
    (half / "run.json").write_text('{"status": "do')
    runs = find_runs(tmp_path / "study")
    assert [(run.name, run.incomplete) for run in runs] == [
        ("grpo tiny_s seed0", "run.json has no 'method': of another version of this harness, run it again"),
        ("hint,option=2 tiny_s seed3", "run.json is no JSON: half written, or damaged"),
        ("zppo tiny_s seed0", None),
    ]
    assert collect(tmp_path / "study")["label"].tolist() == ["zppo"]


def test_methods_stand_in_the_order_of_the_paper_and_others_behind_them(write_run, tmp_path):
    for label in ("my_method", "zppo,top=2", "zppo", "grpo", "base", "off_policy_kd", "a_method"):
        write_run(label, {"level1": 40.0})
    labels = [run.info["label"] for run in find_runs(tmp_path / "study")]
    assert labels == ["base", "off_policy_kd", "grpo", "zppo", "zppo,top=2", "a_method", "my_method"]
    presets = {path.stem for path in (Path(__file__).parents[3] / "conf" / "method").glob("*.yaml")}
    assert presets == set(ORDER) and rank("base") < rank("zppo") < rank("zzz")


@pytest.mark.parametrize("score", ["140.0", "-1.0", "nonsense"])
def test_a_score_that_is_no_percentage_is_left_out_and_said(score, write_run, tmp_path):
    folder = write_run("grpo", {"level1": 40.0, "level2": 50.0})
    file = folder / "eval" / "mini" / "scores.csv"
    file.write_text(file.read_text().replace("level1,LLM,40.0", f"level1,LLM,{score}"))
    table = collect(tmp_path / "study")
    assert table["score"].isna().tolist() == [True, False]
    assert table["note"].tolist() == [f"its score {score} is no percentage", ""]


def test_seconds_run_from_start_to_end():
    times = {"started": "2026-01-01T10:00:00+00:00", "finished": "2026-01-01T10:03:00+00:00"}
    assert seconds_of(times) == 180.0
    assert seconds_of(times | {"finished": None}) is None


def test_reports_import_no_torch_and_no_harness():
    code = "import sys, reports.report; print([m for m in ('torch', 'harness', 'methods') if m in sys.modules])"
    root = Path(__file__).parents[3]
    answer = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_run_without_its_record_is_listed_with_the_reason(write_run, tmp_path):
    write_run("grpo", {"level1": 40.0})
    lost = write_run("zppo,option=2", {"level1": 40.0}, seed=3)
    (lost / "config.yaml").write_text("seed: 3\n")
    (lost / "run.json").unlink()
    _, run = find_runs(tmp_path / "study")
    assert run.incomplete == "run.json is missing: copy it, or launch the run again"
    assert run.info == {
        "label": "zppo,option=2", "method": "zppo", "student": "tiny_s", "seed": 3, "status": "unreadable"
    }  # fmt: skip
