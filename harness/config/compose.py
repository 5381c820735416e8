"""From command-line overrides to one composed configuration: Hydra's compose API over the packages `conf` and `sweeps`.

The packages are found by import, so an installed wheel composes in any working directory. Of several options with one
name ours comes first, then the user's (`--config-dir`), then the plugins' (`methods.plugins`). Imports no torch.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, get_args, get_origin

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from harness.config.reading import read_composed
from harness.config.schema import RunConfig, unknown_option
from harness.errors import UserError, did_you_mean
from methods import plugins
from methods.options import option_type

TARGET = "method._target_"
"""`method._target_=package.module:Class` is `method.class` without a preset: see `_lines_of_target`."""


def compose(overrides: list[str], config_name: str = "train", config_dir: str | None = None) -> DictConfig:
    """The configuration of one run, not yet checked (`harness.config.schema.from_hydra` does that).

    `config_dir` is a folder of the user's with further groups' options (`method/mine.yaml`) and sweeps.
    Raises UserError for a malformed override, an unknown option of a group, an unknown key or a sweep value.
    """
    return compose_with_choices(overrides, config_name, config_dir)[0]


def compose_with_choices(
    overrides: list[str], config_name: str = "train", config_dir: str | None = None
) -> tuple[DictConfig, dict[str, str | None]]:
    """`compose`, and which option of each group was chosen: `{"method": "zppo", "student": "tiny_s", ...}`."""
    parsed = parse_overrides(overrides)
    lines = [(override, _checked_line(override, config_dir)) for override in parsed]
    values = [override for override, _ in lines if _is_value(override, config_dir)]
    if any(override.is_delete() and not group_options(override.key_or_group, config_dir) for override in parsed):
        values = []  # what is deleted may be one of them: Hydra carries all out in their order
    rest = [line for override, line in lines if override not in values] + _lines_of_target(parsed)
    folders = tuple(str(folder.resolve()) for folder in plugins.option_folders())
    own = None if config_dir is None else str(Path(config_dir).resolve())
    cfg, choices = _composed(config_name, tuple(rest), own, folders)
    cfg = copy.deepcopy(cfg)
    try:
        with open_dict(cfg):
            for override in values:  # as Hydra does it, after the choices of the groups
                OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True, force_add=True)
    except OmegaConfBaseException as error:
        raise UserError(" ".join(str(error).split())) from error
    return cfg, dict(choices)


def _is_value(override: Override, config_dir: str | None) -> bool:
    """Whether it sets a key of the configuration, and chooses no option of a group."""
    key = override.key_or_group
    is_plain = not override.is_delete() and override.package is None and key != TARGET
    return is_plain and not group_options(key, config_dir)


@lru_cache(maxsize=256)
def _composed(
    config_name: str, lines: tuple[str, ...], config_dir: str | None, plugins: tuple[str, ...]
) -> tuple[DictConfig, dict[str, str | None]]:
    """What Hydra makes of the choices of groups, `lines`, and of what only Hydra understands."""
    if (found := read_composed(config_name, lines, _searchpath(config_dir))) is not None:
        return found
    cfg = _hydra_compose(config_name, list(lines), config_dir)
    choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    assert isinstance(choices, dict)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, {str(k): v for k, v in choices.items() if not str(k).startswith("hydra/")}


def compose_option(group: str, name: str) -> dict[str, Any]:
    """One option file of a group by itself, what its `defaults` bring in included. Raises UserError."""
    is_ours = files("conf").joinpath(group, f"{name}.yaml").is_file()
    folders = () if is_ours else tuple(str(folder.resolve()) for folder in plugins.option_folders())
    return copy.deepcopy(_composed_option(group, name, folders))


@lru_cache(maxsize=256)
def _composed_option(group: str, name: str, plugins: tuple[str, ...]) -> dict[str, Any]:
    """Ours are found first, so that no plugin changes them: each takes 0.1 s, once."""
    node = OmegaConf.select(_hydra_compose(None, [f"+{group}={name}"], None), group)
    options = OmegaConf.to_container(node) if OmegaConf.is_dict(node) else {}
    assert isinstance(options, dict)
    return {str(key): value for key, value in options.items()}


def compose_launcher(hydra_overrides: Sequence[str]) -> str:
    """The class of Hydra's launcher that these words choose. Raises UserError where Hydra does not find it."""
    words = ["plan=none", "cell=0", *hydra_overrides]
    return str(_hydra_compose("launch", words, None).hydra.launcher._target_)


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
    """Hydra's own parser. A text that it cannot read is taken as it is: names of run folders have `,` and `=`.

    Raises UserError that names the line it cannot read.
    """
    parser = OverridesParser.create()
    parsed = []
    for line in overrides:
        try:
            parsed.append(parser.parse_override(line))
        except HydraException as error:
            key, sign, value = line.partition("=")
            if not sign or value.startswith("~") or not _takes_text(key.lstrip("+")):
                shown = f"'{key}=\"{value}\"'" if sign else "key=value"
                raise UserError(f"cannot read override '{line}': write {shown}") from error
            quoted = re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + match[2].replace("'", "\\'"), value)
            parsed.append(parser.parse_override(f"{key}='{quoted}'"))
    return parsed


def _takes_text(key: str) -> bool:
    """Whether a key of the configuration holds one text."""
    kind = option_type(RunConfig, key)
    return kind is str or (get_origin(kind) is not list and str in get_args(kind))


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
        value = None if override.is_delete() or override.is_sweep_override() else _option_name(override)
        if value is not None and value not in options:
            raise UserError(_no_such_option(key, value, options))
    elif option_type(RunConfig, key) is None:
        raise UserError(unknown_option(key))


def _option_name(override: Override) -> str | None:
    """What is chosen of a group. `data=2024` is a name, though Hydra reads a number; None for `teacher=null`."""
    value = override.value()
    return value if value is None or isinstance(value, str) else override.get_value_string()


def _no_such_option(group: str, name: str, options: list[str]) -> str:
    """A plugin may be known by its entry point though its option file is missing: then that is the reason."""
    known = plugins.installed() if group == "method" else ()
    problem = next((plugin.problem for plugin in known if plugin.name == name), None)
    return problem or f"{group}={name}: no such option.{did_you_mean(name, [*options, *(p.name for p in known)])}"


def _checked_line(override: Override, config_dir: str | None) -> str:
    """The override for Hydra; `++` because option files hold only differences, and `RunConfig` knows all keys."""
    check_key(override, config_dir)
    line = str(override.input_line)
    if override.is_sweep_override():
        raise UserError(f"'{line}' has several values: add -m for one run each, or quote a value that has commas")
    if group_options(override.key_or_group, config_dir):
        if isinstance(override.value(), str):
            return line
        name = _option_name(override)
        return f"~{override.key_or_group}" if name is None else f"{override.key_or_group}='{name}'"  # teacher=null
    if override.is_delete():
        return line
    if override.key_or_group == TARGET:
        if not isinstance(override.value(), str) or not override.value():
            raise UserError(f"{line}: write {TARGET}=package.module:Class")
        return f"++method.class={override.get_value_string()}"
    return line if override.type is OverrideType.FORCE_ADD else "++" + line.lstrip("+")


def _lines_of_target(overrides: list[Override]) -> list[str]:
    """What `method._target_` brings along: no preset unless one is chosen, and a name after the class."""
    given = {override.key_or_group: override for override in overrides}
    if TARGET not in given or given[TARGET].is_delete():
        return []
    if "method.class" in given:
        raise UserError(f"method.class and {TARGET} both name the class: leave one of them out")
    lines = [] if "method" in given else ["~method"]
    if "method.name" not in given:
        class_name = re.split("[.:]", str(given[TARGET].value()))[-1]
        lines.append(f"++method.name='{snake_case(class_name)}'")
    return lines


def snake_case(class_name: str) -> str:
    """`MaxRL` -> `max_rl`, `MyMethod` -> `my_method`, `GRPO` -> `grpo`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", class_name).lower()


def _hydra_compose(
    config_name: str | None, overrides: list[str], config_dir: str | None, home: str = "conf"
) -> DictConfig:
    """The composed configuration, with its `hydra` node. `home` is the package or folder that has `config_name`."""
    quoted = ",".join("'" + path.replace("'", "\\'") + "'" for path in _searchpath(config_dir))
    is_folder = Path(home).is_absolute()
    initialize = hydra.initialize_config_dir if is_folder else hydra.initialize_config_module
    try:
        with initialize(home, version_base="1.3"):
            return hydra.compose(config_name, [f"hydra.searchpath=[{quoted}]", *overrides], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(" ".join(str(error).split())) from error


def _searchpath(config_dir: str | None) -> tuple[str, ...]:
    """Where option files are looked for, in the order that counts."""
    own = []
    if config_dir is not None:
        folder = Path(config_dir).resolve()
        if not folder.is_dir():
            raise UserError(f"no folder {config_dir}: --config-dir needs a folder with <group>/<option>.yaml")
        own.append(folder)
    return ("pkg://conf", "pkg://sweeps", *(f"file://{folder}" for folder in (*own, *plugins.option_folders())))


def _check_sweep_file(name: str, file: Traversable) -> None:
    """A value outside of hydra.sweeper.params would be lost, since cells start from `train`."""
    content: Any = OmegaConf.to_container(OmegaConf.create(file.read_text(encoding="utf-8")))
    extra = [key for key in content if key not in ("defaults", "hydra")]
    if "defaults" in content:
        extra += [next(iter(entry)) for entry in content["defaults"] if isinstance(entry, dict)]
    if extra:
        raise UserError(f"sweep '{name}' sets {extra[0]} outside of hydra.sweeper.params: move it there")


def _folders(group: str, config_dir: str | None, package: str = "conf") -> list[Traversable]:
    """Where a group's options lie, in the order of Hydra's search path: of one name, the first counts."""
    others = [*([] if config_dir is None else [Path(config_dir)]), *plugins.option_folders()]
    folders: list[Traversable] = [root.joinpath(*group.split("/")) for root in (files(package), *others)]
    return [folder for folder in folders if folder.is_dir()]


def _yaml_files(folders: list[Traversable]) -> dict[str, Traversable]:
    found = {file.name: file for folder in reversed(folders) for file in folder.iterdir() if file.is_file()}
    return {name.removesuffix(".yaml"): found[name] for name in sorted(found) if name.endswith(".yaml")}
