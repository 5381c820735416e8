"""Which runs may stand in one column: those that were evaluated by the same evaluation card."""

from __future__ import annotations

from typing import Any

import pandas as pd

BLOCK = ["student", "suite", "family"]
"""What one table is about; nothing is averaged or compared across."""


def comparable(scores: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the runs that share the most common protocol of their block (at a tie the first), and refused rows.

    Those are, of each other run, the first row with another protocol; its column `expected` is that of the others.
    A run's protocol in a block is that of all its benchmarks together; a run with fewer benchmarks is compared on those
    it has. A benchmark that could not be evaluated has no protocol and is no reason.
    """
    columns = scores.groupby([*BLOCK, "benchmark"], sort=False)["protocol"]
    expected = columns.transform(_most_common)
    differs = scores["protocol"].notna() & (scores["protocol"] != expected)
    run = [*BLOCK, "label", "seed"]
    refused = scores.assign(expected=expected)[differs].drop_duplicates(run)
    taken = pd.MultiIndex.from_frame(scores[run]).isin(pd.MultiIndex.from_frame(refused[run]))
    return scores[~taken], refused


def _most_common(protocols: pd.Series) -> Any:
    counts = protocols.value_counts(sort=False)
    return next((name for name in counts.index if counts[name] == counts.max()), None)
