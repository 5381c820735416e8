"""Which options are read from a run folder that somebody else may have written: those whose fields are marked.

A marked option is a number, a switch, one of a few words or a list of names. What names code, a path, an address or an
environment variable is never marked: it comes from the command line. Imports nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, field, fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_type_hints

from harness.errors import UserError

FOREIGN = {"foreign": True}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_LONGEST_LIST = 1000
_LARGEST = 2**53


def foreign(default: Any) -> Any:
    """A field of an options dataclass that is marked. One with a default factory has `metadata=FOREIGN`."""
    return field(default=default, metadata=FOREIGN)


def option_fields(group: type, prefix: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Key, type and mark of every option below a dataclass."""
    hints = get_type_hints(group)
    for option in fields(group):
        hint, key = hints[option.name], prefix + option.name
        inner = next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None)
        if isinstance(inner, type):
            yield from option_fields(inner, f"{key}.")
        else:
            yield key, hint, option.metadata.get("foreign", False)


def foreign_values(stored: Any, group: type, choices: Mapping[str, Sequence[Any] | None]) -> dict[str, Any]:
    """The values of marked options that a stored configuration has, by key.

    `choices` are the words that each option of text has, None for a name that whoever knows the names looks up. Raises
    UserError for a value that the option cannot have.
    """
    found = {}
    for key, hint, marked in option_fields(group):
        if marked and (value := stored_value(stored, key)) is not MISSING:
            if not _fits(value, hint, choices.get(key, ())):
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


def _fits(value: Any, hint: Any, choices: Sequence[Any] | None) -> bool:
    kinds = get_args(hint) if type(None) in get_args(hint) else (hint,)
    if value is None:
        return NoneType in kinds
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, int | float):
        return _is_sound(value) and (float in kinds or (int in kinds and isinstance(value, int)))
    if isinstance(value, str):
        return str in kinds and (_NAME.fullmatch(value) is not None if choices is None else value in choices)
    if isinstance(value, list):
        items = [kind for kind in kinds for kind in get_args(kind)]
        return len(value) <= _LONGEST_LIST and all(_is_item(item, items) for item in value)
    return False


def _is_item(item: Any, kinds: Sequence[Any]) -> bool:
    """Of a list: an integer, or a name, which whoever knows the names looks up."""
    if isinstance(item, str):
        return str in kinds and _NAME.fullmatch(item) is not None
    return isinstance(item, int) and not isinstance(item, bool) and int in kinds and _is_sound(item)


def _is_sound(number: float) -> bool:
    """Not of what is no number either: that compares with nothing."""
    return abs(number) <= _LARGEST
