"""A study as a list of cells: every combination of the swept values, composed and checked before any starts."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hydra.core.override_parser.types import Glob, Override
from omegaconf import OmegaConf

from harness.config.compose import (
    TARGET,
    check_key,
    compose,
    compose_with_choices,
    group_options,
    parse_overrides,
    refuse_repeats,
)
from harness.config.names import check_name
from harness.config.schema import RunConfig, from_hydra
from harness.errors import UserError

BASE = "base"
"""The option of the group `method` that evaluates the student as it is."""
MAX_LABEL_CHARS = 150
"""A folder name holds 255 bytes; the log file's name has student and seed as well as the label."""


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Example: overrides ("student=tiny_s", "method=zppo", "method.updates_per_step=8", "seed=0",
    "label='zppo,updates_per_step=8'"), label "zppo,updates_per_step=8",
    run_dir outputs/default/zppo,updates_per_step=8/tiny_s/seed0.
    """

    overrides: tuple[str, ...]
    """What `zppo train` takes to run it; the label is among them."""
    label: str
    method: str
    student: str
    seed: int
    config: RunConfig

    @property
    def study_dir(self) -> Path:
        return Path(self.config.outputs) / self.config.study

    @property
    def run_dir(self) -> Path:
        return self.study_dir / self.label / self.student / f"seed{self.seed}"

    @property
    def name(self) -> str:
        return f"{self.label} {self.student} seed{self.seed}"


def expand(
    params: dict[str, str],
    overrides: list[str],
    *,
    config_dir: str | None = None,
    resolve: Callable[[RunConfig], RunConfig] | None = None,
) -> list[Cell]:
    """All cells, base cells first, then by student, method, other swept keys and seed, each in the order given.

    `params` are a sweep file's (`compose_sweep`), empty for `zppo train -m`; a value such as `a,b`, `range(0,3)`,
    `choice(1,2)` or `glob(*)` is swept. `resolve` completes a configuration (a method's own options), or refuses it.
    Raises UserError for an unknown or repeated key, an option that does not exist, and any cell that could not run.
    """
    parsed = parse_overrides([f"{key}={value}" for key, value in params.items()] + overrides)
    refuse_repeats(parsed)
    for override in parsed:
        check_key(override, config_dir)
        if override.is_sweep_override() and override.key_or_group in ("study", "outputs", "label"):
            raise UserError(f"{override.key_or_group} names the folder of the study and cannot be swept")
    choices = [_settings(override, config_dir) for override in sorted(parsed, key=_rank)]
    fixed = [alternatives[0].line for alternatives in choices if not alternatives[0].swept]
    default_option = compose_with_choices(fixed, config_dir=config_dir)[1].get("method")
    cells: dict[Path, Cell] = {}
    base_cells: set[tuple[str, ...]] = set()
    for combination in itertools.product(*choices):
        settings = list(combination)
        is_base = next((setting.name for setting in settings if setting.key == "method"), default_option) == BASE
        if is_base:
            settings = _of_base(settings)
            lines = tuple(setting.line for setting in settings if setting.key != "seed")
            if lines in base_cells:
                continue
            base_cells.add(lines)
        cell = _cell(settings, config_dir, is_base=is_base)
        other = cells.setdefault(cell.run_dir, cell)
        if other is not cell:
            raise UserError(f"two cells of the sweep share the folder {cell.run_dir}: {_difference(other, cell)}")
    ordered = sorted(cells.values(), key=lambda cell: cell.method != BASE)
    return ordered if resolve is None else [replace(cell, config=resolve(cell.config)) for cell in ordered]


def make_label(method: str, swept: list[tuple[str, str]]) -> str:
    """`zppo,updates_per_step=8` from the method's name and the swept keys with their values.

    Characters that are awkward in folder names are replaced: a comma inside a value by `+`, others and `..` by `_`.
    """
    parts = [method] + [f"{key.removeprefix('method.')}={_folder_name(value)}" for key, value in swept]
    label = ",".join(parts)
    if len(label) > MAX_LABEL_CHARS:
        label = label[: MAX_LABEL_CHARS - 9] + "-" + hashlib.sha256(label.encode()).hexdigest()[:8]
    return label


def _folder_name(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+|\.\.+", "_", value.replace(",", "+")).strip("_")


@dataclass(frozen=True)
class _Setting:
    """One override of one cell."""

    key: str
    line: str
    value: str
    swept: bool

    @property
    def name(self) -> str:
        return self.value.strip("'\"")


def _rank(override: Override) -> int:
    """Student varies slowest, then the method; the seed varies fastest."""
    order = ["student", "method", override.key_or_group, "seed"]
    return order.index(override.key_or_group) if override.key_or_group != "seed" else 3


def _settings(override: Override, config_dir: str | None) -> list[_Setting]:
    """The alternatives that an override stands for: one, unless it is swept."""
    key, line, value = override.key_or_group, str(override.input_line), override.value()
    if not override.is_sweep_override():
        return [_Setting(key, line, "" if value is None else str(value), swept=False)]
    if isinstance(value, Glob):
        values = value.filter(group_options(key, config_dir))
    elif override.is_discrete_sweep():
        values = list(override.sweep_string_iterator())
    else:
        raise UserError(f"{line}: an interval has no list of values: write {key}=a,b or {key}=range(0,3)")
    if not values or len(set(values)) < len(values):
        raise UserError(f"{line}: {'a value is there twice' if values else 'matches nothing'}")
    return [_Setting(key, f"{override.get_key_element()}={value}", value, swept=True) for value in values]


def _of_base(settings: list[_Setting]) -> list[_Setting]:
    """What evaluating the untrained student depends on: no method options, no swept training options."""
    kept = ("method", "student", "seed", "eval", "recipe")
    return [
        setting
        for setting in settings
        if not setting.key.startswith("method.")
        and (not setting.swept or setting.key in kept or setting.key.startswith(("eval.", "student.")))
    ]


def _cell(settings: list[_Setting], config_dir: str | None, *, is_base: bool) -> Cell:
    shown = ("method", "method.name", TARGET, "student", "seed")  # by the label's first part, or by the folder
    swept = [(setting.key, setting.name) for setting in settings if setting.swept and setting.key not in shown]
    given = [setting.value for setting in settings if setting.key == "label" and setting.value]
    lines = [setting.line for setting in settings if setting.key != "label"]
    cfg = compose(lines, config_dir=config_dir)
    method = str(OmegaConf.select(cfg, "method.name"))
    for name in given:
        check_name("label", name)
    label = make_label(given[0] if given and not is_base else method, swept)
    check_name("label", label)  # with its values it may be too long
    try:
        config = replace(from_hydra(cfg), label=label)
    except UserError as error:
        raise UserError(f"{label}: {error}") from error
    quoted = label.replace("'", "\\'")
    return Cell((*lines, f"label='{quoted}'"), label, method, config.student.name, config.seed, config)


def _difference(first: Cell, second: Cell) -> str:
    return f"{set(first.overrides) - set(second.overrides)} and {set(second.overrides) - set(first.overrides)}"
