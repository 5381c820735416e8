"""A build that is killed with SIGKILL, wherever it is, goes on and ends in the same bytes; and its memory is flat."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.builders.corpus.build import build
from harness.builders.corpus.fixture import encoded, plain_row, write_mmfinereason, write_vero
from harness.builders.corpus.index import Index
from harness.builders.corpus.options import BuildOptions
from harness.config.schema import RunConfig
from harness.data.files import UNFINISHED, load_parquet
from harness.errors import UserError
from tests.harness.builders.corpus.conftest import Built, run_build
from tests.support.fork_server import run_module

# Builds, and kills itself when it comes by a function for the n-th time.
CHILD = """
import importlib, json, os, signal, sys
from harness.config.compose import compose
from harness.config.schema import from_hydra
from harness.builders.corpus import build, options

def arm(module, owner, name, number):
    place = getattr(importlib.import_module(module), owner) if owner else importlib.import_module(module)
    original, calls = getattr(place, name), []
    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)
    setattr(place, name, counted)

job = json.loads(sys.argv[1])
config = from_hydra(compose(["student=tiny_xs"]))
arm(*job["point"])
build.build(options.BuildOptions(**job["options"]), config, report=lambda line: None)
"""
INDEX, SHARDS, BUILD = (
    "harness.builders.corpus.index",
    "harness.builders.corpus.shards",
    "harness.builders.corpus.build",
)
POINTS = {
    "the first row": (INDEX, "Index", "add", 1),
    "in the middle of a file": (INDEX, "Index", "add", 13),
    "behind the last row of a file": (INDEX, "Index", "set_read", 2),
    "before any row is examined": (INDEX, "Index", "next_rows", 1),
    "the first row of the corpus": (INDEX, "Index", "keep", 1),
    "the row after a few": (INDEX, "Index", "keep", 7),
    "the second round of examining": (INDEX, "Index", "decide", 13),
    "with a shard half written": (SHARDS, "", "_record", 4),
    "before a shard is in place": (SHARDS, "", "put_in_place", 2),
    "with shards and no card": (BUILD, "", "card", 1),
    "before anything is published": (BUILD, "", "put_in_place", 1),
    "with half of the shards published": (BUILD, "", "put_in_place", 3),
    "with the card published": ("pathlib", "Path", "rename", 1),
}

QUICK = ("in the middle of a file", "with the card published")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> BuildOptions:
    """12 rows of the corpus in 4 shards: 12 and 10 rows, caps of 6; pictures of the first are cut off."""
    folder = tmp_path_factory.mktemp("sources")
    rows = [plain_row("stem-mmk12", i) for i in range(12)]
    cut = [replace(row, image=row.image[:-200]) if i % 3 == 0 and row.image else row for i, row in enumerate(rows)]
    write_vero(folder / "vero", cut)
    write_mmfinereason(folder / "mmfinereason", [plain_row("MMR1", i) for i in range(10)], num_files=2)
    places = {name: str(folder / name) for name in ("vero", "mmfinereason")}
    return BuildOptions(**places, tier1_cap=6, shard_rows=3)


@pytest.fixture(scope="module")
def unbroken(options: BuildOptions, config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Built:
    made = run_build(options, config, tmp_path_factory.mktemp("unbroken") / "out")
    assert made.card["num_rows"] == 12 and len(made.card["shards"]) == 4
    assert made.card["reasons"]["bad_image"] >= 1  # so that there is a second round
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, fork_server: object) -> Path:
    """The folder of the module `child`."""
    folder = tmp_path_factory.mktemp("child")
    (folder / "child.py").write_text(CHILD, encoding="utf-8")
    return folder


def killed(place: Path, options: BuildOptions, out: Path, point: tuple[str, str, str, int]) -> bool:
    """Whether the build of a child came by the point."""
    job = json.dumps({"options": {**vars(options), "out": str(out)}, "point": point})
    ended = run_module("child", [job], env=os.environ | {"PYTHONPATH": str(place)})
    assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
    return ended.returncode != 0


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in POINTS]
)
def test_a_killed_build_goes_on(
    name: str,
    place: Path,
    options: BuildOptions,
    unbroken: Built,
    config: RunConfig,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    assert killed(place, options, out, POINTS[name])
    with pytest.raises(UserError, match="a corpus whose build has not ended"):
        load_parquet(replace(config.data, source="parquet", path=str(out)))
    made = run_build(options, config, out)
    assert contents(out) == contents(unbroken.folder)
    assert made.card == unbroken.card
    assert [path.name for path in out.iterdir() if path.is_dir()] == []


@pytest.mark.slow
def test_a_build_that_is_killed_again_and_again(
    place: Path, options: BuildOptions, unbroken: Built, tmp_path: Path
) -> None:
    """After every second row that is kept: each launch gets one file further, since files are committed."""
    launches = 1
    while killed(place, options, tmp_path / "out", (INDEX, "Index", "commit", 2)):
        launches += 1
    assert launches > 5
    assert contents(tmp_path / "out") == contents(unbroken.folder)


@pytest.mark.slow
def test_a_build_that_is_killed_while_it_tidies_up(
    place: Path, options: BuildOptions, unbroken: Built, config: RunConfig, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert killed(place, options, out, ("shutil", "", "rmtree", 1))
    assert contents(out) == contents(unbroken.folder)
    assert [path.name for path in out.iterdir() if path.is_dir()] == [".finished"]
    assert run_build(options, config, out).card == unbroken.card
    assert [path.name for path in out.iterdir() if path.is_dir()] == []


def test_an_unfinished_build_is_held_to_its_options(
    place: Path, options: BuildOptions, unbroken: Built, config: RunConfig, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert killed(place, options, out, POINTS["the row after a few"])
    with pytest.raises(UserError, match="holds an unfinished build of other options"):
        run_build(options, config, out, seed=1)
    index = Index(
        out / UNFINISHED / "state.sqlite", json.loads((unbroken.folder / "card.json").read_text())["fingerprint"]
    )
    try:
        with pytest.raises(UserError, match="another build is writing"):
            run_build(options, config, out)
        with pytest.raises(UserError, match="another build is writing"):
            build(replace(options, out=str(out)), config, force=True, report=lambda line: None)
    finally:
        index.close()
    run_build(options, config, out)
    assert contents(out) == contents(unbroken.folder)


MEASURE = r"""
import json, pathlib, re, sys
from harness.config.compose import compose
from harness.config.schema import from_hydra
from harness.builders.corpus.build import build
from harness.builders.corpus.options import BuildOptions

config = from_hydra(compose(["student=tiny_xs"]))
made = build(BuildOptions(**json.loads(sys.argv[1])), config, report=lambda line: None)
# Not ru_maxrss, which a process inherits from the one that launched it.
print(made["num_rows"], int(re.search("VmHWM:\s*(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) // 1024)
"""


def noise(seed: int) -> bytes:
    """A picture of about 200 KiB that does not compress."""
    return encoded(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (260, 260, 3), dtype=np.uint8)))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_sources(tmp_path: Path) -> None:
    """Four times the rows, 160 MiB of pictures more: the peak of resident memory stays within 40 MiB."""
    found: dict[int, Any] = {}
    for num_rows in (128, 512):
        folder = tmp_path / str(num_rows)
        write_vero(folder / "vero", [plain_row("stem-mmk12", i, image=noise(i)) for i in range(num_rows)])
        write_mmfinereason(
            folder / "mmfinereason",
            [plain_row("MMR1", i, image=noise(10_000 + i)) for i in range(num_rows)],
            num_files=1,
        )
        options = {"out": str(folder / "out"), "tier1_cap": num_rows // 2}
        options |= {name: str(folder / name) for name in ("vero", "mmfinereason")}
        made = subprocess.run(
            [sys.executable, "-c", MEASURE, json.dumps(options)], check=True, capture_output=True, text=True
        )
        found[num_rows] = tuple(map(int, made.stdout.split()[-2:]))
    print(f"rows of the corpus, MiB resident: {found}")
    assert [found[n][0] for n in (128, 512)] == [128, 512]
    assert found[512][1] - found[128][1] < 40
