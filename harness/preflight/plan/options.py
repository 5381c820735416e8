"""The options of `zppo plan`: what it assumes, each with its default in `Assumptions`."""

from __future__ import annotations

import argparse
from dataclasses import fields

from harness.errors import UserError
from harness.models.kernels import Kernels, installed_kernels
from harness.preflight.plan.counting import Assumptions
from harness.preflight.plan.power import with_spread
from harness.process.devices import has_gpus

HELP = {
    "response_tokens": "mean length of a response; default: rollout.max_response_tokens",
    "prompt_tokens": "mean length of a plain prompt, its picture included",
    "accuracy": "mean accuracy of the student",
    "teacher_accuracy": "of every rollout of the teacher",
    "num_questions": "of data whose size is only known when they are read",
    "mfu": "share of a GPU's bf16 peak in updates and scoring",
    "bandwidth": "share of its memory's bandwidth in decoding",
    "max_steps_per_second": "tokens a second of one sequence, at most; default 100 with vLLM, 25 with transformers",
    "run_sd": "standard deviation of a run's accuracy over seeds, percentage points",
    "response_sd": "of one response about its question's own accuracy, percentage points",
    "rollout_rate": "student's tokens a second on a GPU; default: from the bandwidth",
}
SHARES = ("accuracy", "teacher_accuracy", "mfu", "bandwidth")


def add_options(parser: argparse.ArgumentParser) -> None:
    for field in fields(Assumptions):
        kind = int if isinstance(field.default, int) else float
        shown = f"; default {field.default}" if field.default else ""
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=kind, default=field.default, help=HELP[field.name] + shown
        )
    parser.add_argument("--spread", metavar="STUDY", help="take --run-sd and --response-sd from the runs of a study")
    parser.add_argument(
        "--kernels",
        choices=("fla", "torch"),
        help="of linear attention: flash-linear-attention, or transformers' own code; default: what is installed on a "
        "machine with GPUs, else fla",
    )


def read_options(args: argparse.Namespace) -> tuple[Assumptions, Kernels]:
    """Raises UserError for a share outside of [0, 1] and for negative numbers."""
    values = {field.name: getattr(args, field.name) for field in fields(Assumptions)}
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        if name in SHARES and not 0.0 <= value <= 1.0:
            raise UserError(f"{option} must lie in [0, 1], got {value:g}")
        if value < 0 or (value == 0 and name in ("mfu", "bandwidth", "prompt_tokens")):
            raise UserError(f"{option} must be above 0, got {value:g}")
    assumed = Assumptions(**values)
    kernels = args.kernels or (installed_kernels() if has_gpus() else "fla")
    return assumed if args.spread is None else with_spread(assumed, args.spread), kernels
