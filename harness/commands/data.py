"""`zppo data check`, `build` and `hash`, `zppo tiny build`: one's data, a corpus, hashes of benchmarks, tiny models."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from harness.builders.corpus.options import SHARED, UNKNOWN, BuildOptions
from harness.commands.data_check import add_check, check
from harness.commands.options import Parser, show
from harness.errors import UserError
from reports.runs.text import message

CORPORA = ("zppo77k",)
DEFAULTS = BuildOptions()
STUDENT, FIXTURE_STUDENT = "qwen3_5_2b", "tiny_xs"


def run_data(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    """Run an action. Raises UserError."""
    parser.add_argument("action", choices=ACTIONS, help="each has its own --help")
    name = parser.parse_args(argv[:1]).action
    add_arguments, summary, act = ACTIONS[name]
    own = Parser(prog=f"{parser.prog} {name}", description=summary)
    add_arguments(own)
    return act(own.parse_intermixed_args(argv[1:]))


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=CORPORA)
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        help=f"key=value of the runs that will train on it; default student={STUDENT}",
    )
    parser.add_argument("--config-dir", help="a folder with further options, <group>/<name>.yaml")
    parser.add_argument("--fixture", action="store_true", help="made-up sources of a few hundred rows next to it")
    parser.add_argument("--force", action="store_true", help="replace a corpus or a build that is there")
    given: dict[str, Any] = {"default": argparse.SUPPRESS}
    parser.add_argument("--out", help=f"folder of the corpus; default {DEFAULTS.out}", **given)
    parser.add_argument("--vero", metavar="ID|FOLDER", help="default the hub's", **given)
    parser.add_argument("--mmfinereason", metavar="ID|FOLDER", help="default the hub's", **given)
    parser.add_argument("--vero-revision", metavar="COMMIT", **given)
    parser.add_argument("--mmfinereason-revision", metavar="COMMIT", **given)
    parser.add_argument("--seed", type=int, help=f"of the choice of rows; default {DEFAULTS.seed}", **given)
    parser.add_argument("--unknown", choices=UNKNOWN, help=f"new sub-datasets; default {DEFAULTS.unknown}", **given)
    parser.add_argument(
        "--shared", choices=SHARED, help=f"what both sources have: Vero alone, or topped up; default {DEFAULTS.shared}",
        **given,
    )  # fmt: skip
    parser.add_argument("--near-duplicates", metavar="FILE", help="drop what is in a file of zppo data hash", **given)
    parser.add_argument("--distance", type=int, help=f"bits between them; default {DEFAULTS.distance}", **given)
    parser.add_argument("--tier1-cap", type=int, help=f"rows a sub-dataset; default {DEFAULTS.tier1_cap}", **given)
    parser.add_argument("--tier2-cap", type=int, help=f"rows a sub-dataset; default {DEFAULTS.tier2_cap}", **given)
    parser.add_argument("--shard-rows", type=int, help=f"rows a file; default {DEFAULTS.shard_rows}", **given)


def _add_hash(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="outputs/benchmark_hashes.json", help="file; default %(default)s")
    parser.add_argument("--suite", default="paper31", help="default %(default)s; llm10, vlm16 or video5")
    parser.add_argument("--columns", default="", help="some of the suite, such as ai2d,mathvista; default all")
    parser.add_argument("--data-root", metavar="DIR", help="local copies of the data sets, DIR/<owner>/<name>")


def _build(args: argparse.Namespace) -> int:
    from PIL import Image

    _check_hashing()
    from harness.builders.corpus.build import build
    from harness.builders.corpus.card import summary
    from harness.config.compose import compose
    from harness.config.schema import from_hydra

    names = {field.name for field in fields(BuildOptions)}
    given = {name: value for name, value in vars(args).items() if name in names}
    student = FIXTURE_STUDENT if args.fixture else STUDENT
    chosen = [] if any(word.startswith("student=") for word in args.overrides) else [f"student={student}"]
    config = from_hydra(compose([*chosen, *args.overrides], config_dir=args.config_dir))
    options = _with_fixture(given) if args.fixture else BuildOptions(**given)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the builder has a limit of its own, and counts
    made = build(options, config, force=args.force, report=_report)
    show(summary(made, options.out))
    return 0


def _check_hashing() -> None:
    """Raises UserError where what hashes pictures is not installed."""
    from harness.config.extras import absent

    for line in absent("corpus", ["imagehash"], "zppo data"):
        raise UserError(line)


def _with_fixture(given: dict[str, Any]) -> BuildOptions:
    """The options of a build of made-up sources, which are written next to the corpus."""
    from harness.builders.corpus.fixture import TIER1_CAP, TIER2_CAP, write_fixture

    own = sorted(set(given) & {"vero", "mmfinereason", "vero_revision", "mmfinereason_revision", "near_duplicates"})
    if own:
        raise UserError(f"--fixture brings its own --{own[0].replace('_', '-')}: leave one of them out")
    out = given.get("out", f"{DEFAULTS.out}_fixture")
    places = write_fixture(Path(f"{out.rstrip('/')}_sources").expanduser())
    caps = {"tier1_cap": TIER1_CAP, "tier2_cap": TIER2_CAP, "unknown": "skip", "shard_rows": 100}
    return BuildOptions(**{"out": out, **caps, **{name: str(path) for name, path in places.items()}, **given})


def _hash(args: argparse.Namespace) -> int:
    _check_hashing()
    from harness.builders.corpus.benchmark_hashes import hash_benchmarks

    columns = [name for name in args.columns.split(",") if name]
    out = Path(args.out).expanduser()
    hashes = hash_benchmarks(args.suite, columns, args.data_root, _report)
    out.parent.mkdir(parents=True, exist_ok=True)
    hashes.save(out)
    for name, reason in hashes.missing.items():
        show(f"not in it: {name} ({reason})")
    print(
        f"{sum(hashes.columns.values())} questions of {len(hashes.columns)} benchmarks, {len(hashes.texts)} texts and "
        f"{len(hashes.images)} pictures: {out}"
    )
    return 0


ACTIONS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str, Callable[[argparse.Namespace], int]]] = {
    "check": (add_check, "What a run would train on, before it does; docs/data.md.", check),
    "build": (_add_build, "A training corpus from its public sources; docs/corpus.md.", _build),
    "hash": (_add_hash, "Hashes of benchmarks, by which zppo data build finds near duplicates.", _hash),
}


def _report(line: str) -> None:
    print(message(line), file=sys.stderr, flush=True)


def run_tiny(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    parser.add_argument("action", choices=("build",))
    parser.add_argument("--sizes", default="", help="some of the family, such as s,teacher; default all")
    parser.add_argument("--out", default="outputs/tiny", help="folder for the models; the shipped ones stay")
    args = parser.parse_args(argv)

    from harness.builders.tiny.build import build
    from harness.models.tiny import SIZES

    build(args.sizes.split(",") if args.sizes else list(SIZES), args.out)
    return 0
