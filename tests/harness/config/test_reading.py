"""Composing from files that are read once gives what `hydra.compose` gives, for the cells of our sweeps."""

from __future__ import annotations

from importlib.resources import files

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict

from harness.config.compose import compose_sweep, compose_with_choices, group_options
from harness.config.reading import read_composed
from harness.study.cells import expand
from methods.plugins import option_folders

SWEEPS = sorted(file.name.removesuffix(".yaml") for file in files("sweeps").iterdir() if file.name.endswith(".yaml"))
SEARCHPATH = ("pkg://conf", "pkg://sweeps")


def by_hydra(overrides):
    """The composed configuration as YAML and the choices, by Hydra's public interface alone."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    lines = [line.input_line if group_options(line.key_or_group) else f"++{line.input_line}" for line in parsed]
    lines.append(f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in option_folders())}]")
    with hydra.initialize_config_module("conf", version_base="1.3"):
        cfg = hydra.compose("train", lines, return_hydra_config=True)
    choices = {key: name for key, name in cfg.hydra.runtime.choices.items() if not key.startswith("hydra/")}
    with open_dict(cfg):
        del cfg["hydra"]
    return OmegaConf.to_yaml(cfg), choices


def ours(overrides):
    cfg, choices = compose_with_choices(list(overrides))
    return OmegaConf.to_yaml(cfg), choices


@pytest.mark.parametrize(
    ("sweep", "index"),
    [
        ("quickstart", 1),
        ("paper_teacher_size", -1),
        ("tiny_recipe", -1),
        *(pytest.param(name, None, marks=pytest.mark.slow) for name in SWEEPS),
    ],
)
def test_the_cells_of_a_sweep_are_composed_as_hydra_composes_them(sweep, index):
    cells = expand(*compose_sweep(sweep, []))
    for cell in cells if index is None else [cells[index]]:
        assert ours(cell.overrides) == by_hydra(cell.overrides), cell.name


def test_one_composing_does_not_change_the_next():
    """The second and the fourth merge other options into what the first and the third have read."""
    lines = [["student=tiny_s"], ["student=tiny_s", "teacher=none", "method=base"], ["student=qwen3_5_2b"]]
    first = [ours(line) for line in lines]
    assert [read_composed("train", line, SEARCHPATH)[0].student.name for line in reversed(lines)] == [
        "qwen3_5_2b", "tiny_s", "tiny_s",
    ]  # fmt: skip
    assert [ours(line) for line in lines] == first == [by_hydra(line) for line in lines]


@pytest.mark.parametrize(
    "lines", [["++steps=3"], ["method=absent"], ["absent=1"], ["hydra/launcher=basic"], ["method=grpo,zppo"]]
)
def test_what_is_no_choice_of_a_group_is_left_to_hydra(lines):
    assert read_composed("train", lines, SEARCHPATH) is None
