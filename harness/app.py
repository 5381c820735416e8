"""The `zppo` command. Overrides are Hydra's: `zppo train method=zppo student=tiny_s steps=5`.

Errors that a user can cause end in one line and exit code 2; `--debug` shows the traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

from harness.commands.options import Parser
from harness.errors import UserError, did_you_mean, first_line, write_error
from harness.process.logs import print_uncaught
from reports.runs.text import message

COMMANDS = {
    "train": ("One run: train, save, evaluate; -m for several.", "train:run_train"),
    "sweep": ("Run a study of sweeps/; finished runs are skipped.", "train:run_sweep"),
    "plan": ("Memory, FLOPs, hours and disk of a study, before it has GPUs.", "machine:run_plan"),
    "eval": ("Score a run or a model on a suite; --list shows the benchmarks.", "evaluate:run_eval"),
    "doctor": ("What this machine can run; with overrides, whether it can run that.", "machine:run_doctor"),
    "status": ("State of the cells of a study.", "machine:run_status"),
    "report": ("Tables and figures of a study.", "reports:run_report"),
    "audit": ("Candidate-match audit, graduation table and outcome of a run's questions.", "reports:run_audit"),
    "view": ("Prompts and responses of a run, with rewards.", "reports:run_view"),
    "methods": ("Presets of methods, and where each comes from.", "methods:run_methods"),
    "new-method": ("Write an installable package with a method of your own.", "new_method:run_new_method"),
    "grade": ("Grade your own answers.", "grade:run_grade"),
    "data": ("Build a training corpus, or hash benchmarks to keep them out of it.", "data:run_data"),
    "tiny": ("Build the tiny family from seeds.", "data:run_tiny"),
}
"""Each with its summary and the function of `harness/commands/` that takes a parser and the words."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Exit codes: 0 fine, 1 a run failed, 2 the user can fix it, 75 launched again it goes on, 130 Ctrl-C, 141 unread.
    """
    if argv is None:  # the process is this command's
        sys.excepthook = print_uncaught
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    if arguments == ["--version"]:
        print(f"zppo-bench {version('zppo-bench')}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 2
    name, *rest = arguments
    try:
        if name not in COMMANDS:
            raise UserError(f"no command '{name}'.{did_you_mean(name, COMMANDS)}")
        summary, place = COMMANDS[name]
        module, _, function = place.partition(":")
        parser = Parser(prog=f"zppo {name}", description=summary)
        code = getattr(import_module(f"harness.commands.{module}"), function)(parser, rest)
        sys.stdout.flush()
        return code
    except (ImportError, AttributeError) as error:  # of a plugin, wherever a command builds or runs its method
        from methods.registry import private_import

        remedy = private_import(error)
        if debug or remedy is None:
            raise
        _say(f"{first_line(error)}: {remedy}")
        return UserError.exit_code
    except UserError as error:
        if debug:
            raise
        from harness.distributed.rank import speaks

        if speaks():
            _say(str(error))
        return error.exit_code
    except BrokenPipeError:  # `zppo view ... | head` has read enough; nothing more is to be written, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if debug or (reason := write_error(error)) is None:
            raise
        remedy = "outputs=DIR" if name in ("train", "sweep", "eval") else "--out DIR"
        _say(f"{reason}: choose a folder that can be written, with {remedy}")
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _say(error: str) -> None:
    """An error for its user. It may quote data, servers and models."""
    print(message(f"error: {error}"), file=sys.stderr, flush=True)


def _usage() -> str:
    rows = "\n".join(f"  {name:<12}{summary}" for name, (summary, _) in COMMANDS.items())
    return f"usage: zppo COMMAND ...   (zppo COMMAND --help)\n\n{rows}"


if __name__ == "__main__":
    sys.exit(main())
