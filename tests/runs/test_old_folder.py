"""A study that commit 39ecb1c wrote, before files moved and prompts were worded anew, is read by every command.

Its run does not go on: its student has learned other prompts.

`tests/fixtures/study_at_39ecb1c` is what these words left there:
zppo train method=zppo student=tiny_xs steps=2 num_threads=1 device=cpu study=written_at_39ecb1c data.batch_size=8
method.group_size=4 eval.num_questions=4 eval.levels=[1]
"""

import hashlib
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from harness import app
from harness.config.compose import compose
from harness.config.deployment import resolved
from harness.config.identity import differences
from harness.config.schema import from_hydra
from harness.records.read import read_config
from harness.study.status import run_states

STUDY = Path(__file__).parents[1] / "fixtures" / "study_at_39ecb1c"


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
    assert "bar_cards_l1   VLM" in shown["eval"]
    # Its store does not say by which engine and dtype, and its prompts were others: the replies are made again.
    after = pd.read_csv(run_folder / "eval" / "mini" / "scores.csv")
    assert after[["benchmark", "family", "n"]].equals(before[["benchmark", "family", "n"]])
    assert set(after["protocol"]).isdisjoint(before["protocol"])
    stored = [json.loads(line) for line in (run_folder / "eval/mini/responses.jsonl").read_text().splitlines()]
    old, new = stored[: len(stored) // 2], stored[len(stored) // 2 :]
    assert old == [json.loads(line) for line in (STUDY / "zppo/tiny_xs/seed0/eval/mini/responses.jsonl").open()]
    assert {row["key"] for row in new}.isdisjoint(row["key"] for row in old)


def test_its_run_does_not_go_on(run_folder, capsys):
    before = digests(run_folder)
    options = [line for line in json.loads((run_folder / "run.json").read_text())["overrides"] if line != "steps=2"]
    assert app.main(["train", *options, "steps=3"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and "step-000002 was trained on prompts that are made otherwise by now" in line
    assert digests(run_folder) == before
    assert [state.state for state in run_states(run_folder.parents[2])] == ["done"]


def test_options_that_had_one_value_make_no_other_run(run_folder):
    """It has `rollout.top_p: 1.0`, as every run of its time had, and four more of that kind."""
    overrides = json.loads((run_folder / "run.json").read_text())["overrides"]
    config = resolved(from_hydra(compose([*overrides, "reward.judge.url=http://judge/v1"])))
    stored = read_config(run_folder)
    stored["reward"]["judge"] |= {"url": "http://old/v1", "model": config.reward.judge.model}
    assert (stored["rollout"]["top_p"], stored["reward"]["judge"]["when"]) == (1.0, "unmatched")
    assert differences(stored, config) is None
    stored["rollout"] |= {"top_p": 0.9, "top_k": 5}
    assert differences(stored, config) == "rollout.top_k=5, not 0, rollout.top_p=0.9, not 1.0"


def digests(folder: Path) -> dict[str, str]:
    """As `sha256sum` gives them, of all files but the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".lock"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
