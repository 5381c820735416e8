"""Is a label better than a baseline on the same questions? Tests on the rows of `eval/<suite>/rows.jsonl`.

The tests are about the runs that were made and about questions like these. How another training run would come out is
not in them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.json

from reports.runs.collect import Run

NUM_RESAMPLES = 10_000
INTERVAL = (0.025, 0.975)
ALPHA = 0.05
BETTER, WORSE, ALIKE, NOT_COMPARED = "better", "worse", "not distinguishable", "not compared"
COLUMNS = (
    "student", "family", "benchmark", "label", "baseline", "delta", "lo", "hi", "p", "p_holm", "verdict", "test",
    "num_pairs", "num_questions", "seeds", "note", "suite",
)  # fmt: skip
BLOCK_BYTES = 1 << 26
"""Bytes of the reader's block: no line may be longer."""
CHUNK = 1_000
"""Resamples that are in memory at once."""
DECIMALS = 9
"""Decimals of a question's score difference: equal ones must not differ by their last bit."""
_CELL = ["student", "suite", "benchmark", "label"]
_RUN = ["label", "student", "seed"]
_FIELDS = pa.schema([("benchmark", pa.string()), ("question_id", pa.string()), ("score", pa.float64())])
_VERDICT = pa.field("verdict", pa.string())
UNGRADED = "ungraded"
"""The verdict of a response that has no score."""


def read_rows(runs: Sequence[Run]) -> tuple[pd.DataFrame, list[str]]:
    """Responses, and a line for each file that is left out because it is damaged.

    A row a response of the complete runs: label, student, seed, suite, benchmark, question_id, score (0 to 1).

    Only these fields, and the verdict, are parsed. Responses without a verdict are left out. Runs without `rows.jsonl`
    have no rows.
    """
    tables, damaged = [], []
    for run in runs:
        for file in sorted(run.folder.glob("eval/*/rows.jsonl")) if run.incomplete is None else ():
            options = pa.json.ReadOptions(block_size=BLOCK_BYTES)
            schema = _FIELDS.append(_VERDICT)
            parsing = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
            if file.stat().st_size == 0:
                continue
            try:
                rows = pa.json.read_json(file, read_options=options, parse_options=parsing).to_pandas()
            except (pa.ArrowInvalid, UnicodeDecodeError) as error:
                damaged.append(f"- {run.name}: {file.name} of {file.parent.name}: {str(error).splitlines()[0]}")
                continue
            rows = rows.loc[rows["verdict"] != UNGRADED, _FIELDS.names]
            if rows.isna().any(axis=None):
                lacking = ", ".join(_FIELDS.names)
                damaged.append(f"- {run.name}: {file.name} of {file.parent.name}: a row lacks {lacking}")
                continue
            tables.append(rows.assign(suite=file.parent.name, **{name: run.info[name] for name in _RUN}))
    names = [*_RUN, "suite", *_FIELDS.names]
    return (pd.concat(tables, ignore_index=True)[names] if tables else pd.DataFrame(columns=names)), damaged


def significance_table(
    scores: pd.DataFrame,
    rows: pd.DataFrame,
    baseline: str,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Each label against `baseline`, a row a student, suite, family, label and benchmark; columns `COLUMNS`.

    `scores` is the long table of one study, `rows` its rows (both: `reports.runs.collect`). Rows are paired that
    have benchmark, question and seed in common, and were evaluated by the same protocol. Of several rows a question,
    the first is paired with the first and so on. `num_pairs` says how many were, over `num_questions` questions and
    the seeds in `seeds`; what has no pair is `not compared`, and `note` says why.

    - `delta`: mean of the paired score differences, in percentage points. It is not the difference of two scores where
      rows are unpaired, or where the benchmark weighs its questions.
    - `lo`, `hi`: its 95 % percentile interval; questions are resampled, each with all its pairs. Not corrected.
    - `p`: two-sided, of the hypothesis that label and baseline are exchangeable, question by question. `test` says how:
      `McNemar` (exact) where scores are 0 or 1; `McNemar by question` the same where a question has several pairs,
      which change sides together; `sign flips` (random) for other scores.
    - `p_holm`: corrected by Holm over the benchmarks of the block (student, suite, family and label; not over labels).
    - `verdict`: `better` or `worse` where `p_holm` is below 0.05, `not distinguishable` elsewhere.

    Raises ValueError where no run of the study is labelled `baseline`.
    """
    if baseline not in set(scores["label"]):
        known = ", ".join(dict.fromkeys(map(str, scores["label"])))
        raise ValueError(f"no run is labelled {baseline!r}; labels here: {known}")
    scores = scores.assign(family=scores["family"].fillna(""))
    known_rows = rows.merge(scores[[*_CELL, "seed", "protocol"]].dropna(subset="protocol"), on=[*_CELL, "seed"])
    evaluated = known_rows[[*_CELL, "seed", "protocol"]].drop_duplicates()
    questions = _paired_questions(known_rows, baseline)
    positions = questions.groupby(_CELL, sort=False).indices
    columns = {name: questions[name].to_numpy() for name in ("sum", "num_pairs", "binary", "seeds")}
    others = scores[scores["label"] != baseline].drop_duplicates([*_CELL, "family"])
    blocks = []
    for _, block in others.groupby(["student", "suite", "family", "label"], sort=False):
        results = block[[*_CELL, "family"]].assign(baseline=baseline, note="").to_dict("records")
        for result in results:
            cell = tuple(result[name] for name in _CELL)
            if cell in positions:
                paired = {name: values[positions[cell]] for name, values in columns.items()}
                result.update(_test(paired, num_resamples, seed))
            else:
                result.update(num_pairs=0, num_questions=0, seeds="", note=_why_not(evaluated, cell, baseline))
        blocks.append(_with_verdicts(pd.DataFrame(results, columns=list(COLUMNS))))
    return pd.concat(blocks, ignore_index=True) if blocks else pd.DataFrame(columns=list(COLUMNS))


def mcnemar(differences: np.ndarray) -> float:
    """Two-sided exact p of integer differences, one a question, when each keeps or changes its sign by a fair coin.

    P(|sum of +-differences| >= |their sum|): for -1, 0 and 1 this is McNemar's exact test.
    """
    sizes = np.abs(differences).astype(int)
    distribution = np.ones(1)  # of the sum of the flipped, from -largest to largest
    for size in range(1, sizes.max(initial=0) + 1):
        count = int((sizes == size).sum())
        one = np.zeros(2 * size * count + 1)
        one[:: 2 * size] = _fair_binomial(count)
        distribution = np.convolve(distribution, one)
    largest = len(distribution) // 2
    extreme = np.abs(np.arange(-largest, largest + 1)) >= abs(int(differences.sum()))
    return min(1.0, float(distribution[extreme].sum()))


def sign_flips(differences: np.ndarray, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> float:
    """`mcnemar` by random flips, for any differences: (1 + as extreme flips) / (1 + flips)."""
    sizes, counts = np.unique(np.abs(differences), return_counts=True)
    rng = np.random.default_rng(seed)
    kept = rng.binomial(counts, 0.5, size=(num_resamples, len(counts)))
    sums = (2 * kept - counts) @ sizes
    num_extreme = int((np.abs(sums) >= abs(differences.sum()) - 10.0**-DECIMALS).sum())
    return (1 + num_extreme) / (1 + num_resamples)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction, NaN left out: the k-th smallest of m times m - k + 1, never falling, at most 1."""
    corrected = np.full(len(p), np.nan)
    order = np.argsort(p, kind="stable")[: int((~np.isnan(p)).sum())]  # NaN is sorted last
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def _paired_questions(rows: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """A row a cell and question: `sum` of the paired differences, `num_pairs`, `binary` (scores 0 or 1), `seeds`."""
    rows = rows.assign(
        repeat=rows.groupby([*_CELL, "seed", "question_id"], sort=False).cumcount(),
        binary=rows["score"].isin([0.0, 1.0]),
    )
    of_baseline = rows["label"] == baseline
    pairs = rows[~of_baseline].merge(
        rows[of_baseline].drop(columns="label"),
        on=["student", "suite", "benchmark", "seed", "question_id", "repeat", "protocol"],
        suffixes=("", "_baseline"),
    )
    pairs["difference"] = pairs["score"] - pairs["score_baseline"]
    pairs["binary"] &= pairs["binary_baseline"]
    questions = pairs.groupby([*_CELL, "question_id"], sort=False).agg(
        sum=("difference", "sum"), num_pairs=("difference", "size"), binary=("binary", "all")
    )
    seeds = pairs.groupby(_CELL, sort=False)["seed"].agg(lambda seeds: " ".join(map(str, sorted(set(seeds)))))
    return questions.round(DECIMALS).reset_index().merge(seeds.rename("seeds").reset_index(), on=_CELL)


def _why_not(evaluated: pd.DataFrame, cell: tuple[str, ...], baseline: str) -> str:
    """Why the label of a cell has no pair with the baseline. `evaluated`: _CELL, seed and protocol of the rows."""
    found = []
    for wanted in (cell, (*cell[:-1], baseline)):
        found.append(evaluated[(evaluated[_CELL] == list(wanted)).all(axis=1)])
        if found[-1].empty:
            return f"{wanted[-1]} has no rows"
    if not set(found[0]["seed"]) & set(found[1]["seed"]):
        return "no seed in common"
    if not set(found[0]["protocol"]) & set(found[1]["protocol"]):
        return "evaluated by different protocols"
    return "no question in common by the same seed and protocol"


def _test(paired: dict[str, np.ndarray], num_resamples: int, seed: int) -> dict[str, object]:
    sums, sizes = paired["sum"], paired["num_pairs"]
    lo, hi = _interval(sums, sizes, num_resamples, seed)
    if paired["binary"].all():
        test, p = "McNemar" if sizes.max() == 1 else "McNemar by question", mcnemar(sums)
    else:
        test, p = "sign flips", sign_flips(sums, num_resamples, seed)
    return {
        "delta": 100 * sums.sum() / sizes.sum(), "lo": lo, "hi": hi, "p": p, "test": test,
        "num_pairs": int(sizes.sum()), "num_questions": len(sums), "seeds": paired["seeds"][0],
    }  # fmt: skip


def _interval(sums: np.ndarray, sizes: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """Interval of the mean difference in percentage points, by resampling questions.

    Questions with the same sum and number of pairs are interchangeable. How often each such kind is drawn is
    multinomial, so that a resample costs as many numbers as there are kinds, not questions.
    """
    kinds, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, num_resamples, CHUNK):
        drawn = rng.multinomial(len(sums), counts / len(sums), size=min(CHUNK, num_resamples - start))
        totals = drawn @ kinds
        means.append(100 * totals[:, 0] / totals[:, 1])
    return np.quantile(np.concatenate(means), INTERVAL)


def _with_verdicts(block: pd.DataFrame) -> pd.DataFrame:
    p_holm = holm(block["p"].to_numpy(dtype=float))
    numbers = {name: block[name].astype(float) for name in ("delta", "lo", "hi", "p")}
    leads = np.where(numbers["delta"] > 0, BETTER, WORSE)
    verdict = np.where(np.isnan(p_holm), NOT_COMPARED, np.where(p_holm < ALPHA, leads, ALIKE))
    return block.assign(**numbers, p_holm=p_holm, verdict=verdict, test=block["test"].fillna(""))


def _fair_binomial(count: int) -> np.ndarray:
    """P(k of `count` fair coins), k = 0 to count."""
    logs = np.concatenate([np.zeros(1), np.cumsum(np.log(np.arange(1, count + 1)))])
    return np.exp(logs[count] - logs - logs[::-1] - count * np.log(2))
