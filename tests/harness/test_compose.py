from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.compose import compose, compose_sweep, compose_with_choices, group_options
from harness.config import RunConfig, from_hydra
from harness.errors import UserError

ROOT = Path(__file__).parents[2]


def test_overrides_reach_the_configuration_though_no_file_names_the_key():
    config = from_hydra(compose(["method=grpo", "steps=3", "method.tau=0.25", "data.dataset_config.max_terms=2"]))
    assert (config.steps, config.method, config.data.dataset_config) == (
        3, {"name": "grpo", "class": "grpo", "tau": 0.25}, {"max_terms": 2},
    )  # fmt: skip


def test_choices_are_the_options_of_the_groups():
    cfg, choices = compose_with_choices(["method=grpo_replay", "student=tiny_xs"])
    assert (choices["method"], choices["student"], choices["tracker"]) == ("grpo_replay", "tiny_xs", "none")
    assert "hydra" not in cfg
    assert set(cfg) <= set(RunConfig.__dataclass_fields__)


def test_a_group_can_be_taken_out():
    assert from_hydra(compose(["method=grpo", "teacher=null"])).teacher is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=zpo", "method=zpo: no such option. Did you mean 'zppo'"),
        ("tracker=", "tracker=: no such option. Known: none, wandb."),
        ("method=[grpo]", "method=['grpo']: no such option. Did you mean 'grpo'?"),
        ("stepss=5", "unknown option 'stepss'. Did you mean 'steps'"),
        ("+stepss=5", "unknown option 'stepss'. Did you mean 'steps'"),
        ("data.batchsize=3", "unknown option 'data.batchsize'. Did you mean 'data.batch_size'"),
        ("student.patth=x", "unknown option 'student.patth'. Did you mean 'student.path'"),
        ("steps.more=1", "unknown option 'steps.more'."),
        ("~qqqqqq", "unknown option 'qqqqqq'. See zppo train --print-config."),
        ("hydra.run.dir=x", "unknown option 'hydra.run.dir'."),
        ("a b", "cannot read override 'a b': write key=value"),
        ("steps=[1", "cannot read override 'steps=[1'"),
        ("seed=1,2", "'seed=1,2' has several values: add -m"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line(override, message):
    with pytest.raises(UserError) as caught:
        compose([override])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_options_and_sweeps_of_the_user(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("name: mine\nclass: grpo\ntau: 0.125\n")
    (tmp_path / "ours.yaml").write_text(
        "defaults: [/train, _self_]\nhydra: {sweeper: {params: {method: 'base,mine'}}}\n"
    )
    assert "mine" in group_options("method", str(tmp_path))
    assert compose(["method=mine"], config_dir=str(tmp_path)).method.tau == 0.125
    assert compose_sweep("ours", [], str(tmp_path)) == ({"method": "base,mine"}, [])
    with pytest.raises(UserError, match="no folder"):
        compose([], config_dir=str(tmp_path / "absent"))


def test_quickstart_has_its_parameters_and_takes_the_users():
    params, rest = compose_sweep("quickstart", ["seed=0,1", "update.weight_decay=0"])
    assert params["method"].split(",")[0] == "base"
    assert (params["study"], params["seed"], rest) == ("quickstart", "0,1", ["update.weight_decay=0"])


def test_sweep_files_that_would_lose_a_value_are_refused(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'quickstart'"):
        compose_sweep("quikstart", [])
    sweep = tmp_path / "mine.yaml"
    sweep.write_text("defaults: [/train, _self_]\nsteps: 3\nhydra: {sweeper: {params: {seed: 0}}}\n")
    with pytest.raises(UserError, match="sets steps outside"):
        compose_sweep("mine", [], str(tmp_path))
    sweep.write_text("defaults: [/train, override /method: grpo, _self_]\nhydra: {sweeper: {params: {seed: 0}}}\n")
    with pytest.raises(UserError, match="sets override /method outside"):
        compose_sweep("mine", [], str(tmp_path))
    sweep.write_text("defaults: [/train, _self_]\n")
    with pytest.raises(UserError, match="list there what it varies"):
        compose_sweep("mine", [], str(tmp_path))


def test_a_key_given_twice_in_a_sweep_is_refused():
    with pytest.raises(UserError, match="'seed' is given twice"):
        compose_sweep("quickstart", ["seed=0", "seed=1"])


def test_any_working_directory_and_no_torch(tmp_path):
    code = (
        "import sys; from harness.compose import compose, compose_sweep; import harness.scheduler\n"
        "print(compose(['method=grpo']).method.name)\n"
        "print(compose_sweep('quickstart', [])[0]['study'], 'torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == ["grpo", "quickstart", "False"]
