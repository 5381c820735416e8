from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.config.compose import (
    compose,
    compose_option,
    compose_sweep,
    compose_with_choices,
    group_options,
    snake_case,
)
from harness.config.schema import RunConfig, from_hydra
from harness.errors import UserError
from methods.registry import build

ROOT = Path(__file__).parents[3]


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
        ("method=[grpo]", "method=[grpo]: no such option. Did you mean 'grpo'"),
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


@pytest.mark.parametrize("name", ["2024", "1.5", "true"])
def test_an_option_may_be_named_by_a_number(tmp_path, name):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"{name}.yaml").write_text("source: jsonl\npath: mine.jsonl\n")
    assert compose([f"data={name}"], config_dir=str(tmp_path)).data.path == "mine.jsonl"
    with pytest.raises(UserError, match=f"^data=7: no such option. .*{name}"):
        compose(["data=7"], config_dir=str(tmp_path))


def test_option_files_of_a_plugin_come_after_ours_and_the_users(install, tmp_path):
    install(
        "zppo-demo",
        {"demo": "demo_pkg:Demo"},
        {
            "demo_pkg/__init__.py": "raise RuntimeError('composing imports no plugin')",
            "demo_pkg/conf/method/demo.yaml": "name: demo\nclass: demo\ntau: 0.125\n",
            "demo_pkg/conf/method/demo_replay.yaml": "defaults: [demo, _self_]\nname: demo_replay\nreplay: true\n",
            "demo_pkg/conf/method/grpo.yaml": "name: not_ours\nclass: demo\n",
            "demo_pkg/conf/data/mine.yaml": "source: jsonl\npath: mine.jsonl\n",
        },
    )
    assert {"demo", "demo_replay", "grpo"} <= set(group_options("method"))
    assert compose(["method=demo"]).method == {"name": "demo", "class": "demo", "tau": 0.125}
    assert compose(["method=grpo"]).method.name == "grpo"
    assert from_hydra(compose(["data=mine"])).data.path == "mine.jsonl"
    replay = {"name": "demo_replay", "class": "demo", "tau": 0.125, "replay": True}
    assert compose(["method=demo_replay"]).method == compose_option("method", "demo_replay") == replay
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "demo.yaml").write_text("name: demo\nclass: demo\ntau: 0.75\n")
    assert compose(["method=demo"], config_dir=str(tmp_path / "conf")).method.tau == 0.75


def test_names_of_plugins_are_suggested_and_a_broken_one_says_why(install):
    install("zppo-demo", {"demo": "demo_pkg:Demo"})
    install("zppo-bare", {"quixotic": "bare_pkg:Demo"}, {"bare_pkg/__init__.py": ""})
    for override, message in [
        ("method=demmo", "method=demmo: no such option. Did you mean 'demo'?"),
        ("method=quixotc", "method=quixotc: no such option. Did you mean 'quixotic'?"),
        (
            "method=quixotic",
            "zppo-bare 1.0 declares method 'quixotic' but ships no bare_pkg/conf/method/quixotic.yaml: "
            "add the file (and to its package data), or uninstall zppo-bare",
        ),
    ]:
        with pytest.raises(UserError) as caught:
            compose([override])
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("overrides", "method"),
    [
        (["method._target_=methods.zppo:ZPPO"], {"class": "methods.zppo:ZPPO", "name": "zppo"}),
        (["+method._target_=methods.zppo.ZPPO"], {"class": "methods.zppo.ZPPO", "name": "zppo"}),
        (["method._target_='methods.grpo:GRPO'", "method.tau=0.25"],
         {"class": "methods.grpo:GRPO", "name": "grpo", "tau": 0.25}),
        (["method._target_=methods.policy:PolicyGradientMethod"],
         {"class": "methods.policy:PolicyGradientMethod", "name": "policy_gradient_method"}),
        (["method._target_=methods.grpo:GRPO", "method.name=mine"], {"class": "methods.grpo:GRPO", "name": "mine"}),
        (["method=grpo_replay", "method._target_=methods.policy:PolicyGradientMethod"],
         {"class": "methods.policy:PolicyGradientMethod", "name": "policy_gradient_method", "replay": True}),
    ],
)  # fmt: skip
def test_a_class_is_named_without_packaging(overrides, method):
    """Without a preset (the default one may have options that another class lacks), unless one is chosen."""
    cfg, choices = compose_with_choices(overrides)
    assert choices.get("method") == ("grpo_replay" if "method=grpo_replay" in overrides else None)
    config = from_hydra(cfg)
    assert config.method == method
    built = build(config.method)
    assert type(built).__name__ == method["class"].replace(":", ".").rpartition(".")[2]
    assert all(getattr(built.config, key) == value for key, value in method.items() if key not in ("name", "class"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method._target_=null"], "method._target_=null: write method._target_=package.module:Class"),
        (["method._target_="], "method._target_=: write method._target_=package.module:Class"),
        (["method._target_=a:A", "method.class=grpo"],
         "method.class and method._target_ both name the class: leave one of them out"),
        (["method._target_=a:A,b:B"], "'method._target_=a:A,b:B' has several values: add -m"),
    ],
)  # fmt: skip
def test_what_is_refused_of_a_class_without_packaging(overrides, message):
    with pytest.raises(UserError) as caught:
        compose(overrides)
    assert str(caught.value).startswith(message)


def test_snake_case():
    names = ["MaxRL", "MyMethod", "GRPO", "HTTPMethod", "Method2B", "already_snake"]
    assert [snake_case(name) for name in names] == [
        "max_rl", "my_method", "grpo", "http_method", "method2_b", "already_snake",
    ]  # fmt: skip


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
        "import sys; from harness.config.compose import compose, compose_sweep; import harness.study.scheduler\n"
        "print(compose(['method=grpo']).method.name)\n"
        "print(compose_sweep('quickstart', [])[0]['study'], 'torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == ["grpo", "quickstart", "False"]
