"""`zppo doctor`: what this machine has, and what would refuse a run here. Reads no weights and writes no run."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from harness.config.compose import compose
from harness.config.deployment import Deployment, build_method, resolved, run_label
from harness.config.extras import missing
from harness.config.schema import RunConfig, from_hydra
from harness.errors import UserError
from harness.preflight.checks import CHECKS
from harness.preflight.machine import Check, machine_checks
from harness.preflight.parts import Finding, NotMade, Preflight, Warn, found_by
from harness.preflight.placement import place_texts
from harness.records.folder import earlier_run, is_done, run_dir
from methods.base import Method

MIN_WIDTH = 60
MAX_WIDTH = 120


def doctor(overrides: Sequence[str], config_dir: str | None = None) -> tuple[str, int]:
    """The report, and the exit code: 0 where nothing failed, 2 otherwise.

    Without overrides the machine is checked, with them the configuration that they give as well.
    """
    checks = run_checks(overrides, config_dir)
    width = min(MAX_WIDTH, max(MIN_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 24)).columns))
    return report(checks, width), 2 if any(check.state == "fail" for check in checks) else 0


def run_checks(overrides: Sequence[str], config_dir: str | None = None) -> list[Check]:
    """All checks in the order of the report."""
    if not overrides and config_dir is None:
        return machine_checks(RunConfig.outputs, needs_vllm=None)
    try:
        return checks_of(from_hydra(compose(list(overrides), config_dir=config_dir)))
    except UserError as error:
        return [*machine_checks(RunConfig.outputs, needs_vllm=None), Check("fail", "configuration", str(error))]


def checks_of(config: RunConfig) -> list[Check]:
    """What this machine has, and what a run of a configuration would find on it. Raises UserError for one that no
    machine could run."""
    config, method = resolved(config), build_method(config)
    deployment = Deployment.of(config, method)
    needs_vllm = deployment.student.in_vllm or (deployment.teacher is not None and deployment.teacher.in_vllm)
    checks = machine_checks(config.outputs, needs_vllm=needs_vllm)
    with offline(unless=any(check.name == "hub" and check.state == "ok" for check in checks)):
        return [*checks, *_config_checks(config, method, deployment)]


def _config_checks(config: RunConfig, method: Method | None, deployment: Deployment) -> Iterator[Check]:
    """What a run of this configuration would find here before it reads weights, all of it."""
    models = [config.student] if deployment.teacher is None else [config.student, config.teacher]
    yield Check("ok", "configuration", f"{config.method['name']} with {' and '.join(m.path for m in models if m)}")
    if deployment.teacher is not None:
        samples, scores = place_texts(deployment.teacher)
        text = f"where it is asked, the teacher samples by {samples}; its distribution: {scores}"
        yield Check("ok", "placement", text)
    path = run_dir(config, run_label(config))
    try:
        if is_done(earlier_run(path, config), config.steps):
            yield Check("ok", "folder", f"{path} is done: a run would do nothing")
            return
    except UserError as error:
        yield Check("fail", "folder", str(error))
    yield from (Check("fail", "packages", line) for line in missing(config))
    with ExitStack() as stack:
        run = Preflight(config, method, deployment, stack)
        for check in () if run.is_idle else CHECKS:
            name = check.__name__.replace("_", " ")
            yield from (_shown(name, found) for found in found_by(check(run)))
    if config.tracker.wandb != "disabled":
        told = {"offline": "`wandb sync` sends what the run folder keeps", "online": "needs an account: `wandb login`"}
        yield Check("ok", "wandb", f"{config.tracker.wandb}: {told[config.tracker.wandb]}")


def _shown(name: str, found: Finding) -> Check:
    if isinstance(found, Warn):
        return Check("warn", name, found.text, found.remedy)
    if isinstance(found, NotMade):
        return Check("skip", name, f"not made: it needs what '{found}' gives")
    return Check("fail" if isinstance(found, UserError) else "ok", name, str(found))


@contextmanager
def offline(*, unless: bool) -> Iterator[None]:
    """The hub is not asked: its client would try half a minute for each file."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not unless
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def report(checks: Sequence[Check], width: int) -> str:
    """One check a line, with aligned columns; longer texts go on below, and a remedy has a line of its own."""
    indent = 6 + max(len(check.name) for check in checks) + 2
    lines = []
    for check in checks:
        head = f"{check.state:<6}{check.name}".ljust(indent)
        lines += _wrapped(check.text, head, " " * indent, width)
        if check.remedy:
            lines += _wrapped(check.remedy, " " * indent + "-> ", " " * (indent + 3), width)
    counts = {state: sum(check.state == state for check in checks) for state in ("fail", "warn", "skip")}
    plural = "" if counts["warn"] == 1 else "s"
    failed = f"{counts['fail']} failed" if counts["fail"] else "nothing failed"
    missing = f", {counts['skip']} not made" if counts["skip"] else ""
    return "\n".join([*lines, "", f"{len(checks)} checks: {failed}, {counts['warn']} warning{plural}{missing}"])


def _wrapped(text: str, first: str, rest: str, width: int) -> list[str]:
    text = " ".join(text.split())
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
