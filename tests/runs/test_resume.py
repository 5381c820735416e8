"""Whole runs that go on: from which checkpoint, with what they have missed, and when not."""

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from harness.config.compose import compose
from harness.config.schema import from_hydra
from harness.errors import UserError
from harness.process import preemption
from harness.records.files import sha256
from harness.records.folder import RunFolder
from harness.run.run import run
from harness.testing import assert_same_run, run_metrics
from methods.grpo import GRPO

SMALL = [
    "method=grpo", "student=tiny_xs", "eval=none", "data.batch_size=4", "data.pool_size=16", "data.num_questions=32",
    "data.epochs=2", "data.levels=[1,2]", "method.group_size=2", "rollout.max_response_tokens=16", "num_threads=1",
    "device=cpu", "checkpoint.every=1", "steps=4",
]  # fmt: skip


def start(outputs: Path, *overrides: str) -> Path:
    return run(from_hydra(compose([*SMALL, f"outputs={outputs}", *overrides])))


def reopen(folder: Path) -> None:
    """As if the run had been killed behind its last checkpoint."""
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | {"status": "running"}))


def cut(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def contents(folder: Path) -> dict[Path, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p: p.read_bytes() for p in files if p.name not in ("run.log", "run.json", ".lock", ".lock.json")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return start(tmp_path_factory.mktemp("whole"))


def test_a_cut_checkpoint_is_set_aside_and_the_one_before_is_taken(whole, tmp_path):
    folder = start(tmp_path, "steps=3", "checkpoint.keep_last=2")
    cut(folder / "checkpoints" / "step-000003")
    assert start(tmp_path, "checkpoint.keep_last=2") == folder
    assert_same_run(whole, folder)
    names = {p.name for p in (folder / "checkpoints").iterdir()}
    assert names == {"step-000003.damaged", "step-000003", "step-000004"}
    log = (folder / "run.log").read_text()
    assert "step-000003 is damaged (model.safetensors is not what was written): it is now step-000003.damaged" in log


def test_without_an_intact_checkpoint_nothing_is_touched(tmp_path):
    folder = start(tmp_path, "steps=2")
    cut(folder / "checkpoints" / "step-000002")
    before = contents(folder)
    for _ in range(2):  # the second launch must not find an empty folder and start anew
        with pytest.raises(UserError, match=r"is intact \(step-000002: model.safetensors is not what was written\)"):
            start(tmp_path)
    assert contents(folder) == before


def test_a_checkpoint_of_another_method_or_seed_is_refused(tmp_path):
    folder = start(tmp_path, "steps=1")
    other = start(tmp_path, "method=sft", "~method.group_size", "steps=2", "seed=1")
    shutil.copytree(other / "checkpoints" / "step-000002", folder / "checkpoints" / "step-000002")
    before = contents(folder)
    with pytest.raises(UserError, match=r"step-000002 is a checkpoint of another run \(method.class=sft, not grpo"):
        start(tmp_path)
    assert contents(folder) == before | {folder / "config.yaml": (folder / "config.yaml").read_bytes()}


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    """One whose state does not say whose it is."""
    folder = start(tmp_path, "steps=1")
    other = start(tmp_path, "steps=2", "student=tiny_s")
    copy = folder / "checkpoints" / "step-000002"
    shutil.copytree(other / "checkpoints" / "step-000002", copy)
    state = json.loads((copy / "state.json").read_text())
    sums = (copy / "SHA256SUMS").read_text().replace(sha256(copy / "state.json"), "{}")
    (copy / "state.json").write_text(json.dumps({k: v for k, v in state.items() if k != "config"}))
    (copy / "SHA256SUMS").write_text(sums.format(sha256(copy / "state.json")))
    with pytest.raises(UserError, match=r"step-000002 is not a checkpoint of this student \(it differs in model"):
        start(tmp_path)


def test_a_changed_configuration_is_named_and_so_is_what_may_change(whole):
    with pytest.raises(UserError) as error:
        start(whole.parents[3], "update.learning_rate=1e-3", "checkpoint.every=3")
    text = str(error.value)
    assert "another configuration (update.learning_rate=0.0002, not 0.001): choose another study=NAME" in text
    assert "only these may change: steps, resume, outputs" in text and "\n" not in text


def test_a_folder_of_an_earlier_version_is_the_same_run(whole, tmp_path):
    """Keys that came later stood at their defaults; a key that is gone and was null decided nothing."""
    folder = start(tmp_path, "steps=2")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for key in ("checkpoint", "rollouts", "preempt_grace", "alarms"):
        del config[key]
    del config["data"]["max_bad_fraction"]

    def write_as_then(config: dict) -> None:
        """Earlier versions kept no checksum of the configuration in run.json."""
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        info = json.loads((folder / "run.json").read_text())
        del info["config_sha256"]
        (folder / "run.json").write_text(json.dumps(info))

    write_as_then(config | {"student": config["student"] | {"gguf_file": None}})
    assert_same_run(whole, start(tmp_path))
    write_as_then(config)
    with pytest.raises(UserError, match=r"\(data.max_bad_fraction=0.0, not 0.1\)"):
        start(tmp_path, "data.max_bad_fraction=0.1")


@pytest.mark.slow
def test_an_evaluation_that_a_kill_prevented_is_made_up_for(tmp_path):
    """Killed behind the checkpoint of step 2, before its evaluation."""
    options = ["eval=mini", "eval.num_questions=3", "eval.every=2"]
    whole = start(tmp_path / "a", *options)
    killed = start(tmp_path / "b", *options, "steps=2")
    reopen(killed)
    assert not (killed / "eval/mini/step-000002").exists()
    assert_same_run(whole, start(tmp_path / "b", *options))
    for name in ("step-000002/scores.csv", "step-000002/rows.jsonl", "scores.csv"):
        assert (killed / "eval/mini" / name).read_text() == (whole / "eval/mini" / name).read_text()
    assert not (killed / "eval/mini/step-000004").exists()


@pytest.mark.slow
def test_a_run_whose_data_have_ended_early_is_complete(tmp_path, monkeypatch):
    """A method that takes a second batch a step: 32 questions are 4 steps of 4 + 4, where 8 were planned."""
    monkeypatch.setattr(GRPO, "collect", lambda self, batch, actors, rng: (
        batch.more(len(batch.new)), self.plain_groups(batch, actors).list()
    )[1])  # fmt: skip
    folder = start(tmp_path, "steps=8")
    assert [row["step"] for row in run_metrics(folder)] == [1, 2, 3, 4]
    before = contents(folder)
    reopen(folder)
    assert start(tmp_path, "steps=8") == folder
    assert contents(folder) == before
    assert RunFolder.read_info(folder)["status"] == "done"


@contextmanager
def killed_at(point: str, number: int) -> Iterator[None]:
    """The run in here is left at the `number`-th time that it comes by a point, with nothing cleared away in between
    that a kill would leave: see tests/faults for real ones."""
    passed = []

    def stop(name: str) -> None:
        passed.append(name)
        if passed.count(point) == number:
            raise KeyboardInterrupt

    preemption.watch(stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        preemption.watch(None)


@pytest.fixture
def collected(monkeypatch) -> list[int]:
    """The steps that are sampled."""
    steps = []
    collect = GRPO.collect

    def count(self, batch, actors, rng):
        steps.append(batch.step)
        return collect(self, batch, actors, rng)

    monkeypatch.setattr(GRPO, "collect", count)
    return steps


@pytest.fixture
def drawn(monkeypatch) -> list[float]:
    """What `credit` draws from a global random stream, of which `collect` draws too."""
    values = []
    collect, credit = GRPO.collect, GRPO.credit

    def collect_and_draw(self, batch, actors, rng):
        random.random()
        return collect(self, batch, actors, rng)

    def credit_and_draw(self, groups):
        values.append(random.random())
        return credit(self, groups)

    monkeypatch.setattr(GRPO, "collect", collect_and_draw)
    monkeypatch.setattr(GRPO, "credit", credit_and_draw)
    return values


def test_what_was_sampled_is_not_sampled_again(whole, tmp_path, collected, drawn):
    """Left in step 3, with a checkpoint of step 1 alone: steps 2 and 3 are trained from their stored rollouts."""
    start(tmp_path, "steps=1")
    with killed_at("stored", 2):
        start(tmp_path, "checkpoint.every=10")
    folder = next(tmp_path.rglob("run.json")).parent
    assert sorted(p.name for p in (folder / "pending").iterdir()) == [
        "step-000002.safetensors",
        "step-000003.safetensors",
    ]
    assert_same_run(whole, start(tmp_path, "checkpoint.every=10"))
    assert collected == [1, 2, 3, 4]
    stream = random.Random(0)
    ours = [stream.random() for _ in range(8)][1::2]
    assert drawn == [*ours[:2], *ours[1:]]  # the second step's twice
    assert not (folder / "pending").exists()


def test_random_streams_go_on_between_the_updates_of_a_step(tmp_path, monkeypatch):
    """A loss draws from one; a signal comes behind the first of two updates."""
    drawn, loss = [], GRPO.loss

    def draw(self, *given):
        drawn.append(random.random())
        return loss(self, *given)

    def signal(name: str) -> None:
        if name == "update-1":
            raise preemption.Preempted

    monkeypatch.setattr(GRPO, "loss", draw)
    words = ["steps=1", "method.updates_per_step=2", "data.batch_size=2"]
    preemption.watch(signal)
    try:
        with pytest.raises(preemption.Preempted):
            start(tmp_path, *words)
    finally:
        preemption.watch(None)
    (stored,) = tmp_path.rglob("pending/step-000001.safetensors")
    content = stored.read_bytes()
    stored.write_bytes(content[:-1])  # without its rollouts half a step is of no use
    with pytest.raises(UserError, match=r"is intact \(step-000000.*: step-000001.safetensors cannot be read"):
        start(tmp_path, *words)
    stored.write_bytes(content)
    start(tmp_path, *words)
    stream = random.Random(0)
    assert len(drawn) == 2 and drawn == [stream.random() for _ in drawn]


def test_a_stored_step_that_is_damaged_is_sampled_again(whole, tmp_path, collected):
    """So are later ones: they may be of other weights than the new step's."""
    with killed_at("stored", 2):
        start(tmp_path, "checkpoint.every=10")
    folder = next(tmp_path.rglob("run.json")).parent
    file = folder / "pending" / "step-000001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert_same_run(whole, start(tmp_path, "checkpoint.every=10"))
    assert "step 1 is sampled again: step-000001.safetensors cannot be read" in (folder / "run.log").read_text()
    assert collected == [1, 2, 1, 2, 3, 4]


@pytest.mark.slow  # `tests/runs/test_damaged.py` keeps those of one step
def test_rollouts_of_the_newest_steps_stay(tmp_path):
    folder = start(tmp_path, "rollouts.keep=2")
    assert sorted(p.name for p in (folder / "rollouts").iterdir()) == ["step-000003.parquet", "step-000004.parquet"]


@pytest.mark.slow  # imports wandb; `tests/harness/records/test_tracking.py` goes on in a run by its id
def test_a_run_that_is_killed_before_its_first_checkpoint_keeps_its_wandb_run(tmp_path, monkeypatch):
    """The real library, offline: the id is in run.json as soon as there is one."""
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("WANDB_DATA_DIR", str(tmp_path / "w"))):
        monkeypatch.setenv(name, value)
    folder = start(tmp_path, "steps=1", "tracker=wandb")
    name = RunFolder.read_info(folder)["wandb_id"]
    shutil.rmtree(folder / "checkpoints")
    reopen(folder)
    start(tmp_path, "steps=1", "tracker=wandb")
    assert RunFolder.read_info(folder)["wandb_id"] == name
    runs = [path.name for path in (folder / "wandb").glob("offline-run-*")]
    assert runs and all(name in run for run in runs)  # a second one in the same second gets a number after its id


@pytest.fixture
def mounted(tmp_path):
    """`mounted("size=2m")` is an empty file system of 2 MiB."""
    made: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"mounted{len(made)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here ({done.stderr.strip()})")
        made.append(folder)
        return folder

    yield mount
    for folder in made:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_disk_that_is_full_leaves_the_checkpoint_before_and_goes_on_when_there_is_room(whole, mounted):
    """A checkpoint of the smallest student takes 1.1 MiB; a filler leaves room for half of one."""
    disk = mounted("size=4m")
    folder = start(disk, "steps=2")
    free = shutil.disk_usage(disk).free
    (disk / "filler").write_bytes(b"0" * (free - 600_000))
    with pytest.raises(UserError, match=r"no space left for .*: free some and launch again"):
        start(disk)
    info = RunFolder.read_info(folder)
    assert info["status"] == "done" and info["last_error"].startswith("no space left for ")
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"step-000002"}
    (disk / "filler").unlink()
    assert_same_run(whole, start(disk))


@pytest.mark.slow  # as one that is full, which the fast suite fills, by another line of one table
def test_a_disk_that_turns_read_only_ends_the_run_and_it_goes_on_when_that_is_mended(whole, mounted):
    """While files are open a file system cannot be turned by hand, so a read-only one is put over the checkpoints."""
    folder = start(mounted("size=16m"), "steps=2")

    def turn(point: str) -> None:
        if point == "update-1" and not turned:
            turned.append(folder / "checkpoints")
            subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", *turned], check=True)

    turned: list[Path] = []
    preemption.watch(turn)
    try:
        with pytest.raises(UserError, match=r"cannot be written any more \(read-only file system\): mount it for"):
            start(folder.parents[3])
    finally:
        preemption.watch(None)
        subprocess.run(["umount", *turned], check=True)
    info = RunFolder.read_info(folder)
    assert info["status"] == "done" and "read-only file system" in info["last_error"]
    assert_same_run(whole, start(folder.parents[3]))


def test_a_disk_that_cannot_be_written(mounted):
    disk = mounted("size=4m")
    start(disk, "steps=1")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    before = contents(disk)
    with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\): choose another outputs=DIR"):
        start(disk, "steps=2")
    assert contents(disk) == before
