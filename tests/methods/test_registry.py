"""Presets, class names, options and their errors; and that none of it imports torch."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from methods.base import Method
from methods.keys import register
from methods.registry import MethodError, build, built_in, method_class

ROOT = Path(__file__).parents[2]
PRESETS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "conf" / "method").glob("*.yaml"))}


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_builds_under_its_own_name(preset):
    assert PRESETS[preset]["name"] == preset
    method = build(PRESETS[preset])
    assert (method is None) == (PRESETS[preset]["class"] is None)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_preset_holds_only_what_differs_from_its_class(preset):
    method = build(PRESETS[preset])
    if method is not None:
        defaults = type(method).Config()
        options = {key: value for key, value in PRESETS[preset].items() if key not in ("name", "class")}
        assert not [key for key, value in options.items() if getattr(defaults, key) == value]


COMMON = {"group_size": 8, "tau": 0.5, "replay": False, "replay_ratio": 0.25, "buffer_capacity": 10_000}
POLICY = COMMON | {
    "updates_per_step": 4,
    "clip_ratio_low": 0.20,
    "clip_ratio_high": 0.28,
    "dual_clip": 10.0,
    "advantage_normalization": "nontrivial",
    "advantage_scope": "step",
    "importance_cap": None,
}
TEACHER = POLICY | {"replay": True, "teacher_group_size": 4}
AUGMENT = TEACHER | {"augment_ratio": 0.25}
ZPPO = AUGMENT | {
    "bcq": True,
    "ncq": True,
    "compress": True,
    "compress_max_lines": 5,
    "compress_max_tokens": 512,
    "rewrite_tokens": None,
    "ncq_on_failed_rewrite": "skip_prompt",
    "bcq_positive": "right",
    "ncq_source": "own",
}
KD = COMMON | {"updates_per_step": 1, "jsd_beta": 0.5}
REPLAY = {"replay": True}
PUBLISHED = {
    "grpo": ("none", POLICY),
    "grpo_replay": ("none", POLICY | REPLAY),
    "zppo": ("rollouts", ZPPO),
    "grpo_both": ("rollouts", ZPPO | {"replay": False}),
    "grpo_replay_bcq": ("rollouts", ZPPO | {"ncq": False}),
    "grpo_replay_ncq": ("rollouts", ZPPO | {"bcq": False}),
    "hint": ("rollouts", AUGMENT | {"hint_max_tokens": 512, "rewrite_tokens": None}),
    "prefix": ("rollouts", AUGMENT | {"prefix_ratio": 0.4}),
    "grpo_teacher_response": ("rollouts", TEACHER),
    "grpo_equal_tokens": ("none", AUGMENT),
    "grpo_random_reward": ("none", POLICY | {"reward_probability": 0.5}),
    "zppo_wrong_teacher": ("rollouts", ZPPO | {"bcq_positive": "wrong"}),
    "zppo_foreign_ncq": ("rollouts", ZPPO | {"ncq_source": "foreign"}),
    "off_policy_kd": ("distribution", KD | {"teacher_group_size": 4}),
    "off_policy_kd_replay": ("distribution", KD | {"teacher_group_size": 4} | REPLAY),
    "on_policy_kd": ("distribution", KD),
    "on_policy_kd_replay": ("distribution", KD | REPLAY),
    "sft": ("none", COMMON | {"updates_per_step": 1, "template": "\\boxed{{answer}}"}),
}


@pytest.mark.clause(
    "C001",
    "C002",
    "C003",
    "C005",
    "C008",
    "C012",
    "C014",
    "C024",
    "C025",
    "C027",
    "C055",
    "C062",
    "C063",
    "C064",
    "C067",
    "C071",
    "C072",
    "C073",
    "C078",
    "C080",
    "C085",
)
@pytest.mark.parametrize("preset", sorted(PUBLISHED))
def test_defaults_are_the_published_setting(preset):
    """Table 8 and Algs. 1-6."""
    method = build(PRESETS[preset])
    assert method is not None
    needs_teacher, options = PUBLISHED[preset]
    assert dataclasses.asdict(method.config) == options
    assert method.needs_teacher == needs_teacher


def test_every_preset_that_trains_has_its_setting_above():
    assert sorted(PUBLISHED) == [name for name, options in PRESETS.items() if options["class"] is not None]


def test_registry_keys():
    assert {"grpo", "zppo", "off_policy_kd", "on_policy_kd", "sft"} <= set(built_in())
    assert PRESETS["base"] == {"name": "base", "class": None}


def test_options_override_the_class():
    method = build({"name": "mine", "class": "zppo", "bcq": False, "augment_ratio": 1, "tau": 0.4})
    assert method is not None
    assert (method.config.bcq, method.config.augment_ratio, method.config.tau) == (False, 1.0, 0.4)
    assert isinstance(method.config.augment_ratio, float)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "x"}, "the method has no 'class': choose a preset (method=grpo) or set method.class"),
        ({"class": "grpo"}, "the method has no 'name'"),
        ({"class": "zpo"}, "unknown method class 'zpo'. Did you mean zppo?"),
        ({"class": "qqq"}, "unknown method class 'qqq'. Known: "),
        ({"class": ["grpo"]}, "method.class must be a name, got ['grpo']"),
        (
            {"class": "no_such_module:Thing"},
            "method class 'no_such_module:Thing': no module no_such_module is installed",
        ),
        ({"class": "no_such.module.Thing"}, "method class 'no_such.module.Thing': no module no_such is installed, or "),
        ({"class": ":GRPO"}, "unknown method class ':GRPO'"),
        (
            {"class": "methods.no_such:Thing"},
            "method class 'methods.no_such:Thing' cannot be used: importing methods.no_such fails "
            "(ModuleNotFoundError: No module named 'methods.no_such')",
        ),
        (
            {"class": "methods.grpo.GRPOO"},
            "method class 'methods.grpo.GRPOO' cannot be used: methods.grpo has no class GRPOO (did you mean GRPO?)",
        ),
        (
            {"class": "methods.grpo:register"},
            "method class 'methods.grpo:register' cannot be used: methods.grpo:register is not derived from "
            "methods.base.Method",
        ),
        (
            {"class": "grpo", "clip_ratio_hi": 1.0},
            "GRPO has no option 'method.clip_ratio_hi'. Did you mean clip_ratio_high",
        ),
        (
            {"class": "grpo", "zzz": 1},
            "GRPO has no option 'method.zzz'. Options: advantage_normalization, advantage_scope, buffer_capacity,",
        ),
        ({"class": "grpo", "jsd_beta": 0.5}, "GRPO has no option 'method.jsd_beta'."),
        ({"class": "grpo", "group_size": "8"}, "method.group_size must be an integer, got '8'"),
        ({"class": "grpo", "group_size": 8.0}, "method.group_size must be an integer, got 8.0"),
        ({"class": "grpo", "group_size": True}, "method.group_size must be an integer, got true"),
        ({"class": "grpo", "tau": True}, "method.tau must be a number, got true"),
        ({"class": "grpo", "tau": None}, "method.tau must be a number, got null"),
        ({"class": "grpo", "replay": 1}, "method.replay must be true or false, got 1"),
        ({"class": "sft", "template": 3}, "method.template must be a text, got 3"),
        (
            {"class": "grpo", "advantage_normalization": "batch"},
            "method.advantage_normalization must be 'nontrivial', 'all', 'none' or 'group', got 'batch'",
        ),
        ({"class": "zppo", "bcq_positive": "both"}, "method.bcq_positive must be 'right' or 'wrong', got 'both'"),
        ({"class": "zppo", "ncq_source": True}, "method.ncq_source must be 'own' or 'foreign', got true"),
        ({"class": "grpo", "group_size": 1}, "method.group_size must be at least 2"),
        ({"class": "grpo", "tau": 2}, "method.tau must be at most 1, got 2"),
        ({"class": None, "tau": 0.5}, "method=x does not train, so it has no option 'tau'"),
    ],
)
def test_errors_are_one_line(options, message):
    named = options if "class" not in options or options == {"class": "grpo"} else {"name": "x"} | options
    with pytest.raises(MethodError) as caught:
        build(named)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


class Plugin(Method):
    def credit(self, groups):
        return []

    def loss(self, logits_NV, batch, teacher):
        raise NotImplementedError


def test_a_plugin_is_named_by_module_and_class(tmp_path, monkeypatch):
    (tmp_path / "my_plugin.py").write_text(
        "from methods.grpo import GRPO\n\n\nclass Mine(GRPO):\n    pass\n",
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert method_class("my_plugin:Mine").__name__ == "Mine"
    method = build({"name": "mine", "class": "my_plugin:Mine", "group_size": 4})
    assert method is not None and method.config.group_size == 4


def test_a_key_can_be_claimed_once():
    built_in()
    with pytest.raises(MethodError, match=r"'grpo' is claimed by methods.grpo:GRPO and by .*Plugin"):
        register("grpo")(Plugin)
    assert built_in()["grpo"].__name__ == "GRPO"


def test_every_option_has_a_default():
    for cls in built_in().values():
        assert all(f.default is not dataclasses.MISSING for f in fields(cls.Config))


def test_importing_and_building_methods_imports_no_torch_and_only_the_types_of_the_harness():
    code = """
import importlib, pkgutil, sys
import methods
from methods.registry import build
for module in pkgutil.iter_modules(methods.__path__):
    importlib.import_module(f"methods.{module.name}")
assert build({"name": "zppo", "class": "zppo"}) is not None
print(sorted(m for m in sys.modules if m == "torch" or m.startswith("harness")))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['harness', 'harness.types']"
