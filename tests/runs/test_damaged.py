"""Damage is noticed and named, and the rest goes on: resume, status, report and sweeps over a damaged folder."""

import json
import shutil
from pathlib import Path

import pytest

from harness.app import main
from harness.records.folder import RunFolder

SMALL = [
    "student=tiny_xs", "eval=mini", "eval.num_questions=4", "eval.mini_tasks=[arithmetic]", "eval.levels=[1]",
    "eval.max_response_tokens=16", "data.batch_size=2", "data.num_questions=20", "data.pool_size=12",
    "data.levels=[1]", "method.group_size=4", "method.replay=true", "rollout.max_response_tokens=16", "num_threads=1",
]  # fmt: skip


def train(outputs: Path, *overrides: str) -> int:
    return main(["train", *SMALL, "method=grpo", f"outputs={outputs}", *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Two runs of three steps."""
    outputs = tmp_path_factory.mktemp("finished")
    assert [train(outputs, "steps=3", "checkpoint.every=1", f"seed={seed}") for seed in (0, 1)] == [0, 0]
    return outputs


@pytest.fixture
def study(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "outputs")) / "default"


def cell(study: Path, seed: int = 0) -> Path:
    return study / "grpo" / "tiny_xs" / f"seed{seed}"


def contents(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".lock")}


@pytest.mark.slow
def test_a_whole_configuration_of_another_cell_is_no_copy(study, capsys):
    shutil.copy(cell(study, 1) / "config.yaml", cell(study))
    assert train(study.parent, "steps=3") == 2
    assert "config.yaml cannot be read (it is not what the run wrote)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("checkpoints/step-000003/state.json", "is intact (step-000003: state.json is missing)"),
        ("checkpoints", "has no checkpoint to go on from: put it back, or add --force"),
    ],
)
def test_a_finished_run_without_its_checkpoint_does_not_begin_anew(study, capsys, gone, message):
    path = cell(study) / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = contents(cell(study))
    assert train(study.parent, "steps=4") == 2
    assert message in capsys.readouterr().err and contents(cell(study)) == before


def damage_line(file: Path, number: int) -> None:
    lines = file.read_text().splitlines(keepends=True)
    lines[number] = lines[number][: len(lines[number]) // 2] + "\n"
    file.write_text("".join(lines))


def empty(file: Path) -> None:
    file.write_bytes(b"")


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def drop_line(file: Path) -> None:
    """As a copy that broke off between two lines."""
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


def list_instead(file: Path) -> None:
    file.write_text("[1, 2]\n")


def invalid_bytes(file: Path) -> None:
    file.write_bytes(b"\xff\xfe{}\x00")


def halve_lines(file: Path) -> None:
    """Of YAML, it is YAML still."""
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[: len(lines) // 2]))


def header_alone(file: Path) -> None:
    file.write_text(file.read_text().splitlines(keepends=True)[0])


def seconds_in_words(file: Path) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seconds": "an hour"}))


def folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


def remove(file: Path) -> None:
    file.unlink()


DAMAGES = [empty, halve, list_instead, invalid_bytes]
SLOW = [pytest.param(damage, marks=pytest.mark.slow) for damage in DAMAGES if damage is not halve]


@pytest.mark.parametrize(
    ("name", "damage"),
    [("run.json", halve), *(("config.yaml", damage) for damage in (halve, halve_lines, remove))]
    + [
        pytest.param(name, damage, marks=pytest.mark.slow)
        for name in ("run.json", "config.yaml")
        for damage in DAMAGES
        if damage is not halve
    ],
)
def test_a_damaged_record_is_one_line_with_its_path(study, capsys, name, damage):
    damage(cell(study) / name)
    before = contents(cell(study))
    for steps in (3, 4):
        assert train(study.parent, f"steps={steps}") == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert line.startswith(f"error: {cell(study) / name} cannot be read (") and "remove the run folder" in line
    assert main(["eval", f"run={cell(study)}"]) == 2
    assert str(cell(study) / name) in capsys.readouterr().err
    assert contents(cell(study)) == before
    assert main(["status", str(study)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("done") >= 1 and ("damaged" in shown) is (name == "run.json")


def test_a_run_whose_record_was_removed_is_named(study, capsys):
    remove(cell(study) / "run.json")
    assert [main(["status", str(study)]), main(["report", str(study)])] == [0, 0]
    said = "run.json is missing: copy it, or launch the run again"
    shown = capsys.readouterr().out
    assert f"damaged: grpo tiny_xs seed0: {said}\n" in shown and f"- grpo tiny_xs seed0: {said}\n" in shown


@pytest.mark.parametrize("damage", [halve, *SLOW])
def test_a_sweep_goes_on_past_a_damaged_cell(study, capsys, damage):
    damage(cell(study) / "run.json")
    words = [*SMALL, "method=grpo", "seed=0,1", f"outputs={study.parent}", "steps=3", "checkpoint.every=1"]
    assert main(["train", "-m", *words]) == 1
    out = capsys.readouterr().out
    assert "2 cells: 1 skipped, 1 failed" in out
    assert f"failed: grpo tiny_xs seed0: {cell(study) / 'run.json'} cannot be read (" in out


@pytest.mark.slow
def test_what_earlier_steps_have_lost_is_named_at_resume_and_in_the_report(study, capsys, caplog):
    events = [json.loads(line) for line in (cell(study) / "buffer.jsonl").read_text().splitlines()]
    damage_line(cell(study) / "buffer.jsonl", 0)
    damage_line(cell(study) / "metrics.jsonl", 1)
    halve(cell(study) / "rollouts" / "step-000001.parquet")
    (cell(study) / "rollouts" / "step-000003.parquet").unlink()
    assert train(study.parent, "steps=4", "checkpoint.every=1") == 0
    info = RunFolder.read_info(cell(study))
    assert info["lost_records"] == {"metrics.jsonl": [2], "buffer.jsonl": [events[0]["step"]], "rollouts": [1, 3]}
    assert f"{cell(study)}: rollouts of step 1, 3 is lost: missing or damaged" in caplog.text
    rows = [json.loads(line) for line in (cell(study) / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 3, 4]
    assert main(["report", str(study)]) == 0
    text = (study / "report" / "report.md").read_text()
    lost = f"metrics.jsonl of step 2; buffer.jsonl of step {events[0]['step']}; rollouts of step 1, 3"
    assert f"grpo tiny_xs seed0: lost: {lost}" in text


def test_a_line_that_a_kill_cut_short_is_no_loss(study):
    with (cell(study) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "ti')
    assert train(study.parent, "steps=4", "checkpoint.every=1") == 0
    assert RunFolder.read_info(cell(study))["lost_records"] is None


def test_rollouts_that_were_removed_on_purpose_are_not_lost(tmp_path):
    assert train(tmp_path, "steps=3", "checkpoint.every=1", "rollouts.keep=1") == 0
    assert train(tmp_path, "steps=4", "checkpoint.every=1") == 0
    folder = cell(tmp_path / "default")
    assert {p.name for p in (folder / "rollouts").iterdir()} == {"step-000003.parquet", "step-000004.parquet"}
    assert RunFolder.read_info(folder)["lost_records"] is None


DAMAGED = (
    ("metrics.jsonl", halve, "metrics.jsonl has 1 of 3 steps"),
    ("metrics.jsonl", drop_line, "metrics.jsonl has 2 of 3 steps"),
    ("buffer.jsonl", list_instead, "buffer.jsonl has 0 of "),
    ("buffer.jsonl", drop_line, "buffer.jsonl has {lines} of {more} events"),
    ("rollouts/step-000002.parquet", invalid_bytes, "step-000002.parquet"),
    ("rollouts/step-000002.parquet", remove, "no rollouts of 1 of 3 steps, the first is 2"),
    ("eval/mini/rows.jsonl", halve, "eval/mini/rows.jsonl has "),
    ("eval/mini/rows.jsonl", drop_line, "eval/mini/rows.jsonl has 3 of 4 rows"),
    ("eval/mini/rows.jsonl", remove, "no eval/mini/rows.jsonl"),
    ("eval/mini/scores.csv", invalid_bytes, "scores.csv"),
    ("eval/mini/scores.csv", header_alone, "eval/mini/scores.csv has 0 of 1 benchmarks"),
    ("config.yaml", halve_lines, "config.yaml is not what the run wrote"),
    ("run.json", list_instead, "run.json is no JSON"),
    ("run.json", seconds_in_words, "run.json is damaged: its seconds is no value that a run writes"),
    ("run.json", folder_instead, "run.json cannot be read (Is a directory)"),
)


def test_the_report_of_a_study_with_damaged_cells_names_each(study, capsys):
    num_events = len((cell(study, 1) / "buffer.jsonl").read_text().splitlines())
    for seed, (name, damage, _) in enumerate(DAMAGED, 2):
        shutil.copytree(cell(study, 1), cell(study, seed))
        info = RunFolder.read_info(cell(study, seed)) | {"seed": seed}
        (cell(study, seed) / "run.json").write_text(json.dumps(info))
        damage(cell(study, seed) / name)
    assert [main(["report", str(study)]), main(["status", str(study)])] == [0, 0]
    assert capsys.readouterr().out.count("\ndamaged: ") == 3
    text = (study / "report" / "report.md").read_text()
    page = (study / "report" / "index.html").read_text()
    for seed, (_, _, words) in enumerate(DAMAGED, 2):
        phrase = words.format(lines=num_events - 1, more=num_events)
        assert any(f"seed{seed}" in line and phrase in line for line in (text + page).splitlines()), phrase
    assert "seed0: " not in text and "seed1: " not in text
