"""Scores of single responses, by column: a matrix of runs and responses for each benchmark.

Nothing is an object a response. Runs that answered the same questions in the same order, which is the rule, share the
numbering of their questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from reports.runs.collect import Run

BLOCK_BYTES = 1 << 26
"""Bytes of the reader's block: no line may be longer."""
UNGRADED = "ungraded"
"""The verdict of a response that has no score."""
Benchmark = tuple[str, str, str]
"""Student, suite and name of a benchmark."""
_FIELDS = pa.schema([("benchmark", pa.string()), ("question_id", pa.string()), ("score", pa.float64())])
_VERDICT = pa.field("verdict", pa.string())


@dataclass(frozen=True)
class Answers:
    """What all runs of a student answered on one benchmark.

    Of several responses to a question, the first has the column of the first of every other run, and so on.
    """

    runs: tuple[tuple[str, int], ...]
    """Label and seed of each row."""
    scores_RI: np.ndarray
    """0 to 1; a row a run, a column a response; NaN where a run has none."""
    questions_I: np.ndarray
    """The number of the question of each column."""


@dataclass(frozen=True)
class _Layout:
    """Where the responses to one benchmark are in a file, and which they are."""

    places: np.ndarray
    ids: pa.Array
    """Question of each, in the order of `places`."""


def read_answers(runs: Sequence[Run]) -> tuple[dict[Benchmark, Answers], list[str]]:
    """The answers of the complete runs by benchmark, and a line for each file that is left out because it is damaged.

    Only benchmark, question, score and verdict are parsed. Responses without a verdict are left out. Runs without
    `rows.jsonl` have no answers.
    """
    found: dict[Benchmark, list[tuple[tuple[str, int], np.ndarray, _Layout]]] = {}
    damaged = []
    last: tuple[pa.Table | None, dict[str, _Layout]] = (None, {})
    for run in runs:
        for file in sorted(run.folder.glob("eval/*/rows.jsonl")) if run.incomplete is None else ():
            try:
                rows = _read(file)
            except (ValueError, UnicodeDecodeError) as error:  # Arrow's errors are ValueErrors
                damaged.append(f"- {run.name}: {file.name} of {file.parent.name}: {str(error).splitlines()[0]}")
                continue
            keys = rows.select(["benchmark", "question_id"])
            if last[0] is None or not keys.equals(last[0]):
                last = (keys, _layouts(keys))
            scores = rows["score"].to_numpy()
            for name, layout in last[1].items():
                owner = (str(run.info["label"]), run.info["seed"])
                benchmark = (str(run.info["student"]), file.parent.name, name)
                found.setdefault(benchmark, []).append((owner, scores[layout.places], layout))
    return {name: _matrix(parts) for name, parts in found.items()}, damaged


def _read(file: Path) -> pa.Table:
    size = file.stat().st_size
    if size == 0:
        return _FIELDS.empty_table()
    rows = pyarrow.json.read_json(
        file,
        read_options=pyarrow.json.ReadOptions(block_size=min(size + 1, BLOCK_BYTES), use_threads=False),
        parse_options=pyarrow.json.ParseOptions(
            explicit_schema=_FIELDS.append(_VERDICT), unexpected_field_behavior="ignore"
        ),
    )
    rows = rows.filter(pc.fill_null(pc.not_equal(rows["verdict"], UNGRADED), True)).select(_FIELDS.names)
    if any(column.null_count for column in rows.columns):
        raise ValueError(f"a row lacks {', '.join(_FIELDS.names)}")
    return rows.combine_chunks()


def _layouts(keys: pa.Table) -> dict[str, _Layout]:
    benchmarks = keys["benchmark"].combine_chunks().dictionary_encode()
    codes = benchmarks.indices.to_numpy()
    ids = keys["question_id"].combine_chunks()
    layouts = {}
    for code, name in enumerate(benchmarks.dictionary.to_pylist()):
        places = np.flatnonzero(codes == code)
        layouts[name] = _Layout(places, ids.take(pa.array(places)))
    return layouts


def _matrix(parts: Sequence[tuple[tuple[str, int], np.ndarray, _Layout]]) -> Answers:
    """One column for each response that any run has, in the order in which they come."""
    layouts = list({id(layout): layout for *_, layout in parts}.values())
    numbered = {id(layout): _numbered(layout.ids) for layout in layouts}
    columns = pd.MultiIndex.from_arrays(numbered[id(layouts[0])])
    for layout in layouts[1:]:
        columns = columns.append(pd.MultiIndex.from_arrays(numbered[id(layout)])).drop_duplicates()
    places = {key: columns.get_indexer(pd.MultiIndex.from_arrays(arrays)) for key, arrays in numbered.items()}
    scores_RI = np.full((len(parts), len(columns)), np.nan)
    for row, (_, scores, layout) in enumerate(parts):
        scores_RI[row, places[id(layout)]] = scores
    questions_I, _ = pd.factorize(columns.get_level_values(0))
    return Answers(tuple(owner for owner, *_ in parts), scores_RI, questions_I)


def _numbered(ids: pa.Array) -> tuple[pd.Index, np.ndarray]:
    """Each response's question, and how many to the same question came before."""
    questions = pd.Series(ids.to_pandas())
    return pd.Index(questions), questions.groupby(questions).cumcount().to_numpy()
