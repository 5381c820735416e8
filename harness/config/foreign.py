"""Which options are read from a run folder that somebody else may have written: those whose fields are marked.

A marked option is a number, a switch, one of a few words or a list of names. What names code, a path, an address or an
environment variable is never marked: it comes from the command line. Imports nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, field, fields
from typing import Any

from harness.config.names import EARLIER
from harness.errors import UserError
from methods.options import hints_of, section, validated

FOREIGN = {"foreign": True}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_LONGEST_LIST = 1000
_LARGEST = 2**53


def foreign(default: Any) -> Any:
    """A field of an options dataclass that is marked. One with a default factory has `metadata=FOREIGN`."""
    return field(default=default, metadata=FOREIGN)


def option_fields(group: type, prefix: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Key, type and mark of every option below a dataclass."""
    for option in fields(group):
        hint, key = hints_of(group)[option.name], prefix + option.name
        if (inner := section(hint)) is not None:
            yield from option_fields(inner, f"{key}.")
        else:
            yield key, hint, option.metadata.get("foreign", False)


def foreign_values(stored: Any, group: type) -> dict[str, Any]:
    """The values of marked options that a stored configuration has, by key.

    Raises UserError for a value that the option cannot have.
    """
    found = {}
    for key, _, marked in option_fields(group):
        value = stored_value(stored, key)
        if value is MISSING and key in EARLIER:
            value = stored_value(stored, EARLIER[key])
        if marked and value is not MISSING:
            if not _is_small(value) or not _fits(group, key, value):
                raise UserError(f"{key} has no value that it can have: give one as {key}=VALUE")
            found[key] = value
    return found


def stored_value(stored: Any, key: str) -> Any:
    """The value at a dotted key of nested records, MISSING where there is none."""
    for part in key.split("."):
        if not isinstance(stored, Mapping) or part not in stored:
            return MISSING
        stored = stored[part]
    return stored


def _fits(group: type, key: str, value: Any) -> bool:
    for name in reversed(key.split(".")):
        value = {name: value}
    try:
        validated(group, value, str)
    except ValueError:
        return False
    return True


def _is_small(value: Any) -> bool:
    """Whether it is a value of a marked option as a run writes one. A text is a name, of a choice or of what is
    installed: `package.module:function` is code."""
    if isinstance(value, list):
        return len(value) <= _LONGEST_LIST and all(_is_item(item) for item in value)
    return value is None or isinstance(value, bool) or _is_item(value)


def _is_item(item: Any) -> bool:
    return _NAME.fullmatch(item) is not None if isinstance(item, str) else _is_sound(item)


def _is_sound(number: Any) -> bool:
    """Not of what is no number either: that compares with nothing."""
    return isinstance(number, int | float) and abs(number) <= _LARGEST
