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


_DISK = {
    errno.ENOSPC: "no space left for {path}: free some and launch again",
    errno.EDQUOT: "no space left for {path} (quota): free some and launch again",
    errno.EROFS: "{path} cannot be written any more (read-only file system): mount it for writing and launch again",
}


def disk_error(error: BaseException, path: object) -> UserError | None:
    """What to do where writing below `path` failed for the disk's sake; None for another error. Libraries that write
    files raise errors of their own, with the system's text."""
    for number, text in _DISK.items():
        if (isinstance(error, OSError) and error.errno == number) or os.strerror(number) in str(error):
            return UserError(text.format(path=path))
    return None


UNWRITABLE = (
    errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOSPC, errno.EDQUOT,
)  # fmt: skip


def write_error(error: OSError) -> str | None:
    """What could not be written and why, in half a line; None for an error of another kind."""
    if error.errno not in UNWRITABLE or error.filename is None:
        return None
    return f"{error.filename} cannot be written ({os.strerror(error.errno)})"
