"""Methods of other installed packages, found by their entry points in the group `zppo.methods`.

A package declares `maxrl = "zppo_maxrl:MaxRL"` and ships the presets of its classes as `conf/method/*.yaml` inside its
import package; one of them has the entry point's name. Nothing of a package is imported here.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path

GROUP = "zppo.methods"
OTHER_GROUPS = ("zppo.engines", "zppo.sources", "zppo.benchmarks")
"""What else a package may bring (`harness.config.registry`): its option files are found as well."""


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """One entry point.

    Example: name "maxrl", value "zppo_maxrl:MaxRL", distribution "zppo-maxrl", version "1.0".
    """

    name: str
    value: str
    distribution: str
    version: str
    folders: tuple[Path, ...] = ()
    """The `conf` folders of its import package."""
    problem: str | None = None
    """Why it cannot be used, in one line with the remedy, as far as that shows without importing it."""

    @property
    def source(self) -> str:
        return f"{self.distribution} {self.version}"

    @property
    def module(self) -> str:
        return self.value.partition(":")[0]

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def installed() -> tuple[Plugin, ...]:
    """All plugins, by name and distribution. A name that several packages claim is there once for each."""
    return _installed(tuple(sys.path))


def named(name: str) -> Plugin | None:
    """The plugin of an entry point's name; of several, the first: they have the same problem."""
    return next((plugin for plugin in installed() if plugin.name == name), None)


def option_folders() -> dict[Path, str]:
    """The `conf` folders of all plugins in the order of their distributions, each with its `Plugin.source`."""
    ordered = sorted(installed(), key=lambda plugin: plugin.distribution)
    return {folder: plugin.source for plugin in ordered for folder in plugin.folders} | _of_other_parts(tuple(sys.path))


def distribution_of(module: str) -> dict[str, str]:
    """`{"zppo-maxrl": "1.0"}` for a module of a plugin's package; empty for any other."""
    package = module.partition(".")[0]
    return {plugin.distribution: plugin.version for plugin in installed() if plugin.package == package}


def declared(group: str) -> metadata.EntryPoints:
    """The entry points of a group, of all installed packages."""
    return _entry_points(tuple(sys.path)).select(group=group)


def is_importable(package: str) -> bool:
    """Whether there is such a package or module; the current directory is looked at last.

    The `zppo` script does not see it, and a user's file lies where they launch. Once something is found there it stays
    in `sys.path`, for what that file imports.
    """
    if importlib.util.find_spec(package) is not None:
        return True
    here = os.getcwd()
    sys.path.append(here)
    if importlib.util.find_spec(package) is not None:
        return True
    sys.path.remove(here)
    return False


def where_looked(package: str) -> str:
    """Why a package is not importable, in words."""
    return f"no module {package} is installed, or lies in {os.getcwd()}"


@lru_cache(maxsize=8)
def _entry_points(path: tuple[str, ...]) -> metadata.SelectableGroups:
    """`path` is `sys.path`: what is installed depends on it. A file of each package is read, and each cell asks."""
    return metadata.entry_points()


@lru_cache(maxsize=8)
def _installed(path: tuple[str, ...]) -> tuple[Plugin, ...]:
    """All plugins for this `sys.path`: a study asks thousands of times."""
    claims: dict[str, list[Plugin]] = defaultdict(list)
    for entry in declared(GROUP):
        assert entry.dist is not None
        found = Plugin(
            name=entry.name, value=entry.value, distribution=entry.dist.name, version=entry.dist.version
        )  # fmt: skip
        claims[found.name].append(_looked_up(found))
    plugins = []
    for name in sorted(claims):
        owners = sorted(claims[name], key=lambda plugin: plugin.distribution)
        if len(owners) > 1:
            who = " and by ".join(f"{plugin.source} ({plugin.value})" for plugin in owners)
            problem = f"method '{name}' is claimed by {who}: uninstall all but one of them"
            owners = [replace(plugin, problem=problem) for plugin in owners]
        plugins += owners
    return tuple(plugins)


@lru_cache(maxsize=8)
def _of_other_parts(path: tuple[str, ...]) -> dict[Path, str]:
    """The `conf` folders of packages that bring no method, each with its package and version."""
    found: dict[Path, str] = {}
    entries = [entry for group in OTHER_GROUPS for entry in declared(group)]
    for entry in sorted(entries, key=lambda entry: entry.dist.name if entry.dist else ""):
        try:
            spec = importlib.util.find_spec(entry.value.partition(":")[0].partition(".")[0])
        except (ImportError, ValueError):
            spec = None
        folders = [] if spec is None else [location / "conf" for location in _locations(spec)]
        assert entry.dist is not None
        found |= {folder: f"{entry.dist.name} {entry.dist.version}" for folder in folders if folder.is_dir()}
    return found


def _locations(spec: ModuleSpec) -> list[Path]:
    return [Path(location).resolve() for location in spec.submodule_search_locations or ()]


def _looked_up(plugin: Plugin) -> Plugin:
    """The plugin with its `conf` folders, or with what is wrong with it."""
    module, _, class_name = plugin.value.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), class_name)):
        return replace(
            plugin,
            problem=f"{plugin.source} declares method '{plugin.name}' as '{plugin.value}': "
            "its entry point has to be package.module:Class",
        )
    try:  # of the top-level package: finding a module inside of it would import the package
        spec = importlib.util.find_spec(plugin.package)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return replace(
            plugin,
            problem=f"{plugin.source} declares method '{plugin.name}' in '{module}', but there is no package "
            f"'{plugin.package}': install {plugin.distribution} again, or uninstall it",
        )
    locations = _locations(spec)
    folders = tuple(location / "conf" for location in locations if (location / "conf").is_dir())
    option = f"conf/method/{plugin.name}.yaml"
    missing = not any((location / option).is_file() for location in locations)
    problem = (
        f"{plugin.source} declares method '{plugin.name}' but ships no {plugin.package}/{option}: "
        f"add the file (and to its package data), or uninstall {plugin.distribution}"
    )
    return replace(plugin, folders=folders, problem=problem if missing else None)
