"""From plain values, as YAML and a command line give them, to a dataclass of options whose fields carry their limits.

`Literal["a", "b"]`, `Annotated[int, Field(gt=0)]` and the like are pydantic's, which checks them. It reads the values
as strict JSON: 1 is a float, 8.0 is no int, true is no number, and a list is a tuple. Imports no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from inspect import get_annotations
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import Field, PydanticUserError, TypeAdapter, ValidationError

T = TypeVar("T")
Share = Annotated[float, Field(ge=0, le=1)]
WORDS = {
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping such as {key: value}",
    "dataclass_type": "a mapping such as {key: value}",
}
"""What a value of the wrong type should have been, by pydantic's name of the error."""
SHORTER = {"greater than or equal to": "at least", "less than or equal to": "at most", " after validation": ""}
hints_of: Callable[[type], dict[str, Any]] = cache(get_type_hints)


def validated(kind: type[T], values: Mapping[str, Any], unknown: Callable[[str], str], prefix: str = "") -> T:
    """The dataclass `kind` with these values, which may be nested, and its defaults.

    `unknown` says what to write of a key that there is not; `prefix`, such as `method.`, stands before keys. Raises
    ValueError, one line with the key, what is allowed and what was given, or what a `__post_init__` raises.
    """
    text = json.dumps(values, ensure_ascii=False, default=lambda value: {type(value).__name__: repr(value)})
    if lone := re.search(r'("\w+": )?"[^"]*[\ud800-\udfff][^"]*"', text):
        shown = lone[0].encode("ascii", "backslashreplace").decode()
        raise ValueError(f"{shown} has bytes that are no text in UTF-8: rename what it names")
    adapter: TypeAdapter[T] = _adapter(kind)  # type: ignore[arg-type]
    try:
        return adapter.validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        found = error.errors(include_url=False)
    if not found[0]["loc"]:
        raise ValueError(str(found[0]["ctx"]["error"]))
    key, line = _explained(kind, values, found, prefix)
    raise ValueError(unknown(key) if found[0]["type"] == "unexpected_keyword_argument" else line)


def check_limits(options: Any, prefix: str) -> None:
    """Raises ValueError, one line, for a value that a field of the dataclass or of one of its bases does not allow.

    A class that gives an inherited field another default declares it anew, and may leave out its limits.
    """
    for kind in type(options).__mro__:
        for name, adapter in _own_fields(kind).items():
            value = getattr(options, name)
            try:
                adapter.validate_python(value, strict=True)
            except ValidationError as error:
                found = [problem | {"loc": (name, *problem["loc"])} for problem in error.errors(include_url=False)]
                raise ValueError(_explained(kind, {name: value}, found, prefix)[1]) from error


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    try:
        hints_of(kind)
        return TypeAdapter(kind)
    except (NameError, TypeError, PydanticUserError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{kind.__module__}:{kind.__qualname__} has options of a type of its own: {reason}") from error


@cache
def _own_fields(kind: type) -> dict[str, TypeAdapter[Any]]:
    """What a class itself declares."""
    names = {field.name for field in fields(kind)} if is_dataclass(kind) else set()
    own = [name for name in get_annotations(kind) if name in names]
    return {name: TypeAdapter(get_type_hints(kind, include_extras=True)[name]) for name in own}


def option_type(kind: type, key: str) -> Any:
    """Type of the option at a dotted key, without its limits; Any below a free mapping. None where there is no such."""
    hint: Any = kind
    for part in key.split("."):
        if get_origin(hint) is dict:
            return Any
        group = section(hint)
        hint = None if group is None else hints_of(group).get(part)
    return hint


def section(hint: Any) -> type | None:
    """The dataclass that a field holds, `| None` or not."""
    return next((kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and is_dataclass(kind)), None)


def _explained(kind: type, values: Any, found: Sequence[Any], prefix: str) -> tuple[str, str]:
    """The key that pydantic finds first, and the line about its value."""
    path = _existing(values, found[0]["loc"])
    dotted = ".".join(map(str, path))
    key = prefix + re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", dotted)
    wanted = dict.fromkeys(_wanted(problem) for problem in found if _existing(values, problem["loc"]) == path)
    null = ", or null" if NoneType in get_args(option_type(kind, dotted)) else ""
    value = found[0]["input"]
    shown = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    is_bare = found[0]["type"] == "string_type" and isinstance(value, bool | int | float)
    quoted = f": write {key}=\"'{shown}'\"" if is_bare else ""
    return key, f"{key}{' or'.join(wanted).replace(' or must be', ' or')}{null}, got {shown}{quoted}"


def _existing(values: Any, place: Sequence[str | int]) -> tuple[str | int, ...]:
    """The part of a place that the values have: pydantic adds which member of a union did not fit."""
    found: list[str | int] = []
    for part in place:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            break
        found.append(part)
    return tuple(found)


def _wanted(problem: Any) -> str:
    if "error" in problem.get("ctx", {}):
        return f": {problem['ctx']['error']}"
    message = problem["msg"]
    for theirs, ours in SHORTER.items():
        message = message.replace(theirs, ours)
    if message.startswith(start := "Input should be "):
        return f" must be {WORDS.get(problem['type'], message.removeprefix(start))}"
    return f": {message[0].lower()}{message[1:]}"
