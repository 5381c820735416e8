"""The page of all options, docs/configuration.md, read off the dataclasses: `python docs/options/page.py`.

A meaning is the docstring below a field and stands nowhere else. Imports no torch.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import pairwise
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import MISSING

from harness.config.schema import RunConfig
from methods import registry
from methods.base import Method, MethodConfig
from methods.options import section as section_of

HEAD = (
    "This page is made by `python docs/options/page.py > docs/configuration.md` from the dataclasses in "
    "`harness/config/` and `methods/`. It is not edited by hand: a meaning is the docstring below a field there.",
    "An option is set as `key=value` on the command line of `zppo train`. A default is shown as it is typed. "
    "`required` means that an option file or the user sets it. Defaults are the published setting where there is one, "
    "unless a meaning names another. What is called published, tables, equations and algorithms are those of "
    "[arXiv 2606.18216](https://arxiv.org/abs/2606.18216). `zppo train OVERRIDES --print-config` shows what a run "
    "would use.",
)
GROUPS = (
    "`GROUP=NAME` reads a file of `conf/`, which holds only what differs from the defaults of the sections below. A "
    "folder given with `--config-dir` adds files, and so do plugins. The last column is what `zppo train` reads unless "
    "another file is chosen. A student's file may choose the recipe and the teacher."
)
METHODS = (
    "`method=PRESET` chooses a class, and sets what stands in brackets. `zppo methods` says what each preset is for. A "
    "class has the options of every section in its row. Where two of them have the same key, the later one counts. "
    "`method.name` is the name of the preset, `method.class` that of the class."
)
ROLES = ("student", "teacher")
"""Fields of `RunConfig` with the same options: one section is for both."""


@dataclass(frozen=True)
class Option:
    """A row of the page. `keys` are as typed; the student and the teacher share a row."""

    keys: tuple[str, ...]
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """A group of options: its title, what it is for, and its rows."""

    title: str
    text: str
    options: tuple[Option, ...]


def page() -> str:
    """docs/configuration.md."""
    settings = run_sections()
    titles = ("Option files", *(section.title for section in settings), "Methods")
    parts = [
        "# Configuration",
        *map(_wrapped, HEAD),
        _wrapped(f"Sections: {_links(titles)}."),
        "## Option files",
        _wrapped(GROUPS),
        _table(("group", "names", "default"), option_files()),
        *(part for section in settings for part in _shown(section, "##")),
        "## Methods",
        _wrapped(METHODS),
        _table(("class", "presets", "options"), method_classes()),
        *(part for section in method_sections() for part in _shown(section, "###")),
    ]
    return "\n\n".join(parts) + "\n"


def run_sections() -> list[Section]:
    """The options of `RunConfig`, a section a group; the first has those that are in no group."""
    sections = list(_walk(RunConfig, "", ""))
    return [Section("The run", sections[0].text, sections[0].options), *sections[1:]]


def _walk(group: type, prefix: str, note: str) -> Iterator[Section]:
    """`note` is the docstring below the field that holds the group."""
    hints = get_type_hints(group, include_extras=True)
    groups = {field.name: kind for field in fields(group) if (kind := section_of(hints[field.name]))}
    prefixes = [f"{role}." for role in ROLES] if prefix == f"{ROLES[0]}." else [prefix]
    rows = []
    for field in fields(group):
        if field.name not in groups:
            keys = tuple(start + field.name for start in prefixes)
            rows.append(Option(keys, type_of(hints[field.name]), default_of(field), meaning(group, field.name)))
    title = ", ".join(start.removesuffix(".") for start in prefixes)
    yield Section(title, " ".join(filter(None, (purpose(group), note))), tuple(rows))
    for name, kind in groups.items():
        if name != ROLES[1]:
            notes = [meaning(group, role) for role in (ROLES if name == ROLES[0] else (name,))]
            yield from _walk(kind, f"{prefix}{name}.", " ".join(notes).strip())


def method_sections() -> list[Section]:
    """The options of the built-in methods, a section a dataclass that declares some."""
    sections = []
    for config in _method_configs():
        hints = get_type_hints(config, include_extras=True)
        rows = []
        for field in (field for field in fields(config) if field.name in inspect.get_annotations(config)):
            key = f"method.{field.name}"
            default = "; ".join([default_of(field), *_later_defaults(config, field.name)])
            rows.append(Option((key,), type_of(hints[field.name]), default, meaning(config, field.name)))
        sections.append(Section(config.__name__, purpose(config), tuple(rows)))
    return sections


def _built_in() -> dict[str, type[Method]]:
    """Our classes by key, whatever else this process has registered."""
    return {key: cls for key, cls in registry.built_in().items() if cls.__module__ in registry.BUILT_IN}


def _method_configs() -> list[type[MethodConfig]]:
    """Every dataclass that declares options of a built-in method, bases first."""
    found: dict[type[MethodConfig], None] = {}
    for cls in _built_in().values():
        found |= dict.fromkeys(_declaring(cls.Config))
    return list(found)


def _declaring(config: type[MethodConfig]) -> list[type[MethodConfig]]:
    """The dataclasses whose options a class of options has, bases first, without those that only check."""
    bases = [base for base in reversed(config.__mro__) if issubclass(base, MethodConfig)]
    return [base for base in bases if inspect.get_annotations(base)]


def _later_defaults(config: type, name: str) -> list[str]:
    """`TeacherAidedConfig: true` for each class that gives an inherited option another default."""
    heirs = [heir for heir in _method_configs() if issubclass(heir, config) and heir is not config]
    declared = [(heir, f) for heir in heirs if name in inspect.get_annotations(heir) for f in fields(heir)]
    return [f"{heir.__name__}: {default_of(f)}" for heir, f in declared if f.name == name]


def method_classes() -> list[tuple[str, str, str]]:
    """A row a class: its name, its presets with what they set, and the sections with its options."""
    presets: dict[str | None, list[str]] = {}
    for name, file in _files_of(files("conf").joinpath("method")).items():
        options = dict(yaml.safe_load(file.read_text(encoding="utf-8")))
        key = options.pop("class")
        sets = [f"method.{option}={typed(value)}" for option, value in options.items() if option != "name"]
        presets.setdefault(key, []).append(_code(name) + (f" ({_codes(sets)})" if sets else ""))
    rows = []
    for key in sorted(presets, key=str):
        titles = [] if key is None else [base.__name__ for base in _declaring(_built_in()[key].Config)]
        rows.append((_code(typed(key)), ", ".join(presets[key]), _links(titles) or "none: it does not train"))
    return rows


def option_files() -> list[tuple[str, str, str]]:
    """A row a group of `conf/`: its name, the names of its files, and the one that `zppo train` starts with."""
    defaults: dict[str, str] = {}
    for entry in yaml.safe_load(files("conf").joinpath("train.yaml").read_text(encoding="utf-8"))["defaults"]:
        defaults |= entry if isinstance(entry, dict) else {}
    found = _groups(files("conf"), "")
    return [(_code(f"{group}="), _codes(names), _code(defaults.get(group, ""))) for group, names in found]


def _groups(folder: Traversable, prefix: str) -> Iterator[tuple[str, list[str]]]:
    for child in sorted(folder.iterdir(), key=lambda child: child.name):
        if child.is_dir():
            if names := list(_files_of(child)):
                yield prefix + child.name, names
            yield from _groups(child, f"{prefix}{child.name}/")


def _files_of(folder: Traversable) -> dict[str, Traversable]:
    """The option files of a folder by name. Ours alone: what else is installed does not change the page."""
    found = {file.name: file for file in folder.iterdir() if file.name.endswith(".yaml")}
    return {name.removesuffix(".yaml"): found[name] for name in sorted(found)}


LIMITS = {"gt": "above", "ge": "from", "lt": "below", "le": "up to"}


def type_of(hint: Any) -> str:
    """A type as a user sees it: `int above 0`, `float from 0 up to 1`, `list of str`, or the values that there are."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        limits = [limit for marker in inner[1:] for limit in getattr(marker, "metadata", [marker])]
        signed = [(word, getattr(limit, sign, None)) for limit in limits for sign, word in LIMITS.items()]
        return type_of(inner[0]) + "".join(f" {word} {value}" for word, value in signed if value is not None)
    if kind is Literal:
        return _codes([typed(value) for value in inner])
    if kind in (Union, types.UnionType):
        return " or ".join([*(type_of(arg) for arg in inner if arg is not type(None)), "null"])
    if kind is list:
        return f"list of {type_of(inner[0])}"
    return str((kind or hint).__name__)


def default_of(field: Field[Any]) -> str:
    """The default as it is typed, or `required`."""
    value = field.default if field.default_factory is NO_DEFAULT else field.default_factory()
    return "required" if value in (MISSING, NO_DEFAULT) else _code(typed(value))


def typed(value: Any) -> str:
    """A value as it is typed after `key=`: `null`, `true`, `[a,b]`, `{a:1}`; a text is quoted where it has to be."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{typed(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(typed(item) for item in value) + "]"
    text = str(value)
    return text if text and not set(text) & set("{}[],'\"\\ ") else f"'{text}'"


def meaning(group: type, name: str) -> str:
    """The docstring below a field, of the nearest class that has one; empty where there is none."""
    for cls in group.__mro__:
        if is_dataclass(cls) and (text := _docstrings(cls).get(name)):
            return text
    return ""


def purpose(group: type) -> str:
    """The docstring of a dataclass, empty where there is none; `__doc__` would be its signature then."""
    return " ".join((ast.get_docstring(_definition(group)) or "").split())


@cache
def _docstrings(group: type) -> dict[str, str]:
    found = {}
    for node, following in pairwise(_definition(group).body):
        match node, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


@cache
def _definition(group: type) -> ast.ClassDef:
    tree = _parsed(group.__module__)
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == group.__name__)


@cache
def _parsed(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(sys.modules[module]))


def _shown(section: Section, level: str) -> list[str]:
    rows = [(_codes(option.keys), option.type, option.default, option.meaning) for option in section.options]
    table = [_table(("key", "type", "default", "meaning"), rows)] if rows else []
    return [f"{level} {section.title}", _wrapped(section.text), *table]


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _codes(texts: Sequence[str]) -> str:
    return ", ".join(map(_code, texts))


def _links(titles: Sequence[str]) -> str:
    return ", ".join(f"[{title}](#{_anchor(title)})" for title in titles)


def _anchor(title: str) -> str:
    """What a heading is called in a link, as GitHub forms it."""
    return "".join(c for c in title.lower() if c.isalnum() or c in " -_").replace(" ", "-")


if __name__ == "__main__":
    sys.stdout.write(page())
