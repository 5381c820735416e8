"""What a run of somebody's own method records, and what such a method may not do: through `zppo train`, from a file."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from harness.app import main

SMALL = [
    "student=tiny_xs", "eval=none", "data.batch_size=2", "data.num_questions=20", "data.pool_size=12",
    "data.levels=[1]", "rollout.max_response_tokens=16", "method.group_size=4", "steps=1", "num_threads=1",
]  # fmt: skip

FILE = """
import copy
from dataclasses import dataclass, replace
from methods.base import MethodConfig, PolicyGradientMethod, plain_prompt, rollout_sample


@dataclass(frozen=True, kw_only=True)
class OwnConfig(PolicyGradientMethod.Config):
    strength: float = 0.5
    '''Of nothing.'''


class Own(PolicyGradientMethod):
    Config = OwnConfig


class Shapes(Own):
    def credit(self, groups):
        for group in groups:
            for rollout in group.rollouts:
                rollout.training_reward = rollout.reward + rollout.index / 8
        return super().credit(groups)


class Copies(Shapes):
    def credit(self, groups):
        return super().credit(copy.deepcopy(groups))


class Nameless(Own):
    def credit(self, groups):
        return [replace(sample, rollout=None) for sample in super().credit(groups)]


class Renames(Own):
    def credit(self, groups):
        return [replace(sample, uid=sample.uid + "!") for sample in super().credit(groups)]


class Renumbers(Own):
    def credit(self, groups):
        return [replace(s, rollout=replace(s.rollout, index=9)) for s in super().credit(groups)]


class Unexpected(Own):
    def is_trained(self, group):
        return False


class Twice(Own):
    def collect(self, batch, actors, rng):
        groups = super().collect(batch, actors, rng)
        return [*groups, groups[0]]


class Doubles(Own):
    def collect(self, batch, actors, rng):
        groups = super().collect(batch, actors, rng)
        groups[0].rollouts.append(groups[0].rollouts[0])
        return groups


class Joins(Own):
    '''The teacher's rollout 0 of a question joins the student's 0 to 3.'''

    needs_teacher = "rollouts"
    trained_samplers = frozenset({"student", "teacher"})

    def collect(self, batch, actors, rng):
        groups = super().collect(batch, actors, rng)
        prompts = [replace(plain_prompt(q), uid=f"{q.id}/teacher") for q in batch.new]
        for group, theirs in zip(groups, actors.teacher(prompts, 1).list()):
            group.rollouts += theirs.rollouts
            for rollout in group.rollouts:
                rollout.training_reward = rollout.index + 10.0 * (rollout.sampler == "teacher")
        return groups

    def members(self, group):
        return group.rollouts


class Teachers(Own):
    needs_teacher = "rollouts"

    def collect(self, batch, actors, rng):
        prompts = [replace(plain_prompt(q), uid=f"{q.id}/teacher") for q in batch.new]
        return [*super().collect(batch, actors, rng), *actors.teacher(prompts, 2).list()]

    def credit(self, groups):
        return [rollout_sample(group.uid, r, advantage=1.0) for group in groups for r in group.rollouts]
"""


@pytest.fixture
def train(tmp_path, monkeypatch):
    """`train("Own", ...)` runs a class of the file; gives the exit code and the run folder."""
    (tmp_path / "own_methods.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_methods", raising=False)

    def start(name: str, *overrides: str) -> tuple[int, Path]:
        words = [f"method._target_=own_methods:{name}", "method.name=own", f"study={name}", f"outputs={tmp_path}"]
        return main(["train", *SMALL, *words, *overrides]), tmp_path / name / "own" / "tiny_xs" / "seed0"

    return start


def rollouts(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "rollouts" / "step-000001.parquet")


def test_a_method_that_works_on_copies_is_recorded_like_one_that_does_not(train):
    assert [train(name)[0] for name in ("Shapes", "Copies")] == [0, 0]
    ours, copies = (rollouts(train(name)[1]) for name in ("Shapes", "Copies"))
    pd.testing.assert_frame_equal(ours, copies)
    assert copies["trained"].all() and copies["advantage"].notna().all()
    assert list(copies["training_reward"] - copies["reward"]) == [0.0, 0.125, 0.25, 0.375] * 2


def test_rollouts_of_two_samplers_in_a_group_are_told_apart(train):
    """Rewards 0, 1, 2, 3 and 10 have the mean 3.2."""
    code, folder = train("Joins", "method.advantage_normalization=none")
    rows = rollouts(folder)
    assert code == 0 and list(rows["sampler"]) == [*["student"] * 4, "teacher"] * 2 and rows["trained"].all()
    assert list(rows["index"]) == [0, 1, 2, 3, 0] * 2
    assert list(rows["training_reward"]) == [0, 1, 2, 3, 10] * 2
    assert list(rows["advantage"]) == pytest.approx([-3.2, -2.2, -1.2, -0.2, 6.8] * 2)


def test_samples_without_a_rollout_are_counted(train):
    code, folder = train("Nameless")
    (row,) = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert (code, row["train/unrecorded_samples"], row["train/num_samples"]) == (0, 8.0, 8.0)
    assert not rollouts(folder)["trained"].any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Renames", "error: Renames.credit trains a sample of '"),
        ("Renumbers", "error: Renumbers.credit trains rollout 9 of the student of '"),
        ("Unexpected", "error: Unexpected.credit trains a sample of '"),
        ("Twice", "error: Twice.collect returns two groups '"),
        ("Doubles", "error: Doubles.collect returns two rollouts of one sampler and index in the group '"),
        (
            "Teachers",
            "error: Teachers.credit trains tokens of the teacher: declare it in trained_samplers (now student)",
        ),
    ],
)
def test_names_that_a_step_does_not_have_are_refused_in_one_line(train, capsys, name, message):
    code, folder = train(name)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert code == 2 and line.startswith(message), line
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"


def test_every_option_is_recorded_and_a_changed_default_is_another_run(train, capsys):
    code, folder = train("Own", "method.strength=0.5")
    assert code == 0
    stored = yaml.safe_load((folder / "config.yaml").read_text())["method"]
    info = json.loads((folder / "run.json").read_text())
    assert stored["strength"] == 0.5 and stored["tau"] == 0.5 and stored["clip_ratio_high"] == 0.28
    assert info["method_options"] == {k: v for k, v in stored.items() if k not in ("name", "class")}
    assert info["plugin"] is None
    before = (folder / "config.yaml").read_bytes()
    assert train("Own", "steps=1")[0] == 0  # a default that is left out is the same run
    file = folder.parents[3] / "own_methods.py"
    file.write_text(FILE.replace("strength: float = 0.5", "strength: float = 0.25"))
    shutil.rmtree(file.parent / "__pycache__", ignore_errors=True)
    del __import__("sys").modules["own_methods"]
    capsys.readouterr()
    assert train("Own", "steps=2")[0] == 2
    assert "another configuration (method.strength=0.5, not 0.25)" in capsys.readouterr().err
    assert (folder / "config.yaml").read_bytes() == before
    assert train("Own", "steps=2", "method.strength=0.5")[0] == 0  # as it was, written out


def test_the_plugin_is_recorded_and_another_version_is_another_run(tmp_path, install, capsys):
    site = install("zppo-demo", {"demo": "demo_pkg:Demo"}, version="2.3")
    words = ["train", *SMALL, "method=demo", f"outputs={tmp_path}"]
    assert main(words) == 0
    folder = tmp_path / "default" / "demo" / "tiny_xs" / "seed0"
    assert yaml.safe_load((folder / "config.yaml").read_text())["method"]["plugin"] == "zppo-demo 2.3"
    assert json.loads((folder / "run.json").read_text())["plugin"] == "zppo-demo 2.3"
    metadata = next(site.glob("*.dist-info/METADATA"))
    metadata.write_text(metadata.read_text().replace("2.3", "2.4"))
    from methods import plugins

    plugins._installed.cache_clear()
    capsys.readouterr()
    assert main([*words, "steps=2"]) == 2
    assert "method.plugin=zppo-demo 2.3, not zppo-demo 2.4" in capsys.readouterr().err
