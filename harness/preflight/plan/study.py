"""`zppo plan sweep=NAME cluster=NAME`: a study's cells, checked and added up before anybody books GPUs.

Imports no torch unless there are tokenizers on this machine to compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.config.compose import compose_sweep, parse_overrides
from harness.config.deployment import Deployment, build_method, resolved
from harness.config.schema import ModelConfig
from harness.errors import UserError
from harness.models.kernels import Kernels
from harness.models.shapes import ModelShape, shape_of
from harness.preflight.machine import Check
from harness.preflight.plan.cells import Plan, may_have_media, plan_cell, refuse
from harness.preflight.plan.counting import Assumptions
from harness.preflight.plan.pairs import check_pair
from harness.preflight.plan.table import plan_json, plan_text
from harness.study.cells import Cell, expand

SWEEP = "sweep"


@dataclass(frozen=True)
class Planned:
    plans: list[Plan]
    checks: list[Check]


def plan_command(
    overrides: Sequence[str],
    *,
    config_dir: str | None = None,
    assumed: Assumptions,
    kernels: Kernels = "fla",
    as_json: bool = False,
) -> str:
    """The report of a study, or of the runs that the overrides alone describe.

    Raises UserError where a cell could not run, cannot fit, or its teacher is of another family.
    """
    planned = plan_study(overrides, config_dir=config_dir, assumed=assumed, kernels=kernels)
    refuse(planned.plans)
    failed = [check for check in planned.checks if check.state == "fail"]
    if failed:
        raise UserError(f"{failed[0].name}: {failed[0].text}{'; ' + failed[0].remedy if failed[0].remedy else ''}")
    if as_json:
        return plan_json(planned.plans, assumed, kernels)
    text = plan_text(planned.plans, assumed, kernels)
    if not planned.checks:
        return text
    from harness.preflight.doctor import report

    return f"{text}\n\nStudent and teacher\n{report(planned.checks, 120)}"


def plan_study(
    overrides: Sequence[str], *, config_dir: str | None = None, assumed: Assumptions, kernels: Kernels = "fla"
) -> Planned:
    """Every cell of a study, seeds together, and the checks of its pairs of models."""
    chosen = [line.partition("=")[2] for line in overrides if line.startswith(f"{SWEEP}=")]
    rest = [line for line in overrides if not line.startswith(f"{SWEEP}=")]
    if len(chosen) > 1:
        raise UserError("sweep= is given twice: plan one study at a time")
    parse_overrides(rest)
    params: dict[str, str] = {}
    if chosen:
        params, rest = compose_sweep(chosen[0], rest, config_dir)
    cells = expand(params, rest, config_dir=config_dir, resolve=resolved)
    shapes: dict[str, ModelShape] = {}
    pairs: dict[tuple[str, str], tuple[ModelConfig, ModelConfig]] = {}
    plans = []
    for group in _by_seed(cells):
        config = group[0].config
        method = build_method(config)
        teacher = None if Deployment.of(config, method).teacher is None else config.teacher
        for model in (config.student, teacher):
            if model is not None:
                shapes.setdefault(model.path, shape_of(model))
        if teacher is not None:
            pairs.setdefault((config.student.path, teacher.path), (config.student, teacher))
        both = (shapes[config.student.path], None if teacher is None else shapes[teacher.path])
        plans.append(plan_cell(group[0].label, len(group), config, method, both, assumed, kernels))
    checks = _media_checks(plans)
    checks += [
        check
        for (ours, theirs), (student, teacher) in pairs.items()
        for check in check_pair(student, teacher, (shapes[ours], shapes[theirs]))
    ]
    return Planned(plans, checks)


def _media_checks(plans: Sequence[Plan]) -> list[Check]:
    """`harness.rollout.server_engine` asks text alone."""
    served = [
        plan.label
        for plan in plans
        if plan.deployment.teacher is not None and not plan.deployment.teacher.sees_media
        and plan.count is not None and plan.count.tokens.get("tokens/teacher_generated") and may_have_media(plan.config)
    ]  # fmt: skip
    if not served:
        return []
    rows = ", ".join(dict.fromkeys(served))
    text = f"a served teacher is asked text only, and the data may have pictures: {rows} would end at the first one"
    remedy = "leave pictures out with data.columns.images=null, or train in one process with teacher.serve=false"
    return [Check("warn", "pictures", text, remedy)]


def _by_seed(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that differ in nothing but the seed, in the order of the first."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.label, cell.student), []).append(cell)
    return list(groups.values())
