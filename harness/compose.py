"""From command-line overrides to one composed configuration: Hydra's compose API over the packages `conf` and `sweeps`.

The packages are found by import, so an installed wheel composes in any working directory. Imports no torch.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from harness.config import ModelConfig, RunConfig, known_keys
from harness.errors import UserError, did_you_mean


def compose(overrides: list[str], config_name: str = "train", config_dir: str | None = None) -> DictConfig:
    """The configuration of one run, not yet checked (`harness.config.from_hydra` does that).

    `config_dir` is a folder of the user's with further groups' options (`method/mine.yaml`) and sweeps.
    Raises UserError for a malformed override, an unknown option of a group, an unknown key or a sweep value.
    """
    return compose_with_choices(overrides, config_name, config_dir)[0]


def compose_with_choices(
    overrides: list[str], config_name: str = "train", config_dir: str | None = None
) -> tuple[DictConfig, dict[str, str | None]]:
    """`compose`, and which option of each group was chosen: `{"method": "zppo", "student": "tiny_s", ...}`."""
    lines = [_checked_line(override, config_dir) for override in parse_overrides(overrides)]
    cfg = _hydra_compose(config_name, lines, config_dir)
    choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    assert isinstance(choices, dict)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, {str(k): v for k, v in choices.items() if not str(k).startswith("hydra/")}


def compose_sweep(name: str, overrides: list[str], config_dir: str | None = None) -> tuple[dict[str, str], list[str]]:
    """The parameters of `sweeps/<name>.yaml` with the user's values in their place, and the user's other overrides.

    A sweep file holds defaults (`/train`, other sweeps, `_self_`) and `hydra:` only; every value of the study stands
    in `hydra.sweeper.params`, so that a cell is reproduced by its overrides alone. Raises UserError.
    """
    known = _yaml_files(_folders("", config_dir, package="sweeps"))
    if name not in known:
        raise UserError(f"no sweep '{name}'.{did_you_mean(name, known)}")
    file = known[name]
    home = str(file.parent.resolve()) if isinstance(file, Path) else "sweeps"
    cfg = _hydra_compose(name, [], config_dir, home)
    _check_sweep_file(name, file)
    node = OmegaConf.select(cfg, "hydra.sweeper.params")
    if not node:
        raise UserError(f"sweep '{name}' has no hydra.sweeper.params: list there what it varies")
    raw = OmegaConf.to_container(node, resolve=True)
    assert isinstance(raw, dict)
    params = {str(key): value if isinstance(value, str) else json.dumps(value) for key, value in raw.items()}
    rest = []
    parsed = parse_overrides(overrides)
    refuse_repeats(parsed)
    for override in parsed:
        if override.key_or_group in params and not override.is_delete():
            params[override.key_or_group] = override.get_value_string()
        else:
            rest.append(str(override.input_line))
    return params, rest


def parse_overrides(overrides: list[str]) -> list[Override]:
    """Hydra's own parser. Raises UserError that names the line it cannot read."""
    parser = OverridesParser.create()
    parsed = []
    for line in overrides:
        try:
            parsed.append(parser.parse_override(line))
        except HydraException as error:
            raise UserError(f"cannot read override '{line}': write key=value, quote values with spaces") from error
    return parsed


def refuse_repeats(overrides: list[Override]) -> None:
    """Raise UserError where one key is given twice: in a sweep it would be unclear which values count."""
    keys = [override.key_or_group for override in overrides]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"'{key}' is given twice: write all its values in one override, {key}=a,b")


def group_files(group: str, config_dir: str | None = None) -> dict[str, Traversable]:
    """The option files of a group by name; empty where there is no such group."""
    return _yaml_files(_folders(group, config_dir))


def group_options(group: str, config_dir: str | None = None) -> list[str]:
    """Names of a group's options."""
    return list(group_files(group, config_dir))


def check_key(override: Override, config_dir: str | None = None) -> None:
    """Raise UserError where the override names no key of the configuration, or no option of its group."""
    key = override.key_or_group
    options = group_options(key, config_dir)
    if options:
        value = None if override.is_delete() or override.is_sweep_override() else override.value()
        if value is not None and value not in options:
            raise UserError(f"{key}={value}: no such option.{did_you_mean(str(value), options)}")
    elif not _is_config_key(key):
        near = did_you_mean(key, known_keys())
        raise UserError(f"unknown option '{key}'.{near if 'Did' in near else ' See zppo train --print-config.'}")


def _checked_line(override: Override, config_dir: str | None) -> str:
    """The override for Hydra; `++` because option files hold only differences, and `RunConfig` knows all keys."""
    check_key(override, config_dir)
    line = str(override.input_line)
    if override.is_sweep_override():
        raise UserError(f"'{line}' has several values: add -m for one run each, or quote a value that has commas")
    if group_options(override.key_or_group, config_dir):
        return f"~{override.key_or_group}" if override.value() is None else line  # teacher=null
    if override.is_delete():
        return line
    return line if override.type is OverrideType.FORCE_ADD else "++" + line.lstrip("+")


def _hydra_compose(config_name: str, overrides: list[str], config_dir: str | None, home: str = "conf") -> DictConfig:
    """The composed configuration, with its `hydra` node. `home` is the package or folder that has `config_name`."""
    searchpath = ["pkg://conf", "pkg://sweeps"]
    if config_dir is not None:
        folder = Path(config_dir).resolve()
        if not folder.is_dir():
            raise UserError(f"no folder {config_dir}: --config-dir needs a folder with <group>/<option>.yaml")
        searchpath.append(f"file://{folder}")
    quoted = ",".join("'" + path.replace("'", "\\'") + "'" for path in searchpath)
    is_folder = Path(home).is_absolute()
    initialize = hydra.initialize_config_dir if is_folder else hydra.initialize_config_module
    try:
        with initialize(home, version_base="1.3"):
            return hydra.compose(config_name, [f"hydra.searchpath=[{quoted}]", *overrides], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(" ".join(str(error).split())) from error


def _check_sweep_file(name: str, file: Traversable) -> None:
    """A value outside of hydra.sweeper.params would be lost, since cells start from `train`."""
    content: Any = OmegaConf.to_container(OmegaConf.create(file.read_text(encoding="utf-8")))
    extra = [key for key in content if key not in ("defaults", "hydra")]
    if "defaults" in content:
        extra += [next(iter(entry)) for entry in content["defaults"] if isinstance(entry, dict)]
    if extra:
        raise UserError(f"sweep '{name}' sets {extra[0]} outside of hydra.sweeper.params: move it there")


def _folders(group: str, config_dir: str | None, package: str = "conf") -> list[Traversable]:
    """Where a group's options lie, first the package's: Hydra prefers them to the user's of the same name."""
    folders: list[Traversable] = [files(package).joinpath(*group.split("/"))]
    if config_dir is not None:
        folders.append(Path(config_dir, *group.split("/")))
    return [folder for folder in folders if folder.is_dir()]


def _yaml_files(folders: list[Traversable]) -> dict[str, Traversable]:
    found = {file.name: file for folder in reversed(folders) for file in folder.iterdir() if file.is_file()}
    return {name.removesuffix(".yaml"): found[name] for name in sorted(found) if name.endswith(".yaml")}


def _is_config_key(key: str) -> bool:
    """Whether `RunConfig` has this dotted key; below a free dictionary (`method`, `data.dataset_config`) all exist."""
    node: Any = _structure()
    for part in key.split("."):
        if OmegaConf.get_type(node) is dict:
            return True
        if not OmegaConf.is_dict(node) or part not in node.keys():  # noqa: SIM118 ('in node' is False for missing values)
            return False
        node = None if OmegaConf.is_missing(node, part) else node[part]
    return True


@cache
def _structure() -> DictConfig:
    return OmegaConf.structured(RunConfig(teacher=ModelConfig()))
