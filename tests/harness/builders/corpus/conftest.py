"""The corpus of the made-up sources, built once, and what a build of one's own rows needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from harness.builders.corpus.build import build
from harness.builders.corpus.fixture import (
    TIER1_CAP,
    TIER2_CAP,
    FixtureRow,
    write_fixture,
    write_mmfinereason,
    write_vero,
)
from harness.builders.corpus.options import BuildOptions
from harness.config.compose import compose
from harness.config.schema import RunConfig, from_hydra


@dataclass(frozen=True)
class Built:
    """A corpus: where it is, its card and its rows in order."""

    folder: Path
    card: dict[str, Any]

    def rows(self) -> list[dict[str, Any]]:
        return [row for path in sorted(self.folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]

    def shards(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.glob("*.parquet")}


@pytest.fixture(scope="session")
def config() -> RunConfig:
    return from_hydra(compose(["student=tiny_xs"]))


@pytest.fixture(scope="session")
def fixture_options(tmp_path_factory: pytest.TempPathFactory) -> BuildOptions:
    """Of the made-up sources; `out` is left to the test."""
    places = write_fixture(tmp_path_factory.mktemp("sources"))
    return BuildOptions(
        tier1_cap=TIER1_CAP,
        tier2_cap=TIER2_CAP,
        unknown="skip",
        shard_rows=100,
        **{name: str(path) for name, path in places.items()},
    )


@pytest.fixture(scope="session")
def built(fixture_options: BuildOptions, config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return run_build(fixture_options, config, tmp_path_factory.mktemp("corpus") / "out")


def run_build(options: BuildOptions, config: RunConfig, out: Path, **changes: Any) -> Built:
    chosen = BuildOptions(**{**vars(options), "out": str(out), **changes})
    return Built(out, build(chosen, config, report=lambda line: None))


BuildRows = Callable[..., Built]


@pytest.fixture
def build_rows(tmp_path: Path, config: RunConfig) -> BuildRows:
    """`build_rows(vero, mmfinereason, name="a", **options)`: the corpus of these rows."""

    def make(
        vero: Sequence[FixtureRow], mmfinereason: Sequence[FixtureRow], *, name: str = "out", **options: Any
    ) -> Built:
        sources = tmp_path / f"{name}_sources"
        write_vero(sources / "vero", vero)
        write_mmfinereason(sources / "mmfinereason", mmfinereason, num_files=2)
        places = {"vero": str(sources / "vero"), "mmfinereason": str(sources / "mmfinereason")}
        return run_build(BuildOptions(**places), config, tmp_path / name, **options)

    return make
