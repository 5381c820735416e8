"""From the composed `method` node of a configuration to a checked method object.

A class is named by a registry key (`grpo`), by a plugin's entry point (`maxrl`), or by `package.module:Class`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import traceback
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, fields
from functools import partial
from typing import Any

from methods import plugins
from methods.contract import Method, MethodConfig, MethodError
from methods.keys import METHODS, class_path
from methods.options import validated
from methods.plugins import Plugin

BUILT_IN = (
    "methods.grpo", "methods.zppo", "methods.hint", "methods.prefix", "methods.teacher_response", "methods.controls",
    "methods.distill", "methods.sft",
)  # fmt: skip

PUBLIC = "methods.base, harness.types and, in tests, harness.testing"
"""What a method of others imports."""


def built_in() -> dict[str, type[Method]]:
    """Every registered class by its key."""
    for module in BUILT_IN:
        importlib.import_module(module)
    return dict(METHODS)


def method_class(name: str) -> type[Method]:
    """The class of a registry key, of a plugin's name, or of `package.module:Class` (or `package.module.Class`).

    Only the plugin that is asked for is imported. Raises MethodError (one line with the remedy) if there is no class.
    """
    known = built_in()
    if name in known:
        return known[name]
    plugin = plugins.named(name)
    if plugin is not None:
        return plugin_class(plugin)
    module_name, _, class_name = name.rpartition(":" if ":" in name else ".")
    if not all(part.isidentifier() for part in (*module_name.split("."), class_name)):
        near = _suggest(name, {*known, *(plugin.name for plugin in plugins.installed())})
        raise MethodError(f"unknown method class '{name}'.{near} A class of your own is named package.module:Class.")
    package = module_name.partition(".")[0]
    if not plugins.is_importable(package):
        raise MethodError(f"method class '{name}': {plugins.where_looked(package)}")
    try:
        return _imported(module_name, class_name)
    except MethodError as error:
        raise MethodError(f"method class '{name}' cannot be used: {error}") from error


def check_claim(plugin: Plugin) -> None:
    """Raises MethodError for a plugin that cannot be used, as far as that shows without importing it."""
    if plugin.problem is not None:
        raise MethodError(plugin.problem)
    owner = built_in().get(plugin.name)
    if owner is not None and class_path(owner) != plugin.value:
        raise MethodError(
            f"{plugin.source} claims the name of the built-in method '{plugin.name}' ({plugin.value}): "
            f"rename its entry point, or uninstall {plugin.distribution}"
        )


def plugin_class(plugin: Plugin) -> type[Method]:
    """The class of a plugin. Raises MethodError (one line that names the package and the remedy) if it has none."""
    check_claim(plugin)
    module_name, _, class_name = plugin.value.partition(":")
    try:
        return _imported(module_name, class_name)
    except MethodError as error:
        raise MethodError(
            f"method '{plugin.name}' of {plugin.source} cannot be used: {error}; fix or uninstall {plugin.distribution}"
        ) from error


def provenance(method: Method | None) -> tuple[str | None, dict[str, str]]:
    """`("zppo_maxrl:MaxRL", {"zppo-maxrl": "1.0"})`: a method's class, and the plugin that it comes from, if any."""
    if method is None:
        return None, {}
    return class_path(type(method)), plugins.distribution_of(type(method).__module__)


def resolved(method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """The `method` node of a run: name, class, `plugin` (`zppo-maxrl 1.0`) where it comes from one, every option."""
    plugin = ", ".join(f"{name} {version}" for name, version in provenance(method)[1].items())
    named = {key: options[key] for key in ("name", "class")} | ({"plugin": plugin} if plugin else {})
    return named | asdict(method.config)


def default_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the class of a `method` node has by default; empty where there is no such class."""
    try:
        cls = method_class(str(options["class"])) if options.get("class") else None
    except MethodError:
        return {}
    every = () if cls is None else fields(cls.Config)
    return {field.name: field.default for field in every if field.default is not MISSING}


def build(options: Mapping[str, Any]) -> Method | None:
    """The method that `{"name": preset, "class": key, **fields}` describes; None for a cell without training.

    Raises MethodError (one line) for an unknown class or option, a wrong type, or a value that the class refuses.
    """
    missing = [key for key in ("name", "class") if key not in options]
    if missing:
        raise MethodError(f"the method has no '{missing[0]}': choose a preset (method=grpo) or set method.{missing[0]}")
    values = {key: value for key, value in options.items() if key not in ("name", "class", "plugin")}
    if options["class"] is None:
        if values:
            raise MethodError(f"method={options['name']} does not train, so it has no option '{next(iter(values))}'")
        return None
    if not isinstance(options["class"], str):
        raise MethodError(f"method.class must be a name, got {options['class']!r}")
    cls = method_class(options["class"])
    if nan := next((key for key, value in values.items() if value != value), None):
        raise MethodError(f"method.{nan} must be a number, got nan")
    try:
        return cls(validated(cls.Config, values, partial(_unknown, cls), prefix="method."))
    except MethodError:
        raise
    except ValueError as error:
        raise MethodError(" ".join(str(error).split())) from error


def _imported(module_name: str, class_name: str) -> type[Method]:
    """The class. Raises MethodError that says what is wrong with it, without a remedy."""
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever a module does while it is imported
        reason = " ".join(str(error).split())
        remedy = f": {private_import(error)}" if private_import(error) else ""
        raise MethodError(f"importing {module_name} fails ({type(error).__name__}: {reason}){remedy}") from error
    cls = vars(module).get(class_name)
    if cls is None:
        near = difflib.get_close_matches(class_name, list(vars(module)), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise MethodError(f"{module_name} has no class {class_name}{hint}")
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise MethodError(f"{module_name}:{class_name} is not derived from methods.base.Method")
    if not (isinstance(cls.Config, type) and issubclass(cls.Config, MethodConfig)):
        raise MethodError(f"{class_path(cls)}.Config is not derived from methods.base.MethodConfig")
    if inspect.isabstract(cls):
        raise MethodError(f"{class_path(cls)} does not define {' and '.join(sorted(cls.__abstractmethods__))}")
    return cls


def private_import(error: BaseException) -> str | None:
    """What to import instead, where code of others imports a private module or name of ours that is gone.

    An error that was raised from such an import counts too. None for any other error, and for our own imports.
    """
    seen: BaseException | None = error
    while seen is not None:
        if _is_of_others(seen) and _sought(seen).partition(".")[0] in ("harness", "methods", "reports"):
            return f"import from {PUBLIC}: every other module is private and may move"
        seen = seen.__cause__ or seen.__context__
    return None


def _sought(error: BaseException) -> str:
    """The module that an import or an attribute was looked for in; empty for a public one, whose names stay."""
    name = (error.name or "") if isinstance(error, ImportError) else ""
    if isinstance(error, AttributeError) and isinstance(error.obj, types.ModuleType):
        name = error.obj.__name__
    return "" if name in PUBLIC.replace(",", "").split() else name


def _is_of_others(error: BaseException) -> bool:
    """Whether the line that raised the error stands in no module of this project."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames]
    names = [name for name in names if name != "importlib"]  # frames of `import_module`
    return bool(names) and names[-1] not in ("harness", "methods", "reports")


def _unknown(cls: type[Method], key: str) -> str:
    known = sorted(field.name for field in fields(cls.Config))
    near = difflib.get_close_matches(key.removeprefix("method."), known, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"{cls.__name__} has no option '{key}'.{hint} Options: {', '.join(known)}."


def _suggest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3)
    return f" Did you mean {' or '.join(near)}?" if near else f" Known: {', '.join(sorted(known))}."
