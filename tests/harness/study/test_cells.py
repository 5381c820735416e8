from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from harness.config.compose import compose, compose_sweep
from harness.config.deployment import resolved
from harness.config.identity import plain
from harness.config.schema import from_hydra
from harness.errors import UserError
from harness.study.cells import MAX_LABEL_CHARS, expand, make_label


def paths(cells):
    return [str(cell.run_dir.relative_to("outputs/default")) for cell in cells]


def test_order_labels_and_folders():
    cells = expand({}, ["seed=0,1", "method=zppo,base,grpo", "student=tiny_xs,tiny_s"])
    assert paths(cells) == [
        "base/tiny_xs/seed0",
        "base/tiny_s/seed0",
        "zppo/tiny_xs/seed0",
        "zppo/tiny_xs/seed1",
        "grpo/tiny_xs/seed0",
        "grpo/tiny_xs/seed1",
        "zppo/tiny_s/seed0",
        "zppo/tiny_s/seed1",
        "grpo/tiny_s/seed0",
        "grpo/tiny_s/seed1",
    ]


def test_a_cell_is_reproduced_by_its_overrides():
    (cell,) = expand({"method": "zppo"}, ["method.updates_per_step=choice(8)", "seed=range(3,4)", "study=s"])
    assert cell.overrides == (
        "method=zppo", "method.updates_per_step=8", "study=s", "seed=3", "label='zppo,updates_per_step=8'",
    )  # fmt: skip
    assert from_hydra(compose(list(cell.overrides))) == cell.config
    assert cell.run_dir == Path("outputs/s/zppo,updates_per_step=8") / "tiny_s" / "seed3"
    assert (cell.label, cell.method, cell.config.label) == (
        "zppo,updates_per_step=8",
        "zppo",
        "zppo,updates_per_step=8",
    )


def test_the_label_has_swept_keys_only():
    cells = expand({}, ["method=grpo", "steps=5", "update.learning_rate=1e-6,2e-6", "data=arithmetic,reasoning_gym",
                        "data.dataset=chain_sum"])  # fmt: skip
    assert [cell.label for cell in cells] == [
        "grpo,update.learning_rate=1e-06,data=arithmetic",
        "grpo,update.learning_rate=1e-06,data=reasoning_gym",
        "grpo,update.learning_rate=2e-06,data=arithmetic",
        "grpo,update.learning_rate=2e-06,data=reasoning_gym",
    ]


def test_base_is_kept_once_for_each_student_and_evaluation():
    cells = expand({}, ["method=base,zppo", "method.updates_per_step=1,8", "eval.temperature=0,0.6", "seed=0,1"])
    base = [cell for cell in cells if cell.method == "base"]
    assert paths(base) == ["base,eval.temperature=0/tiny_s/seed0", "base,eval.temperature=0.6/tiny_s/seed0"]
    assert base[0].config.method == {"name": "base", "class": None}
    assert len(cells) == 2 + 2 * 2 * 2


def test_glob_takes_the_options_of_the_group():
    labels = [cell.label for cell in expand({}, ["method=glob(o*_policy_kd)"])]
    assert labels == ["off_policy_kd", "on_policy_kd"]


def test_a_label_of_the_users_and_the_default_method():
    assert [cell.label for cell in expand({}, ["label=mine", "method.tau=0.1,0.2"])] == ["mine,tau=0.1", "mine,tau=0.2"]
    (cell,) = expand({}, ["label='it\\'s'"])
    assert cell.label == "it's" and from_hydra(compose(list(cell.overrides))) == cell.config
    assert [cell.label for cell in expand({}, ["seed=0,1"])] == ["zppo", "zppo"]


def test_cells_of_a_class_without_packaging_are_named_after_it():
    """`PolicyGradientMethod` -> `policy_gradient_method`; the class is no swept key of the label."""
    cells = expand({}, ["method._target_=methods.grpo:GRPO,methods.policy.PolicyGradientMethod", "method.tau=0.1,0.2"])
    assert [cell.label for cell in cells] == [
        "grpo,tau=0.1", "grpo,tau=0.2", "policy_gradient_method,tau=0.1", "policy_gradient_method,tau=0.2",
    ]  # fmt: skip
    assert [cell.method for cell in cells] == ["grpo", "grpo", "policy_gradient_method", "policy_gradient_method"]
    assert cells[3].config.method == {
        "class": "methods.policy.PolicyGradientMethod", "tau": 0.2, "name": "policy_gradient_method",
    }  # fmt: skip
    assert all(from_hydra(compose(list(cell.overrides))) == cell.config for cell in cells)


def test_a_class_in_the_place_of_a_sweeps_methods_and_a_name_of_the_users():
    params = {"method": "base,zppo", "study": "s"}
    cells = expand(params, ["method._target_=methods.policy:PolicyGradientMethod"])
    assert [(cell.label, cell.config.method["class"]) for cell in cells] == [
        ("base", None), ("policy_gradient_method", "methods.policy:PolicyGradientMethod"),
    ]  # fmt: skip
    (cell,) = expand({}, ["method._target_=methods.policy:PolicyGradientMethod", "method.name=mine"])
    assert (cell.label, cell.method, cell.config.method["name"]) == ("mine", "mine", "mine")


def test_a_class_called_base_is_trained_like_any_other():
    (cell,) = expand({}, ["method._target_=some_file:Base", "method.tau=0.3"])
    assert cell.config.method == {"class": "some_file:Base", "tau": 0.3, "name": "base"}


def test_presets_of_a_plugin_are_swept(install):
    install("zppo-demo", {"demo": "demo_pkg:Demo"})
    assert [cell.label for cell in expand({}, ["method=grpo,demo"])] == ["grpo", "demo"]
    assert [cell.label for cell in expand({}, ["method=glob(dem*)"])] == ["demo"]


def test_quickstart_expands():
    cells = expand(*compose_sweep("quickstart", []))
    assert len({cell.run_dir for cell in cells}) == len(cells)
    assert {cell.config.study for cell in cells} == {"quickstart"}
    assert cells[0].method == "base"


@cache
def params_of(sweep: str) -> dict[str, str]:
    return compose_sweep(sweep, [])[0]


def differing(sweep: str, *overrides: str) -> set[str]:
    """The options in which the trained cells of a sweep differ, apart from their names."""
    cells = [cell for cell in expand(*compose_sweep(sweep, list(overrides)), resolve=resolved) if cell.method != "base"]
    options = [flat(plain(cell.config)) for cell in cells]
    keys = set().union(*options)
    return {key for key in keys if len({repr(row.get(key)) for row in options}) > 1} - {"label", "study"}


def flat(node, prefix=""):
    if not isinstance(node, dict):
        return {prefix.removesuffix("."): node}
    return {key: value for name, part in node.items() for key, value in flat(part, f"{prefix}{name}.").items()}


@pytest.mark.clause("C087", "C097")
@pytest.mark.parametrize(
    ("sweep", "swept"),
    [
        ("paper_main", {"method", "student"}),
        ("paper_ablation", {"method", "student"}),
        ("paper_hint_prefix", {"method", "student"}),
        ("paper_recipe", {"method", "method.updates_per_step"}),
        ("paper_recipe_normalization", {"method", "method.advantage_normalization"}),
        ("paper_teacher_size", {"method", "student", "teacher"}),
    ],
)
def test_the_papers_studies_share_all_that_they_do_not_sweep(sweep, swept):
    common, params = params_of("paper_common"), params_of(sweep)
    assert {key for key in params if params[key] != common.get(key)} - {"study"} == swept
    assert common.keys() <= params.keys()


@pytest.mark.clause("C097", "C098")
def test_the_settings_of_the_papers_ablations():
    """`group` is a fourth way that the paper did not run; `base` is the student as it is."""
    values = {
        ("paper_recipe", "student"): "qwen3_5_2b",
        ("paper_recipe", "method"): "base,zppo",
        ("paper_recipe", "method.updates_per_step"): "1,4,8,16",
        ("paper_recipe_normalization", "student"): "qwen3_5_2b",
        ("paper_recipe_normalization", "method"): "base,zppo",
        ("paper_recipe_normalization", "method.advantage_normalization"): "none,nontrivial,all,group",
        ("paper_teacher_size", "method"): "base,zppo",
        ("paper_teacher_size", "teacher"): "qwen3_5_4b,qwen3_5_9b,qwen3_5_27b",
    }
    assert {(sweep, key): params_of(sweep)[key] for sweep, key in values} == values


@pytest.mark.clause("C087", "C098")
def test_a_method_or_teacher_changes_nothing_else_of_a_run():
    one = "student=qwen3_5_2b"
    methods = differing("paper_main", one, "method=off_policy_kd,zppo")
    assert {key.split(".")[0] for key in methods} == {"method"}
    teachers = differing("paper_teacher_size", one, "method=zppo", "teacher=qwen3_5_4b,qwen3_5_27b")
    assert teachers == {"teacher.name", "teacher.path"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=0,1", "seed=2"], "'seed' is given twice"),
        (["sead=0,1"], "unknown option 'sead'. Did you mean 'seed'"),
        (["method=grpo,zpo"], "method=zpo: no such option"),
        (["method=glob(x*)"], "method=glob(x*): matches nothing"),
        (["seed=1,1"], "seed=1,1: a value is there twice"),
        (["seed=interval(0,1)"], "seed=interval(0,1): an interval has no list of values"),
        (["study=a,b"], "study names the folder of the study"),
        (["data.batch_size=8,0"], "zppo,data.batch_size=0: data.batch_size must be greater than 0, got 0"),
        (["label=x", "method=grpo,zppo"], "two cells of the sweep share the folder outputs/default/x/tiny_s/seed0"),
        (["data.path=a/b,a_b", "data=jsonl"], "two cells of the sweep share the folder"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line(overrides, message):
    with pytest.raises(UserError) as caught:
        expand({}, overrides)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_cells_have_every_option_of_their_method():
    base, grpo = expand({}, ["method=grpo,base", "method.tau=0.25"], resolve=resolved)
    assert base.config.method == {"name": "base", "class": None}
    options = grpo.config.method
    assert (options["tau"], options["group_size"], options["clip_ratio_high"], "plugin" in options) == (
        0.25,
        8,
        0.28,
        False,
    )


def test_folder_names_of_awkward_values():
    assert make_label("grpo", [("method.tau", "0.5"), ("data.levels", "[1,2]")]) == "grpo,tau=0.5,data.levels=1+2"
    assert make_label("grpo", [("data.path", "/a b/c*.jsonl")]) == "grpo,data.path=a_b_c_.jsonl"
    assert make_label("grpo", [("data.path", "'../a|b$x\\n.jsonl'")]) == "grpo,data.path=a_b_x_n.jsonl"
    long = [("data.path", "x" * 300)]
    assert len(make_label("grpo", long)) == MAX_LABEL_CHARS
    assert make_label("grpo", long) != make_label("grpo", [("data.path", "x" * 301)])
