import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.config.compose import compose
from harness.config.schema import from_hydra
from harness.errors import UserError
from harness.records.tracking import Tracker, log_report


@pytest.fixture(scope="module")
def wandb() -> Any:
    return pytest.importorskip("wandb")


@pytest.fixture
def started(monkeypatch) -> list[dict[str, Any]]:
    """What reached `wandb.init`, instead of a run. The library is not imported: that takes seconds."""
    calls: list[dict[str, Any]] = []

    def init(**options: Any) -> Any:
        calls.append(options)
        return SimpleNamespace(id="run1", log=lambda row, step: calls.append({"row": row, "step": step}), finish=int)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, errors=SimpleNamespace(Error=Exception)))
    return calls


def tracker(folder: Path, *overrides: str, label: str = "zppo,tau=0.25") -> Tracker:
    config = from_hydra(compose(["method=zppo", "student=tiny_xs", "study=mine", "seed=3", *overrides]))
    return Tracker(config, label, folder)


def test_runs_are_grouped_by_study_and_tagged_by_method_and_student(started, tmp_path):
    tracked = tracker(tmp_path, "tracker=wandb", "tracker.project=ours")
    tracked.log(4, {"train/loss": 0.5})
    options, logged = started
    assert (options["group"], options["job_type"], options["tags"]) == ("mine", "zppo,tau=0.25", ["zppo", "tiny_xs"])
    assert (options["project"], options["entity"], options["mode"]) == ("ours", None, "offline")
    assert options["name"] == "zppo,tau=0.25-tiny_xs-seed3"
    assert options["dir"] == str(tmp_path)
    assert options["config"]["seed"] == 3 and options["config"]["student"]["name"] == "tiny_xs"
    assert logged == {"row": {"train/loss": 0.5}, "step": 4}


def test_nothing_is_started_by_default(started, tmp_path):
    tracked = tracker(tmp_path)
    tracked.log(1, {"train/loss": 0.5})
    tracked.close()
    assert started == [] and not tracked.enabled


@pytest.mark.parametrize(("mode", "resume"), [("online", "must"), ("offline", "allow")])
def test_a_resumed_run_goes_on_in_the_same_wandb_run(started, tmp_path, mode, resume):
    first = tracker(tmp_path, f"tracker.wandb={mode}")
    first.log(1, {})
    second = tracker(tmp_path, f"tracker.wandb={mode}")
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.log(2, {})
    assert (started[0]["id"], started[0]["resume"]) == (None, "allow")
    assert (started[2]["id"], started[2]["resume"]) == ("run1", resume)


def test_long_names_fit_into_wandb(started, tmp_path):
    tracked = tracker(tmp_path, "tracker.wandb=offline", label="zppo," + "a" * 200)
    config = tracked._config
    tracked._config = dataclasses.replace(config, student=dataclasses.replace(config.student, name="s" * 100))
    tracked.log(1, {})
    options = started[0]
    assert all(len(options[name]) <= 128 for name in ("name", "job_type", "group"))
    assert options["tags"] == ["zppo", "s" * 64]


@pytest.mark.slow  # imports the real library, as the one below
def test_an_account_that_is_missing_is_one_line(wandb, monkeypatch, tmp_path):
    def refuse(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured\nUse wandb login.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match="wandb cannot start online: No API key configured; run wandb") as caught:
        tracker(tmp_path, "tracker.wandb=online").log(1, {})
    assert "\n" not in str(caught.value)


@pytest.fixture
def report(tmp_path) -> Path:
    folder = tmp_path / "my study" / "report"
    (folder / "figures").mkdir(parents=True)
    (folder / "report.md").write_text("# A report\n")
    (folder / "figures" / "gain.svg").write_text("<svg/>")
    return folder


@pytest.mark.parametrize(
    ("make", "mode", "message"),
    [
        (False, "offline", "no report in .*: write it with zppo report mine"),
        (True, "disabled", "wandb mode 'disabled': a report is logged offline or online"),
    ],
)
def test_a_report_that_cannot_be_logged(started, tmp_path, make, mode, message):
    folder = tmp_path / "report"
    folder.mkdir()
    if make:
        (folder / "report.md").write_text("x")
    with pytest.raises(UserError, match=message):
        log_report(folder, "mine", mode=mode)
    assert started == []


@pytest.mark.slow
def test_offline_needs_no_account(wandb, monkeypatch, report):
    """The real library: a run and a report, in files of its own beside the run's and the report's."""
    home = report.parent.parent / "home"
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    folder = report.parent / "zppo"
    folder.mkdir()
    tracked = tracker(folder, "tracker=wandb")
    tracked.log(1, {"train/loss": 0.5})
    tracked.close()
    assert len(list(folder.glob("wandb/offline-run-*/run-*.wandb"))) == 1

    before = {file: file.read_bytes() for file in report.rglob("*") if file.is_file()}
    line = log_report(report, "my study")
    assert line.startswith("report-my-study: send it with wandb sync ")
    run = Path(line.split("wandb sync ")[1])
    assert run.parent == report.parent / "wandb"
    (log,) = run.glob("run-*.wandb")
    assert log.stat().st_size > 0  # its records are cut into blocks: what they say cannot be searched for
    # What is sent later is a copy of today's report, which itself stays as it was.
    copies = {file.read_bytes() for file in home.rglob("*") if file.is_file()}
    assert set(before.values()) <= copies
    assert {file: file.read_bytes() for file in report.rglob("*") if file.is_file()} == before
