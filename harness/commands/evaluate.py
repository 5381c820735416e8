"""`zppo eval`: score a run's student, or any model, on a suite, and list what can be evaluated."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from harness.commands.options import show, start_logging
from harness.config.cluster import ClusterConfig
from harness.config.evaluation import LIBRARIES, TASKS, MediaConfig
from harness.config.schema import EvalConfig, RunConfig, from_hydra
from harness.errors import UserError, did_you_mean
from harness.records.folder import RunFolder

if TYPE_CHECKING:
    from omegaconf import DictConfig

logger = logging.getLogger(__name__)

OF_A_RUN = ("eval.", "student.", "reward.", "rollout.", "server.", "device=", "num_threads=")
"""How the words begin that say more about the evaluation of a run."""
OWN = ("run", "model", "suite")
SHORT = {"limit": "eval.limit", "stage": "eval.stage", "data_root": "eval.data_root"}


def eval_command(words: Sequence[str], config_dir: str | None = None) -> str:
    """Evaluate and return what the command prints: the scores and where they lie.

    `words` are `run=FOLDER` or `model=NAME_OR_PATH`, `suite=`, `limit=`, `stage=`, `data_root=`, and overrides of
    `zppo train`. Raises UserError.
    """
    parts = [word.partition("=") for word in words]
    own = [key for key, _, _ in parts if key in OWN]
    if repeated := next((key for key in own if own.count(key) > 1), None):
        raise UserError(f"{repeated}= is given twice: evaluate one at a time")
    given = {key: value for key, _, value in parts if key in OWN and value}
    overrides = [SHORT.get(key, key) + sign + value for key, sign, value in parts if key not in OWN]
    if ("run" in given) == ("model" in given):
        raise UserError("zppo eval needs run=FOLDER of a finished run, or model=NAME or path; see zppo eval --list")
    if "run" in given:
        return _evaluate_run(Path(given["run"]), given.get("suite"), overrides, config_dir)
    suite = given.get("suite") or (TASKS if _has_tasks(overrides) else "mini")
    return _evaluate_model(given["model"], suite, overrides, config_dir)


def _evaluate_run(path: Path, suite: str | None, overrides: list[str], config_dir: str | None) -> str:
    """In the run's own folder, so that the scores join its study's tables.

    The folder may be somebody else's. It decides how it is decoded and shown what it is asked; where a model is, what
    code runs and who is asked comes from the command line.
    """
    from harness.config.compose import compose
    from harness.config.identity import plain
    from harness.records.foreign import read_foreign

    run, model = read_foreign(path), path / "model"
    if other := [word for word in overrides if not word.startswith(OF_A_RUN)]:
        raise UserError(f"{other[0]}: only {', '.join(OF_A_RUN)} can be chosen for a run that is done")
    names_model = any(word.startswith("student.path=") for word in overrides)
    if names_model == model.is_dir():
        remedy = "leave student.path out" if names_model else "name the model that it evaluated, student.path=NAME"
        raise UserError(f"{path} has {'its' if names_model else 'no'} model in {model}: {remedy}")
    own = run.options.pop("eval.suite", None)
    suite = suite or (TASKS if _has_tasks(overrides) else own)
    if suite is None:
        raise UserError(f"{path} was run without an evaluation: name one, suite=mini")
    # Another suite has its own decoding; what the student is shown stays the run's.
    taken = {k: v for k, v in run.options.items() if suite == own or not k.startswith("eval.") or "media." in k}
    words = [
        "method=base",
        "student=hf",
        "student.path=''",
        "student.name=student",
        *_suite_words(suite, overrides, config_dir),
    ]
    words += [f"{key}={json.dumps(value)}" for key, value in taken.items()]
    config = from_hydra(compose([*words, *overrides], config_dir=config_dir))
    student = dataclasses.replace(config.student, name=run.student)
    if not names_model:
        student = dataclasses.replace(student, path=str(model), revision=None)
    config = dataclasses.replace(config, student=student)
    if left_out := run.left_out(plain(config)):
        logger.warning(
            "%s also sets %s, which no folder decides: give KEY=VALUE where you mean it",
            path / "config.yaml", ", ".join(left_out),
        )  # fmt: skip
    scores = path / "eval" / str(config.eval.suite) / "scores.csv"
    if config.eval.limit is not None and scores.exists():
        logger.warning("limit=%d: its scores take the place of those in %s", config.eval.limit, scores)
    return _evaluate(config, scores.parent, run.label)


def _evaluate_model(model: str, suite: str, overrides: list[str], config_dir: str | None) -> str:
    """Evaluate as a row `base` of a study: like `zppo train method=base`, by the model's name or path."""
    from harness.config.compose import compose, group_options
    from harness.config.deployment import run_label
    from harness.records.folder import run_dir
    from harness.run.run import run

    student = [f"student={model}"]
    if model not in group_options("student", config_dir):
        if "/" not in model and not Path(model).exists() and ":" not in model:
            known = ", ".join(group_options("student", config_dir))
            raise UserError(f"model={model} is neither a student ({known}) nor a folder nor a hub id (owner/name)")
        student = ["student=hf", f"student.path={model}", f"student.name={Path(model).name.replace(':', '_').lower()}"]
    study = [] if any(word.startswith("study=") for word in overrides) else ["study=eval"]
    chosen = ["method=base", *student, *_suite_words(suite, overrides, config_dir), *study]
    if (path := Path(model).expanduser()).is_dir():
        chosen += _folder_words(path, compose([*chosen, *overrides], config_dir=config_dir))
    words = [*chosen, *overrides]
    config = from_hydra(compose(words, config_dir=config_dir))
    folder = run_dir(config, run_label(config))
    out_dir = folder / "eval" / str(config.eval.suite)
    if RunFolder.read_info(folder).get("status") == "done":
        return _evaluate(config, out_dir, run_label(config))
    # A run that trains nothing: its scores are all that it is. Other suites may follow, so the folder keeps none.
    run(config, overrides=words, kept=dataclasses.replace(config, eval=EvalConfig(media=config.eval.media)))
    return _shown(config, out_dir)


def _suite_words(suite: str, overrides: Sequence[str], config_dir: str | None) -> list[str]:
    """The words that choose a suite. One without an option file has its benchmarks on the command line."""
    from harness.config.compose import group_options

    known = group_options("eval", config_dir)
    if suite in known:
        return [f"eval={suite}"]
    if any(word.startswith("eval.benchmarks=") for word in overrides) or _has_tasks(overrides):
        return ["eval=none", f"eval.suite={suite}"]
    if suite == TASKS:
        raise UserError("no folder says which library tasks to evaluate: name them, eval.tasks=[lm_eval:NAME]")
    raise UserError(
        f"suite={suite}: no such suite.{did_you_mean(suite, known)} One of your own is the file eval/{suite}.yaml in a "
        "folder that --config-dir names, or eval.benchmarks=[...]"
    )


def _has_tasks(overrides: Sequence[str]) -> bool:
    return any(word.startswith("eval.tasks=") and word != "eval.tasks=[]" for word in overrides)


def _folder_words(folder: Path, composed: DictConfig) -> list[str]:
    """Options that a model's folder decides where the user does not: its dtype, and the limits of its pictures.

    The protocol's limits stay where the folder's own allow them, so that a copy of a model is scored as the model is.
    """
    from omegaconf import OmegaConf

    from harness.models.folder import folder_settings

    media = OmegaConf.merge(MediaConfig(), composed.eval.get("media", {}))
    settings = folder_settings(folder)
    words = [] if settings.dtype is None else [f"student.dtype={settings.dtype}"]
    if settings.pixels is not None:
        least, most = settings.pixels
        if not (least <= media.min_pixels <= most and least <= media.max_pixels <= most):
            words += [f"eval.media.min_pixels={least}", f"eval.media.max_pixels={most}"]
    if words:
        logger.info("%s decides %s; the same options choose otherwise", folder, " ".join(words))
    return words


def _evaluate(config: RunConfig, out_dir: Path, label: str) -> str:
    """Generate, mark and judge, or only what `eval.stage` names. The model is loaded where it generates. Raises Taken
    where another process evaluates on the same suite; other suites may be under way."""
    from harness.config.deployment import check_devices
    from harness.config.extras import check_extras
    from harness.evaluation.evaluate import evaluate
    from harness.evaluation.library_tasks import find_tasks
    from harness.evaluation.protocol import Setup
    from harness.records.lock import RunLock
    from harness.rewards.workers import Grader
    from harness.run.run import live_student

    config = dataclasses.replace(config, cluster=ClusterConfig())  # it is one process
    check_devices(config)
    check_extras(config)
    find_tasks(config.eval)  # before anything is loaded
    with ExitStack() as stack:
        stack.callback(RunLock(out_dir).release)
        grader = stack.enter_context(Grader(config.reward))
        engine, identity, live = None, None, None
        if config.eval.stage != "judge":
            engine, identity, live = live_student(config, out_dir / out_dir.name, stack)
        name = f"{label}/{config.student.name}"
        setup = Setup.of(config)
        evaluate(
            config.eval, engine, grader, out_dir=out_dir, model_name=name, identity=identity, setup=setup, live=live
        )
    return _shown(config, out_dir)


def _shown(config: RunConfig, out_dir: Path) -> str:
    if config.eval.stage == "generate":
        return f"Generated: {out_dir / 'responses.jsonl'}; score them with stage=judge"
    from harness.evaluation.evaluate import refuse_no_score

    refuse_no_score(out_dir)
    return _text(out_dir)


def _text(out_dir: Path) -> str:
    """The scores as the file has them, aligned."""

    rows = list(csv.DictReader((out_dir / "scores.csv").open(encoding="utf-8")))
    counts = ("num_truncated", "num_unparsable", "num_timeout", "num_judged", "num_malformed")
    shown = ("benchmark", "family", "score", "stderr", "n", *counts)
    cells = [shown, *([row[name] or "-" for name in shown] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(shown))]
    lines = []
    for row in cells:
        padded = [
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded))
    return "\n".join([*lines, f"Written: {out_dir}"])


def tasks_text(library: str, paths: Sequence[str] = ()) -> str:
    """`zppo eval --list lm_eval`: the tasks, groups and tags of a library, and one's own in `paths`. Offline."""
    from harness.evaluation.library.index import task_index

    index = task_index(library, paths)
    kinds = {"python_task": "task"}
    lines = [f"{library}:{name}  {kinds.get(entry.kind, entry.kind)}" for name, entry in sorted(index.items())]
    return "\n".join([*lines, f"{len(index)} names: zppo eval model=NAME eval.tasks=[{library}:NAME]"])


def list_text(config_dir: str | None = None) -> str:
    """`zppo eval --list`: the columns with their sizes, scoring, data sets and options, and the suites. Offline."""
    from harness.config.evaluation import BenchmarkOptions
    from harness.evaluation.benchmarks.columns import columns, options_of, suite_columns

    rows = [("column", "label", "family", "rows", "scoring", "data set", "options")]
    defaults = dataclasses.asdict(BenchmarkOptions())
    for column in columns().values():
        options = " ".join(f"{name}={value}" for name, value in options_of(column.name, defaults).items())
        rows.append((column.name, column.label, column.family, str(column.num_rows), column.scoring, column.dataset,
                     options))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    suites = ", ".join(f"{name} ({len(members)})" for name, members in suite_columns().items())
    lines += ["", f"suites: mini, {suites}"]
    if own := _own_suites(config_dir):
        lines.append(f"suites of others: {', '.join(own)}")
    lines += [
        "options are set with eval.options.NAME=VALUE",
        "tasks of libraries: zppo eval --list lm_eval, or lmms_eval",
    ]
    return "\n".join(lines)


def _listed(value: str) -> list[str]:
    """The items of a word's value, a list or one alone."""
    return [item.strip().strip("'\"") for item in value.strip("[]").split(",") if item.strip()]


def _own_suites(config_dir: str | None) -> list[str]:
    """The suites of `--config-dir` and of installed packages, with the number of their benchmarks and tasks."""
    from harness.config.compose import group_files
    from harness.config.evaluation import suites

    found = []
    for name, file in group_files("eval", config_dir).items():
        if name in (*suites(), "mini", "none"):
            continue
        try:
            options = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
            number = sum(len(options.get(key) or ()) for key in ("benchmarks", "tasks"))
        except (OSError, ValueError, yaml.YAMLError, AttributeError, TypeError):
            found.append(f"{name} (cannot be read)")
            continue
        found.append(f"{name} ({number})")
    return found


def data_text(words: Sequence[str]) -> str:
    """Which columns have their data: in `data_root=`, else on the hub."""
    from harness.evaluation.benchmarks.columns import columns

    root = next((w.partition("=")[2] for w in words if w.partition("=")[0] in ("data_root", "eval.data_root")), None)
    every = list(columns().values())
    with ThreadPoolExecutor(8) as pool:
        states = list(pool.map(lambda column: _reachable(column.repository, root), every))
    lines = []
    for state in dict.fromkeys(states):
        names = [column.name for column, its in zip(every, states, strict=True) if its == state]
        lines.append(f"data {state}: {f'all {len(names)}' if len(names) == len(every) else ', '.join(names)}")
    if "unreachable" in states:
        lines.append("the hub does not answer: look again later, or keep copies in data_root=DIR")
    return "\n".join(lines)


def _reachable(repository: str, root: str | None) -> str:
    if root is not None:
        return "there" if (Path(root).expanduser() / repository).is_dir() else "missing"
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError

    try:
        info = HfApi().dataset_info(repository, timeout=5)
    except GatedRepoError:
        return "gated"
    except Exception:  # of httpx, of httpx2 or of the hub, by the version of its client
        return "unreachable"
    return "gated" if info.gated else "there"


def run_eval(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    parser.add_argument(
        "--list", action="store_true",
        help="the benchmarks, their options, and whether data are there; --list lm_eval: the tasks of a library",
    )  # fmt: skip
    parser.add_argument("words", nargs="*", help="run=FOLDER or model=NAME, suite=NAME, limit=N, stage=..., eval.*=...")
    parser.add_argument("--config-dir", help="a folder with further options, <group>/<name>.yaml")
    args = parser.parse_intermixed_args(argv)
    libraries = [word for word in args.words if word in LIBRARIES]
    if args.list and libraries:
        paths = [word.partition("=")[2] for word in args.words if word.startswith("eval.task_paths=")]
        show("\n".join(tasks_text(name, [p for path in paths for p in _listed(path)]) for name in libraries))
        return 0
    if args.list:
        print(list_text(args.config_dir), flush=True)
        show(data_text(args.words))
        return 0
    start_logging()
    show(eval_command(args.words, args.config_dir))
    return 0
