"""The questions of the benchmarks as hashes, from the hub or from local copies, as evaluation asks them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from harness.builders.corpus.hashes import BenchmarkHashes
from harness.config.evaluation import EvalConfig
from harness.errors import UserError, did_you_mean


def hash_benchmarks(
    suite: str, columns: Sequence[str], data_root: str | None, report: Callable[[str], None]
) -> BenchmarkHashes:
    """Hash texts and pictures of a suite's columns, all by default; clips are not looked at.

    Columns whose data are not there are noted as missing. Raises UserError where none is, and for unknown names.
    """
    from harness.evaluation.benchmarks.columns import suite_columns
    from harness.evaluation.suites import listed_suite

    if suite not in suite_columns():
        raise UserError(f"--suite={suite} is not known.{did_you_mean(suite, suite_columns())}")
    members = [column.name for column in suite_columns()[suite]]
    if other := [name for name in columns if name not in members]:
        raise UserError(f"--columns: {suite} has no {other[0]!r}.{did_you_mean(other[0], members)}")
    if data_root is not None and not Path(data_root).expanduser().is_dir():
        raise UserError(f"--data-root={data_root} is no folder")
    hashes = BenchmarkHashes()
    for name in columns or members:
        # One at a time: the questions of a benchmark are not needed once they are hashed.
        try:
            chosen = listed_suite(EvalConfig(suite=suite, columns=[name], data_root=data_root, stage="generate"))
        except UserError as error:
            hashes.missing[name] = str(error)
            continue
        for benchmark in chosen.benchmarks:
            hashes.add(benchmark.name, benchmark.questions)
            report(f"hashed {benchmark.name}: {len(benchmark.questions)} questions")
    if not hashes.columns:
        raise UserError(next(iter(hashes.missing.values())))
    return hashes
