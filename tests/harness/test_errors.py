"""Errors of the disk become a line with the remedy, whoever raised them."""

from __future__ import annotations

import errno
import os

import pytest

from harness.errors import disk_error


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "no space left for /runs: free some and launch again"),
        (errno.EDQUOT, "(quota): free some and launch again"),
        (errno.EROFS, "mount it for writing and launch again"),
    ],
)
def test_what_a_full_or_read_only_disk_says(number, remedy):
    assert remedy in str(disk_error(OSError(number, os.strerror(number)), "/runs"))
    assert remedy in str(disk_error(RuntimeError(f"a library: {os.strerror(number)} (os error {number})"), "/runs"))


def test_other_errors_are_left_alone():
    assert disk_error(OSError(errno.ENOENT, "No such file or directory"), "/runs") is None
    assert disk_error(RuntimeError("shapes differ"), "/runs") is None
