"""What a build is asked for. Imports no torch, and nothing that reads data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.builders.corpus.tables import Tier
from harness.errors import UserError, did_you_mean

UNKNOWN = ("refuse", "skip")
SHARED = ("priority", "fill")


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Options of `zppo data build zppo77k`. The defaults are the published corpus, where the paper says what it is."""

    out: str = "outputs/zppo77k"
    vero: str = "zlab-princeton/Vero-600k"
    """A data set of the hub, or a folder that is laid out like it."""
    mmfinereason: str = "OpenDataArena/MMFineReason-SFT-586K-Qwen3-VL-235B-Thinking"
    vero_revision: str | None = None
    """Branch, tag or commit on the hub; default: the newest, whose commit the card names."""
    mmfinereason_revision: str | None = None
    seed: int = 0
    """Seed of the choice of rows within a sub-dataset."""
    unknown: str = "refuse"
    """What becomes of a sub-dataset that is in no table: `refuse` the build, or `skip` and count it."""
    shared: str = "priority"
    """A sub-dataset that both sources have: `priority` takes Vero's rows alone, `fill` tops them up to the cap."""
    near_duplicates: str | None = None
    """A file that `zppo data hash` wrote: rows like a question or picture in it are dropped. The paper names no such
    step, so the default is not to."""
    distance: int = 4
    """Bits (of 64) by which the perceptual hashes of two pictures that count as alike may differ."""
    tier1_cap: int = 2800
    tier2_cap: int = 1400
    shard_rows: int = 1000

    def caps(self) -> dict[Tier, int]:
        return {1: self.tier1_cap, 2: self.tier2_cap}

    def location(self, source: str) -> tuple[str, str | None]:
        """Where a source is, and which revision of it."""
        return getattr(self, source), getattr(self, f"{source}_revision")

    def chosen(self) -> dict[str, Any]:
        """What decides the content of a corpus: all but the folder it goes to."""
        return {name: value for name, value in asdict(self).items() if name != "out"}

    def check(self) -> None:
        """Raises UserError, which names the option."""
        for name, value, known in (("unknown", self.unknown, UNKNOWN), ("shared", self.shared, SHARED)):
            if value not in known:
                raise UserError(f"--{name}={value} is not known.{did_you_mean(value, known)}")
        for name in ("tier1_cap", "tier2_cap", "shard_rows"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.distance <= 32:
            raise UserError(f"--distance is a number of bits from 0 to 32, got {self.distance}")
        if self.near_duplicates is not None and not Path(self.near_duplicates).expanduser().is_file():
            raise UserError(
                f"--near-duplicates: there is no file {self.near_duplicates}: make it with zppo data hash --out FILE"
            )
