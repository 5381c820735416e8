"""Questions from a data set of the Hugging Face hub, or from a local folder that is laid out like one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.config.data import DataConfig
from harness.data.files import Record, read_rows, table_columns, with_references
from harness.data.rows import Rows
from harness.data.tables import MediaTable
from harness.errors import UserError


def load_hub(config: DataConfig) -> Rows:
    """One question a row of `data.split`, with the column mapping of files. Embedded media stay on disk.

    Raises UserError for a data set, configuration or split that cannot be loaded, a mapped column that it does not
    have, and too many bad rows.
    """
    path = Path(config.path or "").expanduser()
    is_folder = path.is_dir()
    rows = Rows(origin=str(config.path))
    dataset = _load(config, str(path) if is_folder else rows.origin)
    texts, embedded = table_columns(dataset.features.arrow_schema, config, rows.origin)
    # Names are identities: the splits of a data set are different tables.
    place = ":".join(filter(None, (rows.origin, config.config_name, config.revision, config.split)))
    table = MediaTable.of(dataset, origin=place, folder=str(path) if is_folder else "")
    values = zip(*(table.values(column) for column in texts), strict=True)
    records: Iterable[Record] = (dict(zip(texts, row, strict=True)) for row in values)
    if embedded:
        records = with_references(records, table, embedded)
    read_rows(rows, enumerate(records, 1), config, folder=Path(table.folder), source=path.resolve().name)
    return rows


def _load(config: DataConfig, path: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(path, config.config_name, split=config.split, revision=config.revision)
    except Exception as error:  # from a wrong split to whatever the network stack raises
        lines = str(error.__cause__ or error).split("\n")
        options = [f"split={config.split}"]
        if config.config_name is not None:
            options.append(f"config_name={config.config_name}")
        if config.revision is not None:
            options.append(f"revision={config.revision}")
        raise UserError(
            f"data set {config.path} ({', '.join(options)}) cannot be loaded ({lines[0] or type(error).__name__}): "
            "check data.path, data.split, data.config_name and data.revision; a private data set needs "
            "`hf auth login`; offline, data.path can be a local folder"
        ) from error
