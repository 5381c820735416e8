"""Names of what can be plugged in, besides methods: ours, those of installed packages, and `package.module:name`.

A package declares its own in `pyproject.toml`: `[project.entry-points."zppo.engines"] mine = "my_package.engine:open"`.
Nothing of a package is imported before it is used. Imports no torch.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from harness.errors import UserError, did_you_mean, first_line
from methods.plugins import declared, is_importable, where_looked


@dataclass(frozen=True)
class Registry:
    """What an option may name. Example: `SOURCES.entry("my_data:load")` is itself, `SOURCES.entry("jsonl")` is None."""

    option: str
    """The option that takes a name, for messages."""
    group: str
    """The group of entry points in which packages declare their own."""
    ours: tuple[str, ...] = ()
    """Names of what is ours. Where it is, the module says that loads it."""

    def names(self) -> list[str]:
        """All names: ours in their order, then those of installed packages."""
        return [*self.ours, *sorted({entry.name for entry in declared(self.group)})]

    def entry(self, name: str, others: Iterable[str] = ()) -> str | None:
        """`module:name` of what is declared by a name, or of `package.module:name` itself; None for what is ours.

        `others` are names that the option takes besides, for the suggestion. Raises UserError where there is none, and
        where two claim the name. Nothing is imported.
        """
        claims = sorted(entry.value for entry in declared(self.group) if entry.name == name)
        if name in self.ours:
            claims.insert(0, "zppo-bench")
        if len(claims) > 1:
            raise UserError(
                f"{self.option}={name} is claimed by {' and by '.join(claims)}: uninstall one of the packages, or "
                f"write {self.option}={claims[-1]}"
            )
        if name in self.ours:
            return None
        path = claims[0] if claims else name
        module, colon, attribute = path.partition(":")
        if not colon or not all(part.isidentifier() for part in (*module.split("."), attribute)):
            near = did_you_mean(name, [*self.names(), *others])
            raise UserError(f"{self.option}={name} is not known.{near} One of your own is named package.module:name.")
        return path

    def load(self, name: str, ours: Mapping[str, str] = MappingProxyType({})) -> Any:
        """What is registered by a name; `ours` has `module:name` of what is ours.

        Raises UserError, a line that says why it cannot be had.
        """
        path = self.entry(name) or ours[name]
        module_name, _, attribute = path.partition(":")
        package = module_name.partition(".")[0]
        if not is_importable(package):
            raise UserError(f"{self.option}={name}: {where_looked(package)}")
        try:
            module = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:  # whatever a module of others does while it is imported
            if name in ours:
                raise
            raise UserError(
                f"{self.option}={name}: importing {module_name} fails ({type(error).__name__}: {first_line(error)})"
            ) from error
        if not callable(found := vars(module).get(attribute)):
            own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module_name]
            near = did_you_mean(attribute, own)
            raise UserError(f"{self.option}={name}: {module_name} has nothing to call by the name {attribute}.{near}")
        return found

    def call(self, name: str, *arguments: Any, ours: Mapping[str, str] = MappingProxyType({})) -> Any:
        """What the function of a name gives. What one of others raises is a UserError that says where."""
        function = self.load(name, ours)
        try:
            return function(*arguments)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            if name in ours:
                raise
            raise self.raised(name, error) from error

    def raised(self, name: str, error: BaseException) -> UserError:
        """The line for what a function of others raised."""
        frame = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {first_line(error)}"
        return UserError(f"{self.option}={name} raised {what} ({frame.filename}:{frame.lineno}): fix it there")
