"""Processes of tests that have the libraries loaded: a fork of one server, where a fresh Python takes seconds."""

from __future__ import annotations

import io
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

PRELOAD = [
    "tests.support.gc_off",
    "harness.builders.corpus.build",
    "harness.distributed.build",
    "harness.distributed.follower",
    "harness.evaluation.evaluate",
    "harness.training.models",
    "harness.teacher.process",
    "harness.training.trainer",
    "tests.support.gc_frozen",
]
"""Modules alone: nothing of them has run, so a fork differs from a fresh process by its imports and its age."""
SECONDS = 300


def fork_server() -> ForkServerContext:
    """The context of the one server of this process, which starts with the first process that is asked of it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def run_module(
    module: str, arguments: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ARGUMENTS`, in a fork: its exit code and what it has written.

    `env` takes the place of this process's environment. What a library reads of it when it is imported has no effect.
    Raises AssertionError after `SECONDS`.
    """
    command = [module, *arguments]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        place = str(cwd or Path.cwd())
        variables = dict(os.environ if env is None else env)
        process = fork_server().Process(target=_run_module, args=(command, place, variables, outputs))
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            raise AssertionError(f"{command} is stuck after {SECONDS} s")
        texts = [path.read_text(encoding="utf-8") if path.exists() else "" for path in outputs]
    return subprocess.CompletedProcess(command, process.exitcode, *texts)


def _run_module(command: list[str], cwd: str, env: dict[str, str], outputs: list[Path]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [cwd, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(n, "wb"), line_buffering=True) for n in (1, 2))
    sys.argv = list(command)
    code: object = 0
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else code is not None)
