"""Names of the tasks, groups and tags of lm-eval and lmms-eval, read off their files. Imports neither library.

The libraries parse every file, which takes half a minute. Here only five keys at the top of each are read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import yaml

from harness.errors import UserError, did_you_mean

Kind = Literal["task", "python_task", "group", "tag"]
_KEY = re.compile(r"""^(["']?)(task|group|tag|class|include)\1[ \t]*:(?:[ \t]+(.*?))?[ \t\r]*$""", re.MULTILINE)
_PLAIN = re.compile(r"""(["']?)([\w./:+-][\w./:+ -]*?)\1(?:[ \t]+#.*)?""")
_IGNORED = {"__pycache__", ".ipynb_checkpoints"}


@dataclass
class Entry:
    """What a name stands for. A tag has no file, but the tasks that carry it."""

    kind: Kind
    file: Path | None
    tasks: list[str] = field(default_factory=list)


def task_index(library: str, paths: Sequence[str] = ()) -> dict[str, Entry]:
    """All names of a library, those in the folders `paths` before its own. Raises UserError for a path without tasks.

    Example: `task_index("lm_eval")["gsm8k"].kind` is `task`.
    """
    found = {name: entry for path in reversed(paths) for name, entry in own_index(library, path).items()}
    return {**_library_index(library), **found}


def own_index(library: str, path: str) -> dict[str, Entry]:
    """The names in a folder of `eval.task_paths`."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"eval.task_paths={path} is no folder")
    return _scan(folder.resolve(), library)


def find_tasks(library: str, names: Sequence[str], paths: Sequence[str] = ()) -> dict[str, Entry]:
    """An index that has `names`: of the folders alone where they suffice. Raises UserError for a name that is nowhere.

    What a name leads to, the members of a group, may still be elsewhere.
    """
    index = {name: entry for path in reversed(paths) for name, entry in own_index(library, path).items()}
    if not set(names) <= index.keys():
        index = task_index(library, paths)
    for name in names:
        if name not in index:
            near = did_you_mean(name, index)
            raise UserError(
                f"eval.tasks={library}:{name}: {library} has no such task.{near} zppo eval --list {library} has all."
            )
    return index


@cache
def _library_index(library: str) -> dict[str, Entry]:
    spec = find_spec(library)
    assert spec is not None and spec.submodule_search_locations, f"{library} is not installed"
    return _scan(Path(spec.submodule_search_locations[0]) / "tasks", library)


def _scan(root: Path, library: str) -> dict[str, Entry]:
    index: dict[str, Entry] = {}
    for file in _files(root, ordered=library == "lm_eval"):
        try:
            keys = _keys(str(file))
        except (OSError, ValueError, yaml.YAMLError, RecursionError):  # the libraries pass over such a file, too
            continue
        kind, name = _kind(keys, library)
        if kind is None or not isinstance(name, str) or (library == "lm_eval" and name in index):
            continue
        index[name] = Entry(kind, file)
        tags = [keys.get("tag"), keys.get("group") if library == "lmms_eval" else None] if kind != "group" else []
        for tag in (tag for listed in tags for tag in ([listed] if isinstance(listed, str) else listed or [])):
            entry = index.setdefault(str(tag), Entry("tag", None))
            if entry.kind == "tag" and name not in entry.tasks:
                entry.tasks.append(name)
    return index


def _kind(keys: dict[str, Any], library: str) -> tuple[Kind | None, Any]:
    """What a file declares and its name, as the library tells it."""
    is_group = "group" in keys if library == "lm_eval" else isinstance(keys.get("task"), list)
    if "class" in keys:
        return "python_task", keys.get("task")
    if is_group:
        return "group", keys.get("group")
    return ("task", keys["task"]) if "task" in keys else (None, None)


def _files(root: Path, *, ordered: bool) -> Iterator[Path]:
    """In the library's order: of several files that declare one name, lm-eval takes the first, lmms-eval the last."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _IGNORED]
        found += [f"{folder}/{name}" for name in names if name.endswith(".yaml")]
    yield from map(Path, sorted(found) if ordered else found)


def _keys(file: str, depth: int = 0) -> dict[str, Any]:
    """The five keys of a file, with those of the files that it includes."""
    if depth > 20:
        raise ValueError(f"{file} includes itself")
    text = Path(file).read_text(encoding="utf-8-sig")
    keys: dict[str, Any] = {}
    for _, name, value in _KEY.findall(text):
        plain = _PLAIN.fullmatch(value)
        if plain is None and name != "class":
            keys = {key: value for key, value in (yaml.load(text, _Loader) or {}).items() if key in _NAMES}
            break
        keys[name] = value if plain is None else plain[2]
    includes = keys.pop("include", None) or []
    merged: dict[str, Any] = {}
    for include in [includes] if isinstance(includes, str) else includes:
        path = include if os.path.isfile(include) else os.path.join(os.path.dirname(file), include)
        merged |= _included(os.path.normpath(path), depth + 1)
    return merged | keys


@cache
def _included(file: str, depth: int) -> dict[str, Any]:
    return _keys(file, depth)


_NAMES = ("task", "group", "tag", "class", "include")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads `!function utils.name` as its text."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def with_members(name: str, index: dict[str, Entry], library: str, paths: Sequence[str] = ()) -> dict[str, Entry]:
    """`index`, or the complete one where a member of the group `name` is not in it."""
    missing = any(found is None for _, found in _members(name, index, library))
    return task_index(library, paths) if missing else index


def runs_code(name: str, index: dict[str, Entry], library: str, paths: Sequence[str] = ()) -> str | None:
    """The task of this name, or below it, that runs what a student writes; None where there is none."""
    index = with_members(name, index, library, paths)
    for member, entry in _members(name, index, library):
        if entry is not None and entry.file is not None and _config(entry.file, library).get("unsafe_code"):
            return member
    return None


def _members(name: str, index: dict[str, Entry], library: str) -> Iterator[tuple[str, Entry | None]]:
    """A name and all that it leads to. None for a name that the index lacks: a task that the group itself describes, or
    one that lies elsewhere."""
    waiting, met = [name], {name}
    while waiting:
        one = waiting.pop()
        entry = index.get(one)
        yield one, entry
        if entry is None or entry.kind in ("task", "python_task"):
            continue
        listed = entry.tasks if entry.file is None else _config(entry.file, library).get("task") or []
        children = set(_named(listed)) - met
        met |= children
        waiting += sorted(children)


def _named(item: Any) -> Iterator[str]:
    """The names in the `task` of a group: texts, records with a `task` or a `group`, or lists of them."""
    if isinstance(item, str):
        yield item
    elif isinstance(item, dict):
        yield from _named(item.get("task", item.get("group")))
    elif isinstance(item, list):
        for one in item:
            yield from _named(one)


@cache
def _config(file: Path, library: str) -> dict[str, Any]:
    """The configuration of a task or group with what it includes; functions are their names."""
    config = yaml.load(file.read_text(encoding="utf-8-sig"), _Loader) or {}
    includes = config.pop("include", None) or []
    merged: dict[str, Any] = {}
    listed = [includes] if isinstance(includes, str) else includes
    for include in listed if library == "lm_eval" else reversed(listed):
        path = Path(include) if Path(include).is_file() else file.parent / include
        merged |= _config(path, library)
    return merged | config
