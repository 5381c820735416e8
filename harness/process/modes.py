"""Modes of files: what safetensors writes only its owner may read, whatever the umask says. Imports no torch."""

from __future__ import annotations

from pathlib import Path


def follow_umask(*files: Path) -> None:
    """Give files the mode that a file made here in the ordinary way has."""
    for file in files:
        probe = file.with_name(f".{file.name}.mode")
        try:
            probe.touch()
            file.chmod(probe.stat().st_mode & 0o777)
        finally:
            probe.unlink(missing_ok=True)
