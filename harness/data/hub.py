"""Questions from a data set of the Hugging Face hub, from a local folder that is laid out like one, or a saved one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.config.data import DataConfig
from harness.data.columns import Record, schema_names
from harness.data.files import table_columns, with_references
from harness.data.records import Reader, Row
from harness.data.rows import Rows, Stream
from harness.data.tables import MediaTable
from harness.errors import UserError, did_you_mean, first_line


def load_hub(config: DataConfig) -> Rows:
    """One question a row of `data.split`, with the column mapping of files. Embedded media stay on disk.

    Raises UserError for a data set, configuration or split that cannot be loaded, a mapped column that it does not
    have, and too many bad rows.
    """
    return open_hub(config, str(config.path)).all(config.max_bad_fraction)


def open_hub(config: DataConfig, name: str, id_start: str = "") -> Stream:
    """The rows of a data set of the hub or of a local folder. `id_start` begins the ids, by default its name."""
    path = Path(name).expanduser()
    dataset = _load(config, name, str(path) if path.is_dir() else name)
    # Names are identities: the splits of a data set are different tables.
    place = ":".join(filter(None, (name, config.config_name, config.revision, config.split)))
    return _opened(config, dataset, name, place, path, id_start)


def open_saved(config: DataConfig, name: str, id_start: str = "") -> Stream:
    """The rows of a folder that `save_to_disk` wrote; of several splits those of `data.split`."""
    import datasets

    path = Path(name).expanduser()
    try:
        loaded: Any = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever a damaged folder leads to
        raise UserError(f"{path} cannot be loaded ({first_line(error)}): save the data set anew") from error
    place = str(path)
    if isinstance(loaded, datasets.DatasetDict):
        if config.split not in loaded:
            raise UserError(
                f"{path} has no split {config.split!r}: set data.split.{did_you_mean(config.split, loaded)}"
            )
        loaded, place = loaded[config.split], f"{path}:{config.split}"
    if loaded._indices is not None:
        loaded = loaded.flatten_indices()
    return _opened(config, loaded, str(path), place, path, id_start)


def _opened(config: DataConfig, dataset: Any, origin: str, place: str, path: Path, id_start: str) -> Stream:
    schema = dataset.features.arrow_schema
    texts, embedded = table_columns(schema, config, origin)
    table = MediaTable.of(dataset, origin=place, folder=str(path) if path.is_dir() else "")
    values = zip(*(table.values(column) for column in texts), strict=True)
    records: Iterable[Record] = (dict(zip(texts, row, strict=True)) for row in values)
    if embedded:
        records = with_references(records, table, embedded)
    reader = Reader(
        config=config,
        origin=origin,
        folder=table.folder,
        name=id_start or path.resolve().name,
        known=schema_names(schema),
    )
    numbered = (Row(number, record) for number, record in enumerate(records, 1))
    return Stream(origin=origin, rows=reader.questions(numbered))


def _load(config: DataConfig, name: str, path: str) -> Any:
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
            f"data set {name} ({', '.join(options)}) cannot be loaded ({lines[0] or type(error).__name__}): "
            "check data.path, data.split, data.config_name and data.revision; a private data set needs "
            "`hf auth login`; offline, data.path can be a local folder"
        ) from error
