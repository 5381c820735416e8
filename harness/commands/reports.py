"""`zppo report`, `zppo audit` and `zppo view`: what run folders hold, for people."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.commands.options import show
from harness.errors import UserError

RUN = "folder of a run, such as outputs/quickstart/zppo/tiny_s/seed0"


def run_report(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    parser.add_argument("studies", nargs="*", help="folders of studies, such as outputs/quickstart; or: published")
    parser.add_argument("--out", metavar="DIR", help="where the report goes; default STUDY/report")
    parser.add_argument("--delta", nargs=2, metavar=("A", "B"), help="the delta row is A minus B")
    parser.add_argument("--baseline", metavar="LABEL", help="what the others are tested against; default zppo")
    parser.add_argument("--with-published", action="store_true", help="the paper's tables next to one's own")
    parser.add_argument("--compare", nargs=2, metavar=("RUN", "RUN"), help="what differs between two runs")
    parser.add_argument("--wandb", choices=("offline", "online"), help="also log the report, as an artifact")
    args = parser.parse_args(argv)
    if (args.compare is None) == (not args.studies):
        raise UserError("zppo report needs the folder of a study, or --compare RUN RUN")

    if args.wandb:
        from harness.config.extras import absent

        for line in absent("wandb", ["wandb"], f"--wandb {args.wandb}"):
            raise UserError(line)

    from reports.compare_runs import compare_runs
    from reports.report import write_report

    with _value_errors_are_the_users():
        if args.compare is not None:
            show(compare_runs(*map(Path, args.compare)))
            return 0
        report = write_report(
            args.studies,
            out=args.out,
            delta=tuple(args.delta) if args.delta else None,
            baseline=args.baseline,
            with_published=args.with_published,
        )
        show(report.text)
    if args.wandb:
        from harness.records.tracking import log_report

        show(log_report(report.folder, Path(args.studies[0]).resolve().name, mode=args.wandb))
    return 0


def run_audit(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    parser.add_argument("run", help=RUN)
    args = parser.parse_args(argv)

    from reports.audit import audit_command

    with _value_errors_are_the_users():
        show(audit_command(args.run))
    return 0


def run_view(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    parser.add_argument("run", help=RUN)
    parser.add_argument("--step", type=int, help="rollout step; default the last")
    parser.add_argument("--kind", help="kind of prompt, such as plain, bcq or ncq")
    parser.add_argument("--question", metavar="ID", help="id of a question")
    parser.add_argument("--num", type=int, default=3, help="how many groups; default 3")
    args = parser.parse_args(argv)

    from reports.view import view_command

    with _value_errors_are_the_users():
        show(view_command(args.run, step=args.step, kind=args.kind, question=args.question, num_groups=args.num))
    return 0


@contextmanager
def _value_errors_are_the_users() -> Iterator[None]:
    """`reports/` knows nothing of the harness: what a user can fix is a ValueError there."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error
