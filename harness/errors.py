"""Errors that a user can cause: one line that says what is wrong and what to do, exit code 2.

75 (EX_TEMPFAIL) is for what the same command, launched again, may do: a launcher can requeue on it.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable


class UserError(Exception):
    """Raised with a one-line message; the command prints it without a traceback and exits with `exit_code`."""

    exit_code = 2


class RunInterrupted(UserError):
    """Something outside went away and did not come back. The run ends as `interrupted`: launched again it goes on."""

    exit_code = os.EX_TEMPFAIL


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'zppo' or 'grpo'?"`, or the sorted list when nothing is near."""
    known = sorted(set(known))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return " Did you mean " + " or ".join(repr(n) for n in near) + "?"
    return f" Known: {', '.join(known)}." if known else ""


def first_line(error: BaseException) -> str:
    """An error in half a line: the first that says something, else the name of its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def is_disk_full(error: BaseException) -> bool:
    """Whether writing failed for want of space; libraries that write files raise errors of their own for it."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return (isinstance(error, OSError) and error.errno in full) or "No space left on device" in str(error)
