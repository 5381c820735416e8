"""Names that become folders of a run and rows of its tables. Imports nothing heavy."""

from __future__ import annotations

from harness.errors import UserError

FORBIDDEN = ("|", "$", "/", "\\", "..")
"""What means something else to a table, to LaTeX or to a file system."""
MAX_BYTES = 200
"""A file name has at most 255 bytes, and logs add student and seed to a label."""

EARLIER = {"eval.mini_tasks": "eval.tasks"}
"""Options that an earlier version wrote under another name, which is another option by now."""


def check_name(option: str, name: object) -> None:
    """Raises UserError for a name that a folder, a table or a figure could not show as it is."""
    if not isinstance(name, str):
        raise UserError(f"{option} must be a text, got {name!r}: write {option}=\"'{name}'\"")
    found = next((mark for mark in FORBIDDEN if mark in name), None)
    if found is None and not name.isprintable():
        found = "a control character"
    if found is not None:
        where = ", and name folders with outputs=DIR" if option == "study" and found == "/" else ""
        raise UserError(
            f"{option}={name!r} has {found}, and it names a folder and rows of tables: "
            f"use letters, digits and _ - + = . ,{where}"
        )
    if name.strip(" .") == "":
        raise UserError(f"{option}={name!r} is no name for a folder: use letters, digits and _ - + = . ,")
    if len(name.encode()) > MAX_BYTES:
        raise UserError(f"{option} has {len(name.encode())} bytes, and a folder's name takes {MAX_BYTES}: shorten it")
