"""Whole runs on the smallest tiny student: same seed, same run; resume equals the unbroken run; what they record."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from harness.config.compose import compose
from harness.config.schema import from_hydra
from harness.data.replay import PromptReplayBuffer
from harness.errors import UserError
from harness.models.tiny import tiny_path
from harness.records.folder import RunFolder
from harness.run.run import run
from harness.testing import assert_same_run
from harness.testing import run_metrics as metrics
from harness.training.update import Updater

SMALL = [
    "student=tiny_xs", "eval=none", "data.batch_size=6", "data.pool_size=24", "data.num_questions=60", "data.epochs=2",
    "data.levels=[1,2]", "method.group_size=4", "rollout.max_response_tokens=32", "num_threads=1",
]  # fmt: skip


def start(outputs: Path, *overrides: str) -> Path:
    lines = [*SMALL, f"outputs={outputs}", *overrides]
    if "method=zppo" in lines:  # candidate prompts out of few questions
        lines += ["method.augment_ratio=0.5", "method.teacher_group_size=2", "method.compress_max_tokens=48"]
    return run(from_hydra(compose(lines)), overrides=lines)


@pytest.mark.slow  # a run on all modalities, below, is resumed from such checkpoints
def test_checkpoints_change_nothing(tmp_path):
    """That every method's resumed run equals the unbroken one is a check of the conformance kit."""
    whole = start(tmp_path / "a", "method=zppo", "steps=2")
    assert_same_run(whole, start(tmp_path / "b", "method=zppo", "steps=2", "checkpoint.every=1"))


def test_another_seed_is_another_run(tmp_path):
    runs = [start(tmp_path, "method=grpo", "steps=1", f"seed={seed}") for seed in (0, 1)]
    assert metrics(runs[0]) != metrics(runs[1])


@pytest.mark.parametrize("temperature", [pytest.param(1.0, marks=pytest.mark.slow), 0.7])
def test_first_mini_batch_agrees_with_the_engine(tmp_path, temperature):
    options = ["steps=2", "method.updates_per_step=1", f"rollout.temperature={temperature}"]
    folder = start(tmp_path, "method=grpo", *options)
    for row in metrics(folder):
        assert row["mismatch/max"] < 1e-4
        assert row["train/ratio"] == pytest.approx(1.0, abs=1e-5)  # one update a step: nothing has moved yet
        assert row["train/clip_frac"] == 0.0


def test_a_16_bit_student_trains_fp32_weights(tmp_path):
    """At the published rate a bf16 weight of 0.1 cannot move: its neighbours are 5e-4 away."""
    options = ["method=grpo", "steps=1", "student.dtype=bfloat16", "update.learning_rate=1e-6"]
    folder = start(tmp_path, *options)
    checkpoint = load_file(folder / "checkpoints" / "step-000001" / "model.safetensors")
    saved = load_file(folder / "model" / "model.safetensors")
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert checkpoint[name].dtype == torch.float32 and saved[name].dtype == torch.bfloat16
    assert (checkpoint[name] != checkpoint[name].bfloat16()).any()
    assert torch.equal(checkpoint[name].bfloat16(), saved[name])
    assert metrics(folder)[0]["mismatch/max"] < 0.5  # rounding of 8-bit mantissas, on both sides


def noting(owner, order):
    """The `update` of a class, which notes each of its calls."""
    real = owner.update

    def update(self, *args, **options):
        order.append(owner.__name__)
        return real(self, *args, **options)

    return update


@pytest.mark.clause("C005", "C021", "C022", "C067")
def test_what_a_zppo_run_leaves_behind(tmp_path, monkeypatch):
    order = []
    for owner in (Updater, PromptReplayBuffer):
        monkeypatch.setattr(owner, "update", noting(owner, order))
    folder = start(tmp_path, "method=zppo", "steps=2")
    assert order == [*["Updater"] * 4, "PromptReplayBuffer"] * 2
    assert {p.name for p in folder.iterdir()} == {
        ".lock", "buffer.jsonl", "checkpoints", "config.yaml", "metrics.jsonl", "model", "rollouts", "run.json",
        "run.log",
    }  # fmt: skip
    info = RunFolder.read_info(folder)
    assert (info["status"], info["num_steps"], info["label"]) == ("done", 2, "zppo")
    frame = pd.concat(pd.read_parquet(p) for p in sorted((folder / "rollouts").iterdir()))
    assert set(frame["sampler"]) == {"student", "teacher"}
    assert not frame[frame["sampler"] == "teacher"]["trained"].any()
    assert frame[frame["sampler"] == "student"]["trained"].all()
    plain = frame[(frame["kind"] == "plain") & (frame["sampler"] == "student")]
    hard = plain.groupby(["step", "question_id"])["reward"].mean().lt(0.5)
    asked = frame[(frame["sampler"] == "teacher") & (frame["kind"] == "plain")].groupby(["step", "question_id"]).size()
    assert set(asked.index) == set(hard[hard].index)
    events = [json.loads(line) for line in (folder / "buffer.jsonl").read_text().splitlines()]
    admitted = {e["question_id"] for e in events if e["event"] == "admit" and e["step"] == 1}
    assert admitted == {question for step, question in hard[hard].index if step == 1}
    assert len(admitted) == sum(e["step"] == 1 for e in events)  # candidate and teacher groups decide nothing


@pytest.mark.parametrize(
    "methods",
    [
        ("zppo", "off_policy_kd", "hint"),  # its buffer, a teacher's distribution, hints
        pytest.param(("prefix", "grpo_teacher_response", "grpo_equal_tokens"), marks=pytest.mark.slow),
    ],
)
def test_every_metric_is_documented(tmp_path, methods):
    documented, section = set(), ""
    for line in (Path(__file__).parents[2] / "docs" / "run_folder.md").read_text(encoding="utf-8").splitlines():
        for name in line.split("|")[1].split("`")[1::2] if line.startswith("| `") else ():
            section = name.split("/")[0] if "/" in name else section
            documented.add(name if "/" in name else f"{section}/{name}")
    folders = [
        start(tmp_path, f"method={method}", f"steps={2 if method == 'zppo' else 1}")  # the second step replays
        for method in methods
    ]
    rows = [json.loads(line) for folder in folders for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = {re.sub(r"@visits_\d+$", "@visits_K", key) for row in rows for key in row}
    names = {re.sub(r"^(mismatch/.*)@\d+$", r"\1@LENGTH", name) for name in names}
    names = {re.sub(r"@[\d.]+$", "@ENTRY", name) for name in names}
    assert names - documented - {"step"} == set()
    assert {"memory/resident_mb", "process/num_open_files"} <= names  # what a leak is seen by


def test_a_done_run_is_left_alone(tmp_path):
    folder = start(tmp_path, "method=grpo", "steps=1")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != "config.yaml"}
    assert start(tmp_path, "method=grpo", "steps=1") == folder
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_resume_never_refuses_a_folder_with_checkpoints(tmp_path):
    start(tmp_path, "method=grpo", "steps=1")
    with pytest.raises(UserError, match="resume=never"):
        start(tmp_path, "method=grpo", "steps=2", "resume=never")


def test_more_steps_than_the_data_give(tmp_path):
    with pytest.raises(UserError, match=r"the data give 8 steps in data.epochs=2; raise data.epochs or lower steps"):
        start(tmp_path, "method=grpo", "steps=9")
    assert list(tmp_path.rglob("run.json")) == []


def test_cross_family_teacher_is_refused(tmp_path):
    """The hybrid model shares the tokenizer; a copy with another vocabulary does not."""
    from harness.models.tiny import tiny_path

    other = tmp_path / "other"
    other.mkdir()
    for file in Path(tiny_path("teacher")).iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    text = (other / "tokenizer.json").read_text(encoding="utf-8").replace('"<summary>"', '"<abstract>"')
    (other / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="have different tokenizers"):
        start(tmp_path / "out", "method=on_policy_kd", "steps=1", "teacher=hf", f"teacher.path={other}")


def test_a_method_that_imports_a_private_module_while_it_runs_is_told_the_public_ones(tmp_path, monkeypatch):
    file = "from methods.base import PolicyGradientMethod\n\n\nclass Late(PolicyGradientMethod):\n"
    file += "    def collect(self, batch, actors, rng):\n        from harness.actors import LiveActors\n"
    (tmp_path / "late_file.py").write_text(file)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UserError, match=r"No module named 'harness\.actors': import from methods\.base, harness\.types"
    ):
        start(tmp_path, "method._target_=late_file:Late", "steps=1")
    info = json.loads(next(tmp_path.rglob("run.json")).read_text())
    assert info["status"] == "failed" and "import from methods.base" in info["error"]


def test_another_package_that_is_missing_fails_as_it_is(tmp_path, monkeypatch):
    file = "from methods.base import PolicyGradientMethod\n\n\nclass Late(PolicyGradientMethod):\n"
    file += "    def collect(self, batch, actors, rng):\n        import absent_pkg\n"
    (tmp_path / "late_other.py").write_text(file)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="absent_pkg"):
        start(tmp_path, "method._target_=late_other:Late", "steps=1")
    assert "methods.base" not in json.loads(next(tmp_path.rglob("run.json")).read_text())["error"]


def test_base_is_evaluated_only(tmp_path):
    folder = start(
        tmp_path, "method=base", "eval=mini", "eval.num_questions=5", "eval.levels=[1]", "~method.group_size"
    )
    assert (folder / "eval" / "mini" / "scores.csv").exists()
    assert not (folder / "model").exists() and not (folder / "metrics.jsonl").exists()
    assert RunFolder.read_info(folder)["method_class"] is None


def test_run_json_says_which_class_ran_and_the_version_of_its_package(install, tmp_path):
    install("zppo-demo", {"demo": "demo_pkg:Demo"}, version="2.3")
    info = RunFolder.read_info(start(tmp_path / "out", "method=demo", "steps=1"))
    assert (info["method"], info["method_class"], info["versions"]["zppo-demo"]) == ("demo", "demo_pkg:Demo", "2.3")
    info = RunFolder.read_info(start(tmp_path / "out", "method._target_=methods.grpo:GRPO", "steps=1"))
    assert (info["method"], info["method_class"]) == ("grpo", "methods.grpo:GRPO")
    assert "zppo-demo" not in info["versions"]


def test_evaluation_during_training(tmp_path):
    options = ["eval=mini", "eval.num_questions=3", "eval.levels=[1]", "eval.every=1"]
    folder = start(tmp_path, "method=grpo", "steps=2", *options)
    assert (folder / "eval" / "mini" / "step-000001" / "scores.csv").exists()
    assert (folder / "eval" / "mini" / "scores.csv").exists()
    without = start(tmp_path / "plain", "method=grpo", "steps=2")
    assert metrics(folder) == metrics(without)  # looking at the student does not change it


def test_a_run_on_all_modalities_resumes_with_its_buffer(tmp_path):
    options = ["method=zppo", "data=mixture", "steps=2", "checkpoint.every=1", "method.teacher_group_size=2"]
    whole = start(tmp_path / "a", *options)
    broken = start(tmp_path / "b", *options[:2], "steps=1", *options[3:])
    (broken / "run.json").unlink()
    assert_same_run(whole, start(tmp_path / "b", *options))
    assert {row["mismatch/max"] < 1e-4 for row in metrics(whole) if "mismatch/max" in row} == {True}
    shown = set()
    for file in sorted((whole / "rollouts").glob("*.parquet")):
        rows = pd.read_parquet(file)
        shown |= {(row.kind, row.question_id.split("/")[0]) for row in rows.itertuples()}
    assert {task for _, task in shown} == {"arithmetic", "bar_chart", "bar_cards", "bar_clip"}


def test_a_teacher_that_would_see_other_pixels_is_refused(tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(tiny_path("teacher"), teacher)
    file = teacher / "processor_config.json"
    processor = json.loads(file.read_text())
    processor["image_processor"]["image_mean"] = [0.25, 0.25, 0.25]
    file.write_text(json.dumps(processor))
    options = ["method=zppo", "steps=1", "teacher=hf", f"teacher.path={teacher}", "teacher.dtype=float32"]
    start(tmp_path / "text", *options)
    with pytest.raises(UserError, match=r"see media differently \(image.image_mean is \(0.25, 0.25, 0.25\) and"):
        start(tmp_path / "media", *options, "data=mixture")


def test_bad_media_are_skipped_counted_and_named_up_to_the_limit(tmp_path, caplog):
    caplog.set_level("INFO")
    Image.new("RGB", (64, 32), (200, 10, 10)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no image")
    shown = [{"images": "good.png"}, {"images": "bad.png"}, {"video": "missing.mp4"}, *[{}] * 21]
    rows = [{"question": f"Compute {i}+5.", "answer": str(i + 5), **media} for i, media in enumerate(shown)]
    file = tmp_path / "d.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    options = ["method=grpo", "steps=1", "data=jsonl", f"data.path={file}", "data.pool_size=22"]
    with pytest.raises(UserError, match=r"d\.jsonl:2: image .*bad\.png is no image .* \(2 of 24 rows are bad"):
        start(tmp_path / "a", *options)
    folder = start(tmp_path / "b", *options, "data.max_bad_fraction=0.1")
    log = (folder / "run.log").read_text()
    assert "22 questions (2 bad, 0 with more" in log
    assert "d.jsonl:2: image" in log and "d.jsonl:3: video" in log and "missing.mp4 does not exist" in log


def test_every_file_follows_the_umask(tmp_path, monkeypatch):
    """What a step has sampled too, which only a run that ended early leaves."""
    import os

    from harness.training.stored_step import StoredSteps

    monkeypatch.setattr(StoredSteps, "keep_only", lambda *_: None)
    before = os.umask(0o027)
    try:
        folder = start(tmp_path, "method=grpo", "steps=1")
    finally:
        os.umask(before)
    modes = {str(p.relative_to(folder)): oct(p.stat().st_mode & 0o777) for p in folder.rglob("*") if p.is_file()}
    assert modes.keys() >= {"model/model.safetensors", "pending/step-000001.safetensors"}
    assert set(modes.values()) == {"0o640"}, modes
    assert not [name for name in modes if name.endswith(".mode")]
