"""What is opened is a file, wherever links lead; what is none does not hold the caller up."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from harness.process.regular import NotAFile, open_regular, read_regular


def test_a_file_is_read_through_links_up_to_its_bound(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert read_regular(tmp_path / "link", 5) == b"12345"
    with pytest.raises(NotAFile, match="has more than"):
        read_regular(tmp_path / "a", 4)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing", 4)


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(tmp_path / "fifo")
        path.symlink_to(tmp_path / "fifo")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    else:
        path.mkdir()
    with pytest.raises(NotAFile, match="is a folder" if kind == "folder" else "is no regular file"):
        open_regular(path, 10)


def test_a_file_that_says_it_is_empty_is_bounded_as_well() -> None:
    """Files of /proc have the size 0, whatever they hold."""
    with pytest.raises(NotAFile, match="has more than"):
        read_regular("/proc/self/status", 8)
