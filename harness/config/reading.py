"""Hydra's composing of option groups, with each option file read once a process and no `hydra` node.

A sweep composes a choice of groups for each cell. `hydra.compose` reads every file for it again, with thirty of its
own. This is Hydra's algorithm, `create_defaults_list` and what follows it, on files that are kept. Imports no torch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError


class _Files(ConfigRepository):
    """Option files as they were when they were first asked for. Each caller has a copy, since it writes to them."""

    def __init__(self, path: ConfigSearchPath) -> None:
        super().__init__(path)
        self._read: dict[str, ConfigResult | None] = {}

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path not in self._read:
            self._read[config_path] = super().load_config(config_path)
        return copy.deepcopy(self._read[config_path])

    def __deepcopy__(self, memo: dict[int, Any]) -> _Files:
        return self


def read_composed(
    config_name: str, choices: Sequence[str], searchpath: tuple[str, ...]
) -> tuple[DictConfig, dict[str, str | None]] | None:
    """What `hydra.compose` gives for choices such as `method=zppo`, without its `hydra` node, and all choices made.

    `searchpath` has `pkg://` and `file://` addresses; of one name the first counts. None for what Hydra has to do
    itself: an override that is no choice of a group, a choice of Hydra's own, and whatever it refuses.
    """
    loader, files = _loader(searchpath)
    repo = CachingConfigRepository(files)
    try:
        parsed = OverridesParser.create().parse_overrides(list(choices))
        if any(override.is_sweep_override() or override.is_hydra_override() for override in parsed):
            return None
        found = create_defaults_list(repo, config_name, parsed, prepend_hydra=False, skip_missing=False)
        if found.config_overrides:
            return None
        cfg = loader._compose_config_from_defaults_list(defaults=found.defaults, repo=repo)
    except (HydraException, OmegaConfBaseException, YAMLError):
        return None
    if "hydra" in cfg:
        return None
    OmegaConf.set_struct(cfg, True)
    return cfg, dict(found.overrides.known_choices)


@lru_cache(maxsize=8)
def _loader(searchpath: tuple[str, ...]) -> tuple[ConfigLoaderImpl, _Files]:
    Plugins.instance()  # it registers the readers of `pkg://` and `file://`
    path = ConfigSearchPathImpl()
    for address in searchpath:
        path.append("main", address)
    path.append("schema", "structured://")
    return ConfigLoaderImpl(path), _Files(path)
