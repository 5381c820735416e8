"""`zppo train` and `zppo sweep`: one run, or the cells of a study."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.commands.options import add_overrides, add_study_options, start_logging
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.config.schema import RunConfig


def run_train(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    add_overrides(parser)
    add_study_options(parser)
    parser.add_argument("-m", "--multirun", action="store_true", help="one run for each combination of values a,b")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    args = parser.parse_intermixed_args(argv)
    if args.multirun:
        return _run_study({}, args)

    if args.jobs is not None:
        raise UserError("--jobs is how many runs go at a time: add -m to start several, or leave --jobs out")

    from harness.config.compose import compose
    from harness.config.deployment import check_devices, resolved, run_label
    from harness.config.extras import check_extras
    from harness.config.schema import from_hydra
    from harness.distributed.launch import launch, rank_command
    from harness.distributed.rank import this_place
    from harness.process.preemption import Stopped
    from harness.records.folder import run_dir
    from harness.run.run import run

    config = resolved(from_hydra(compose(args.overrides, config_dir=args.config_dir)))
    if args.print_config:
        _print_config(config)
        return 0
    folder = run_dir(config, run_label(config))
    if args.dry_run:
        print(f"{folder}\n    zppo train {shlex.join(args.overrides)}\n1 cell")
        return 0
    check_devices(config)
    check_extras(config)
    place = this_place()
    if place is None and config.cluster.world_size > 1:
        return launch(config, rank_command(["train", *argv]))
    start_logging(quiet=place is not None and place.rank > 0)
    try:
        print(run(config, overrides=args.overrides, anew=args.force))
    except Stopped as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(error.exit_code)  # all is written; threads that still wait for a model are not waited for
    return 0


def run_sweep(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    parser.add_argument("name", help="a file of sweeps/, without .yaml")
    add_overrides(parser)
    add_study_options(parser)
    args = parser.parse_intermixed_args(argv)

    from harness.config.compose import compose_sweep

    params, args.overrides = compose_sweep(args.name, args.overrides, args.config_dir)
    return _run_study(params, args)


def _run_study(params: dict[str, str], args: argparse.Namespace) -> int:
    from harness.config.deployment import check_devices, resolved
    from harness.study.cells import expand

    launcher = [line for line in args.overrides if line.lstrip("+").startswith(("hydra/launcher=", "hydra.launcher."))]
    overrides = [line for line in args.overrides if line not in launcher]
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {args.jobs}")
    cells = expand(params, overrides, config_dir=args.config_dir, resolve=resolved)
    if args.dry_run:
        for cell in cells:
            print(f"{cell.run_dir}\n    zppo train {shlex.join(cell.overrides)}")
        print(f"{len(cells)} {'cell' if len(cells) == 1 else 'cells'}")
        return 0
    if launcher:
        from harness.study.launchers import launch

        return launch(cells, launcher, config_dir=args.config_dir, force=args.force)
    from harness.config.extras import check_extras
    from harness.study.scheduler import exit_code, run_cells

    for cell in cells:
        check_devices(cell.config)
        check_extras(cell.config)
    return exit_code(run_cells(cells, jobs=args.jobs, force=args.force, config_dir=args.config_dir))


def _print_config(config: RunConfig) -> None:
    import yaml

    from harness.config.identity import plain

    print(yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True), end="")
