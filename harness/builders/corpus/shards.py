"""The corpus as parquet files that `data=parquet` and `data=hub` read; a crash leaves no incomplete one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.builders.corpus.index import Index, Kept
from harness.records.files import put_in_place, sha256, sync

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_ROWS = 50
"""Rows, with their pictures, that are in memory at once."""
REPEATED = ["answer_type", "subset", "source", "source_subset"]


def shard_name(shard: int, num_shards: int) -> str:
    return f"train-{shard:05d}-of-{num_shards:05d}.parquet"


def write_shards(
    index: Index, num_rows: int, folder: Path, shard_rows: int, report: Callable[[str], None]
) -> list[Path]:
    """Write the rows in the order of their keys, which mixes sub-datasets. Shards that exist are complete and stay."""
    num_shards = -(-num_rows // shard_rows)
    paths = [folder / shard_name(shard, num_shards) for shard in range(num_shards)]
    for shard, path in enumerate(paths):
        if not path.exists():
            _write(index, shard * shard_rows, min(shard_rows, num_rows - shard * shard_rows), path)
        report(f"wrote {path.name}")
    return paths


def digests(paths: list[Path]) -> dict[str, str]:
    return {path.name: sha256(path) for path in paths}


def _write(index: Index, start: int, num_rows: int, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    aside = path.with_name(path.name + ".tmp")
    with pq.ParquetWriter(aside, schema, use_dictionary=REPEATED) as writer:
        for first in range(start, start + num_rows, GROUP_ROWS):
            rows = map(_record, index.kept_rows(first, min(GROUP_ROWS, start + num_rows - first)))
            writer.write_table(pa.Table.from_pylist(list(rows), schema=schema))
    sync(aside)
    put_in_place(aside, path)


def _schema() -> pa.Schema:
    import pyarrow as pa

    texts = ("id", "question", "answer", "answer_type")
    return pa.schema(
        [
            *((name, pa.string()) for name in texts),
            ("images", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("subset", pa.string()),
            ("tier", pa.int8()),
            ("source", pa.string()),
            ("source_subset", pa.string()),
            ("source_id", pa.string()),
            ("pass_rate", pa.float64()),
            ("prompt_tokens", pa.int32()),
        ]
    )


def _record(row: Kept) -> dict[str, object]:
    values = dict(vars(row))
    del values["key"]
    return values | {"images": {"bytes": values.pop("image"), "path": None}}
