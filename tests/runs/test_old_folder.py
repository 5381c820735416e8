"""A study that commit 39ecb1c wrote, before files moved, is read by every command, and its run goes on.

`tests/fixtures/study_at_39ecb1c` is what these words left there:
zppo train method=zppo student=tiny_xs steps=2 num_threads=1 device=cpu study=written_at_39ecb1c data.batch_size=8
method.group_size=4 eval.num_questions=4 eval.levels=[1]
"""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from harness import app
from harness.testing import run_metrics

STUDY = Path(__file__).parents[1] / "fixtures" / "study_at_39ecb1c"
AT_STEP_3 = {
    "arithmetic/L2/34+3+4", "arithmetic/L3/83+9+7+1", "arithmetic/L2/72+2+9", "arithmetic/L4/87+7+6+8+3",
    "arithmetic/L4/57+4+9+5+9", "arithmetic/L3/56+5+5+6", "arithmetic/L2/19+8+9", "arithmetic/L4/26+2+6+9+8",
}  # fmt: skip
"""New questions of step 3, as 39ecb1c went on with the folder."""
REPLAYED_AT_STEP_3 = {"arithmetic/L2/87+7+9", "arithmetic/L3/51+9+5+5"}
METRICS_AT_STEP_3 = {
    "rollout/accuracy": 0.25, "rollout/response_tokens": 24.9375, "train/loss": -0.0014620304573327303,
    "train/grad_norm": 0.724305734038353, "train/entropy": 0.09596033695800273, "train/num_tokens": 1214.0,
    "tokens/student_generated": 1214.0, "tokens/teacher_generated": 730.0, "buffer/admitted": 19.0,
    "buffer/graduated": 2.0, "buffer/graduated@visits_1": 2.0, "buffer/replayed": 2.0, "buffer/size": 17.0,
}  # fmt: skip
"""They follow from the weights, the optimizer's moments, the random streams and the buffer of the folder."""
VISITS_AT_STEP_3 = {"arithmetic/L2/87+7+9": ("revisit", 1), "arithmetic/L3/51+9+5+5": ("graduate", 1)}


@pytest.fixture
def run_folder(tmp_path, monkeypatch) -> Path:
    """A copy of the run, in the folder that its configuration names."""
    study = tmp_path / "outputs" / "written_at_39ecb1c"
    shutil.copytree(STUDY, study)
    monkeypatch.chdir(tmp_path)
    return (study / "zppo" / "tiny_xs" / "seed0").relative_to(tmp_path)


def test_it_is_read(run_folder, capsys):
    before = pd.read_csv(run_folder / "eval" / "mini" / "scores.csv")
    shown = {}
    for name, words in {
        "report": ["report", str(run_folder.parents[2])],
        "view": ["view", str(run_folder), "--step", "1", "--kind", "bcq"],
        "audit": ["audit", str(run_folder)],
        "status": ["status", str(run_folder.parents[2])],
        "eval": ["eval", f"run={run_folder}", "suite=mini"],
    }.items():
        assert app.main(words) == 0
        shown[name] = capsys.readouterr().out
    assert "## tiny_xs, Video" in shown["report"] and "25.0" in shown["report"]
    assert "kind bcq" in shown["view"] and "match positive" in shown["view"]
    assert "all                     14          1" in shown["audit"]
    assert "2/2" in shown["status"]
    assert "bar_cards_l1   VLM      75.0" in shown["eval"]
    # Its store does not say by which engine and dtype: the replies are made again, and are the same.
    after = pd.read_csv(run_folder / "eval" / "mini" / "scores.csv")
    assert after.drop(columns="protocol").equals(before.drop(columns="protocol"))
    assert set(after["protocol"]).isdisjoint(before["protocol"])
    stored = [json.loads(line) for line in (run_folder / "eval/mini/responses.jsonl").read_text().splitlines()]
    old, new = stored[: len(stored) // 2], stored[len(stored) // 2 :]
    assert [row | {"key": ""} for row in new] == [row | {"key": ""} for row in old]


def test_its_run_goes_on_for_a_third_step(run_folder):
    before = run_metrics(run_folder)
    options = [line for line in json.loads((run_folder / "run.json").read_text())["overrides"] if line != "steps=2"]
    assert app.main(["train", *options, "steps=3"]) == 0
    after = run_metrics(run_folder)
    assert after[:2] == before and [row["step"] for row in after] == [1, 2, 3]
    rows = pd.read_parquet(run_folder / "rollouts" / "step-000003.parquet")
    plain = rows[rows.kind == "plain"].groupby("replayed").question_id.agg(set).to_dict()
    assert plain == {False: AT_STEP_3, True: REPLAYED_AT_STEP_3}
    assert {key: after[2][key] for key in METRICS_AT_STEP_3} == pytest.approx(METRICS_AT_STEP_3, rel=1e-4)
    events = [json.loads(line) for line in (run_folder / "buffer.jsonl").read_text().splitlines()]
    visits = {e["question_id"]: (e["event"], e["visits"]) for e in events if e["step"] == 3 and e["event"] != "admit"}
    assert visits == VISITS_AT_STEP_3
    assert json.loads((run_folder / "run.json").read_text())["status"] == "done"
