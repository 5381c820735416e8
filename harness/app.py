"""The `zppo` command. Overrides are Hydra's: `zppo train method=zppo student=tiny_s steps=5`.

Errors that a user can cause end in one line and exit code 2; `--debug` shows the traceback.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.errors import UserError, did_you_mean

Command = Callable[[argparse.ArgumentParser, Sequence[str]], int]
RUN = "folder of a run, such as outputs/quickstart/zppo/tiny_s/seed0"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Exit codes: 0 fine, 1 a run failed, 2 the user may mend it, 75 launched again it goes on, 130 Ctrl-C, 141 unread.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    name, *rest = arguments
    try:
        if name not in COMMANDS:
            raise UserError(f"no command '{name}'.{did_you_mean(name, COMMANDS)}")
        summary, command = COMMANDS[name]
        parser = argparse.ArgumentParser(prog=f"zppo {name}", description=summary)
        code = command(parser, rest)
        sys.stdout.flush()
        return code
    except UserError as error:
        if debug:
            raise
        from harness.distributed.place import speaks

        if speaks():
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `zppo view ... | head` has read enough; nothing more is to be written, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _train(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    _add_overrides(parser)
    _add_study_options(parser)
    parser.add_argument("-m", "--multirun", action="store_true", help="one run for each combination of values a,b")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    args = parser.parse_intermixed_args(argv)
    if args.multirun:
        return _run_study({}, args)

    from harness.config.compose import compose
    from harness.config.deployment import build_method, check_ranks
    from harness.config.schema import from_hydra
    from harness.distributed.launch import launch, rank_command
    from harness.distributed.place import this_place
    from harness.process.preemption import Stopped
    from harness.run import run

    config = from_hydra(compose(args.overrides, config_dir=args.config_dir))
    if args.print_config:
        _print_config(config)
        return 0
    build_method(config)
    check_ranks(config)
    place = this_place()
    if place is None and config.cluster.world_size > 1:
        return launch(config, rank_command(["train", *argv]))
    _start_logging(quiet=place is not None and place.rank > 0)
    try:
        print(run(config, overrides=args.overrides))
    except Stopped as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(error.exit_code)  # all is written; threads that still wait for a model are not waited for
    return 0


def _sweep(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    parser.add_argument("name", help="a file of sweeps/, without .yaml")
    _add_overrides(parser)
    _add_study_options(parser)
    args = parser.parse_intermixed_args(argv)

    from harness.config.compose import compose_sweep

    params, args.overrides = compose_sweep(args.name, args.overrides, args.config_dir)
    return _run_study(params, args)


def _plan(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    _add_overrides(parser, "sweep=NAME cluster=8x8, and key=value in Hydra's grammar")
    parser.add_argument("--json", action="store_true", help="all numbers as JSON: bytes, FLOPs, seconds")
    from harness.plan.options import add_options, read_options

    add_options(parser)
    args = parser.parse_intermixed_args(argv)

    from harness.plan.command import plan_command

    assumed, kernels = read_options(args)
    print(plan_command(args.overrides, config_dir=args.config_dir, assumed=assumed, kernels=kernels, as_json=args.json))
    return 0


def _run_study(params: dict[str, str], args: argparse.Namespace) -> int:
    from harness.config.deployment import build_method
    from harness.scheduler import exit_code, run_cells
    from harness.sweep import expand

    launcher = [line for line in args.overrides if line.lstrip("+").startswith(("hydra/launcher=", "hydra.launcher."))]
    overrides = [line for line in args.overrides if line not in launcher]
    cells = expand(params, overrides, config_dir=args.config_dir, check=build_method)
    if args.dry_run:
        for cell in cells:
            print(f"{cell.run_dir}\n    zppo train {shlex.join(cell.overrides)}")
        print(f"{len(cells)} cells")
        return 0
    if launcher:
        from harness.hydra_app import launch

        return launch(cells, launcher, config_dir=args.config_dir, force=args.force)
    return exit_code(run_cells(cells, jobs=args.jobs, force=args.force, config_dir=args.config_dir))


def _eval(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    parser.add_argument("--list", action="store_true", help="the benchmarks, their options, and whether data are there")
    parser.add_argument("words", nargs="*", help="run=FOLDER or model=NAME, suite=NAME, limit=N, stage=..., eval.*=...")
    parser.add_argument("--config-dir", help="a folder with further options, <group>/<name>.yaml")
    args = parser.parse_intermixed_args(argv)

    from harness.eval_command import eval_command, list_text

    if args.list:
        print(list_text(args.words))
        return 0
    _start_logging()
    print(eval_command(args.words, args.config_dir))
    return 0


def _doctor(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    _add_overrides(parser)
    args = parser.parse_intermixed_args(argv)

    from harness.doctor import doctor

    text, code = doctor(args.overrides, args.config_dir)
    print(text)
    return code


def _status(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    parser.add_argument("study", help="folder of a study, such as outputs/quickstart")
    args = parser.parse_args(argv)

    from harness.status import status

    print(status(args.study))
    return 0


def _report(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    parser.add_argument("studies", nargs="*", help="folders of studies, such as outputs/quickstart; or: published")
    parser.add_argument("--out", metavar="DIR", help="where the report goes; default STUDY/report")
    parser.add_argument("--delta", nargs=2, metavar=("A", "B"), help="the delta row is A minus B")
    parser.add_argument("--baseline", metavar="LABEL", help="what the others are tested against; default zppo")
    parser.add_argument("--with-published", action="store_true", help="the paper's tables beside one's own")
    parser.add_argument("--compare", nargs=2, metavar=("RUN", "RUN"), help="what differs between two runs")
    parser.add_argument("--wandb", choices=("offline", "online"), help="also log the report, as an artifact")
    args = parser.parse_args(argv)
    if (args.compare is None) == (not args.studies):
        raise UserError("zppo report needs the folder of a study, or --compare RUN RUN")

    from reports.compare_runs import compare_runs
    from reports.report import write_report

    with _value_errors_are_the_users():
        if args.compare is not None:
            print(compare_runs(*map(Path, args.compare)))
            return 0
        report = write_report(
            args.studies,
            out=args.out,
            delta=tuple(args.delta) if args.delta else None,
            baseline=args.baseline,
            with_published=args.with_published,
        )
        print(report.text)
    if args.wandb:
        from harness.records.tracking import log_report

        print(log_report(report.folder, Path(args.studies[0]).resolve().name, mode=args.wandb))
    return 0


def _audit(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    parser.add_argument("run", help=RUN)
    args = parser.parse_args(argv)

    from reports.audit import audit_command

    with _value_errors_are_the_users():
        print(audit_command(args.run))
    return 0


def _view(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    parser.add_argument("run", help=RUN)
    parser.add_argument("--step", type=int, help="rollout step; default the last")
    parser.add_argument("--kind", help="kind of prompt, such as plain, bcq or ncq")
    parser.add_argument("--question", metavar="ID", help="id of a question")
    parser.add_argument("--num", type=int, default=3, help="how many groups; default 3")
    args = parser.parse_args(argv)

    from reports.view import view_command

    with _value_errors_are_the_users():
        print(view_command(args.run, step=args.step, kind=args.kind, question=args.question, num_groups=args.num))
    return 0


def _methods(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    parser.parse_args(argv)

    from harness.catalog import methods_text

    print(methods_text())
    return 0


def _new_method(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    parser.add_argument("name", help="of the method, in snake_case")
    parser.add_argument("--dir", default=".", help="folder that gets the new folder zppo-NAME; default here")
    args = parser.parse_args(argv)

    from harness.new_method import new_method

    print(new_method(args.name, args.dir))
    return 0


def _grade(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    parser.add_argument("file", help='JSONL with {"id", "response", "gold"[, "type"]} a line')
    parser.add_argument("--grader", default="math_verify", choices=("math_verify", "mathruler"))
    args = parser.parse_args(argv)

    from harness.config.schema import RewardConfig
    from harness.rewards.command import grade_file

    for line in grade_file(args.file, RewardConfig(grader=args.grader)):
        print(line)
    return 0


def _tiny(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    parser.add_argument("action", choices=("build",))
    parser.add_argument("--sizes", default="", help="some of the family, such as s,teacher; default all")
    parser.add_argument("--out", default="outputs/tiny", help="folder for the models; the shipped ones stay")
    args = parser.parse_args(argv)

    from harness.models.tiny import SIZES
    from harness.models.tiny.build import build

    build(args.sizes.split(",") if args.sizes else list(SIZES), args.out)
    return 0


def _data(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    from harness.data.corpus.command import data_command

    return data_command(parser, argv)


COMMANDS: dict[str, tuple[str, Command]] = {
    "train": ("One run: train, save, evaluate; -m for several.", _train),
    "sweep": ("Run a study of sweeps/; finished runs are skipped.", _sweep),
    "plan": ("Memory, FLOPs, hours and disk of a study, before it has GPUs.", _plan),
    "eval": ("Score a run or a model on a suite; --list shows the benchmarks.", _eval),
    "doctor": ("What this machine can run; with overrides, whether it can run that.", _doctor),
    "status": ("State of the cells of a study.", _status),
    "report": ("Tables and figures of a study.", _report),
    "audit": ("Candidate-match audit, graduation table and fate of a run's questions.", _audit),
    "view": ("Prompts and responses of a run, with rewards.", _view),
    "methods": ("Presets of methods, and where each comes from.", _methods),
    "new-method": ("Write an installable package with a method of your own.", _new_method),
    "grade": ("Grade your own answers.", _grade),
    "data": ("Build a training corpus, or hash benchmarks to keep them out of it.", _data),
    "tiny": ("Build the tiny family from seeds.", _tiny),
}


@contextmanager
def _value_errors_are_the_users() -> Iterator[None]:
    """`reports/` knows nothing of the harness: what a user can mend is a ValueError there."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


def _add_overrides(parser: argparse.ArgumentParser, text: str = "key=value, Hydra's grammar") -> None:
    parser.add_argument("overrides", nargs="*", help=text)
    parser.add_argument("--config-dir", help="a folder with further options, <group>/<name>.yaml")


def _add_study_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, help="runs at a time; default one a GPU, else one a core")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and stop")
    parser.add_argument("--force", action="store_true", help="remove the run folders and start anew")


def _usage() -> str:
    rows = "\n".join(f"  {name:<12}{summary}" for name, (summary, _) in COMMANDS.items())
    return f"usage: zppo COMMAND ...   (zppo COMMAND --help)\n\n{rows}"


def _print_config(config: object) -> None:
    from omegaconf import OmegaConf

    print(OmegaConf.to_yaml(OmegaConf.structured(config)), end="")


def _start_logging(*, quiet: bool = False) -> None:
    """`quiet`: of a rank that says only why it has to end."""
    logging.basicConfig(level=logging.CRITICAL if quiet else logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in (
        "httpx",
        "urllib3",
        "filelock",
        "fsspec",
        "lm_eval",
        "datasets",
        "accelerate",
        "matplotlib",
        "numexpr",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
