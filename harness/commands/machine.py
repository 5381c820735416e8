"""`zppo plan`, `zppo doctor` and `zppo status`: what a study takes, what can run here, and how far it is."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from harness.commands.options import add_overrides, show


def run_plan(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    add_overrides(parser, "sweep=NAME cluster=8x8, and key=value in Hydra's grammar")
    parser.add_argument("--json", action="store_true", help="all numbers as JSON: bytes, FLOPs, seconds")
    from harness.preflight.plan.options import add_options, read_options

    add_options(parser)
    args = parser.parse_intermixed_args(argv)

    from harness.preflight.plan.study import plan_command

    assumed, kernels = read_options(args)
    show(plan_command(args.overrides, config_dir=args.config_dir, assumed=assumed, kernels=kernels, as_json=args.json))
    return 0


def run_doctor(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    add_overrides(parser)
    parser.epilog = "It makes the checks of a run and reads all questions, but no weights; it writes nothing."
    args = parser.parse_intermixed_args(argv)

    from harness.preflight.doctor import doctor

    text, code = doctor(args.overrides, args.config_dir)
    show(text)
    return code


def run_status(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    parser.add_argument("study", help="folder of a study, such as outputs/quickstart")
    args = parser.parse_args(argv)

    from harness.study.status import status

    show(status(args.study))
    return 0
