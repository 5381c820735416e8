"""What runs cost: time, tokens, FLOPs and memory, and how far methods come for the cost of the cheapest run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from reports.plots.data import load_metrics
from reports.runs.collect import BASE, Run, seconds_of
from reports.tables import markdown_table

PFLOP = 1e15
WINDOW = 5
"""Steps up to the budget whose rollout accuracies are averaged: one step asks only a batch of questions."""
MEASURES = ("flops", "tokens")
NO_SCORE = "not every seed has an evaluation at or before its step"
ONLY_ROLLOUTS = f"only rollout accuracy is known: {NO_SCORE}"
NO_ROLLOUTS = "no rollout accuracy: the method samples no plain groups"
TOO_DEAR = "the first step alone is over the budget"
OTHER_CARDS = "scores of other benchmarks or evaluation cards than most: not compared"
HOLES = "a benchmark of the evaluation has no score, so there is no macro average"
CARD = ["suite", "family", "benchmark", "protocol"]


def run_cost(run: Run) -> dict[str, float]:
    """Cost of one run, as far as it is known (NaN where it is not).

    - `wall_seconds`: as `seconds_of`.
    - `training_seconds`: the sum of its steps.
    - `student_tokens`, `teacher_tokens`: tokens that each sampled, rewrites included.
    - `flops_<part>`: each `flops/<part>` of run.json; `flops`: their sum.
    - `peak_<name>`: for each `memory/<name>` of metrics.jsonl the largest at the end of a step, in MiB.
    """
    cost = run.info.get("cost") or {}
    seconds = seconds_of(run.info) if run.info.get("started") else None
    # A run that counts tokens leaves out those of an engine that it never called.
    absent = 0.0 if any(name.startswith("tokens/") for name in cost) else np.nan
    parts = {f"flops_{name.removeprefix('flops/')}": v for name, v in sorted(cost.items()) if name.startswith("flops/")}
    return {
        "wall_seconds": np.nan if seconds is None else seconds,
        "training_seconds": cost.get("time/step", np.nan),
        "student_tokens": cost.get("tokens/student_generated", absent),
        "teacher_tokens": cost.get("tokens/teacher_generated", absent),
        **parts,
        "flops": sum(parts.values()) if parts else np.nan,
        **_peaks(load_metrics([run])),
    }


def _peaks(metrics: pd.DataFrame) -> dict[str, float]:
    names = sorted(name for name in metrics.columns if name.startswith("memory/"))
    return {f"peak_{name.removeprefix('memory/')}": float(metrics[name].max()) for name in names}


def cost_table(runs: list[Run], scores: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row a student and label: `num_runs` that are done, and the means over them of `run_cost`.

    With `scores` (the long table of `collect`) also

    - `macro_gain`: percentage points over the base model of the same student. Per suite and family: the mean over its
      benchmarks of the score minus the base's (the mean over base's seeds); then the plain mean over suites and
      families. It is known only where base has a score of the same evaluation card for every benchmark of the run.
    - `gain_per_pflop`: `macro_gain` divided by `flops / 10^15`, both as in this row.

    A value that one run of the row lacks is NaN, so that no mean is over fewer runs than `num_runs` says. Base has no
    training, so no FLOPs and no gain. Ordered by student, then as `runs`.
    """
    done = sorted((run for run in runs if run.info["status"] == "done"), key=lambda run: str(run.info["student"]))
    gains = _gains(scores) if scores is not None else {}
    records = [
        {name: run.info[name] for name in ("student", "label")}
        | run_cost(run)
        | {"macro_gain": gains.get(_key(run), np.nan)}
        for run in done
    ]
    if not records:
        return pd.DataFrame(columns=["student", "label", "num_runs"])
    table = pd.DataFrame(records)
    values = table[_ordered(table.columns)].astype(float).assign(student=table["student"], label=table["label"])
    groups = values.groupby(["student", "label"], sort=False)
    means = groups.agg(_mean)
    means.insert(0, "num_runs", groups.size())
    means["gain_per_pflop"] = means["macro_gain"] / (means["flops"] / PFLOP)
    return means.reset_index()


def _ordered(columns: pd.Index) -> list[str]:
    """Time, tokens, FLOPs by part, FLOPs, memory, gain: the same whichever run has a column first."""
    first = ["wall_seconds", "training_seconds", "student_tokens", "teacher_tokens"]
    parts = sorted(name for name in columns if name.startswith("flops_"))
    return [*first, *parts, "flops", *sorted(name for name in columns if name.startswith("peak_")), "macro_gain"]


def _key(run: Run) -> tuple[Any, ...]:
    return run.info["student"], run.info["label"], run.info["seed"]


def _gains(scores: pd.DataFrame) -> dict[tuple[Any, ...], float]:
    """Macro gain of each trained run by (student, label, seed), as `cost_table` defines it."""
    scores = scores.assign(family=scores["family"].fillna(""))
    on_card = ["student", *CARD]
    base = scores[scores["method"] == BASE].groupby(on_card)["score"].agg(_mean)
    trained = scores[scores["method"] != BASE].join(base.rename("base"), on=on_card)
    trained["gain"] = trained["score"].astype(float) - trained["base"].astype(float)
    runs = trained.groupby(["student", "label", "seed"], sort=False)
    return {key: _macro(run, "gain") for key, run in runs}


def _mean(column: pd.Series) -> float:
    """NaN where one value is missing."""
    return float(column.mean(skipna=False))


def _macro(run: pd.DataFrame, value: str) -> float:
    """Mean over suites and families of the mean over benchmarks; NaN where one benchmark is missing."""
    blocks = run.groupby(["suite", "family"])[value].agg(_mean)
    return _mean(blocks)


def cost_curves(runs: list[Run]) -> pd.DataFrame:
    """Cost against rollout accuracy of the trained runs that are done, one row a step.

    The columns are student, label, seed, step and:

    - `cumulative_flops`: the sum of every `flops/*` so far.
    - `cumulative_tokens`: the sum of every `tokens/*` so far, all that went through a model. A token counts once where
      it is sampled and once more where it is trained on.
    - `accuracy`: the step's `rollout/accuracy` (0 to 1; NaN where the method has none, or nothing could be graded).
    """
    names = ["student", "label", "seed", "step", "cumulative_flops", "cumulative_tokens", "accuracy"]
    curves = []
    for run in runs:
        metrics = load_metrics([run]) if run.info["status"] == "done" else pd.DataFrame()
        if metrics.empty:
            continue
        metrics = metrics.drop_duplicates("step", keep="last").sort_values("step")
        for measure in MEASURES:
            parts = [name for name in metrics.columns if name.startswith(f"{measure}/")]
            spent = metrics[parts].fillna(0.0).sum(axis=1).cumsum()
            metrics[f"cumulative_{measure}"] = spent if parts else np.nan
        metrics["accuracy"] = metrics.get("rollout/accuracy", np.nan)
        curves.append(metrics[names])
    return pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(columns=names)


def equal_cost(runs: list[Run], scores: pd.DataFrame) -> pd.DataFrame:
    """How far each label comes for the cost of the cheapest run: one row a student, measure and label.

    `measure` is flops or tokens (as in `cost_curves`), `budget` the lowest total of the student's trained runs that
    have rollout accuracies, and `cheapest` its label. (What samples nothing, such as SFT, is over before another method
    has taken its first steps. It is shown in full, and sets the budget only where nothing else was run.)

    A run's step is its last whose cumulative cost is within the budget (`step_lowest` and `step_highest` over seeds).
    `accuracy` is the mean over `num_seeds` seeds of the rollout accuracy (0 to 1), in each averaged over the last
    `WINDOW` steps up to there. `accuracy_lowest` and `accuracy_highest` are those of single seeds. `score` is the macro
    average of the last evaluation at or before the step (percent; mean over suites and families, then over seeds). That
    evaluation was made at `score_step_lowest` to `_highest`. The one after training (`scores`, the table of `collect`)
    counts for the last step. What one seed lacks is NaN in the row, and `note` says why.
    """
    curves = cost_curves(runs)
    rows = []
    for student, of_student in curves.groupby("student", sort=True):
        for measure in MEASURES:
            known = of_student.dropna(subset=[f"cumulative_{measure}"])
            if not known.empty:
                rows += _at_budget(runs, known, scores, str(student), measure)
    whole = dict.fromkeys((name for name in EQUAL_COST_COLUMNS if "step_" in name), "Int64")
    return pd.DataFrame(rows, columns=EQUAL_COST_COLUMNS).astype(whole)


EQUAL_COST_COLUMNS = [
    "student", "measure", "budget", "cheapest", "label", "num_seeds", "step_lowest", "step_highest", "accuracy",
    "accuracy_lowest", "accuracy_highest", "score", "score_step_lowest", "score_step_highest", "note",
]  # fmt: skip


def _at_budget(
    runs: list[Run], curves: pd.DataFrame, scores: pd.DataFrame, student: str, measure: str
) -> list[dict[str, Any]]:
    spent = f"cumulative_{measure}"
    sampling = curves.groupby(["label", "seed"])["accuracy"].transform("count") > 0
    ends = (curves[sampling] if sampling.any() else curves).drop_duplicates(["label", "seed"], keep="last")
    end = ends.sort_values(spent, kind="stable").iloc[0]
    budget, cheapest = float(end[spent]), str(end["label"])
    folders = {_key(run): run for run in runs}
    reached = []
    for (label, seed), curve in curves.groupby(["label", "seed"], sort=False):
        within = curve[curve[spent] <= budget]
        step = float(within["step"].max())
        final = float(curve["step"].max())
        evaluation = _evaluation(folders[student, label, seed], scores, step, final)
        accuracy = within["accuracy"].tail(WINDOW).mean()  # of the steps that could be graded
        reached.append({"label": label, "step": step, "accuracy": accuracy, **evaluation})
    table = pd.DataFrame(reached)
    cards = table["cards"][table["cards"] != ""]
    table["other"] = (table["cards"] != "") & (table["cards"] != (cards.mode().iloc[0] if len(cards) else ""))
    table.loc[table["other"], "score"] = np.nan
    shared = {"student": student, "measure": measure, "budget": budget, "cheapest": cheapest}
    return [shared | _over_seeds(str(label), seeds) for label, seeds in table.groupby("label", sort=False)]


def _over_seeds(label: str, seeds: pd.DataFrame) -> dict[str, Any]:
    def spread(name: str) -> list[float]:
        return [float(getattr(seeds[name], how)(skipna=False)) for how in ("mean", "min", "max")]

    notes = [
        note
        for note, applies in (
            (TOO_DEAR, seeds["step"].isna().any()),
            (NO_ROLLOUTS, (seeds["step"].notna() & seeds["accuracy"].isna()).any()),
            (OTHER_CARDS, seeds["other"].any()),
            (HOLES, (seeds["score"].isna() & (seeds["cards"] != "") & ~seeds["other"]).any()),
            (ONLY_ROLLOUTS, (seeds["step"].notna() & (seeds["cards"] == "")).any()),
        )
        if applies
    ]
    if NO_ROLLOUTS in notes and ONLY_ROLLOUTS in notes:
        notes = [NO_ROLLOUTS, NO_SCORE]
    steps, accuracies, score, at = map(spread, ("step", "accuracy", "score", "score_step"))
    values = [label, len(seeds), *steps[1:], *accuracies, score[0], *at[1:], "; ".join(notes)]
    return dict(zip(EQUAL_COST_COLUMNS[4:], values, strict=True))


def _evaluation(run: Run, scores: pd.DataFrame, step: float, final: float) -> dict[str, Any]:
    """Macro score of the last evaluation at or before a step, its step, and what identifies its cards."""
    none = {"score": np.nan, "score_step": np.nan, "cards": ""}
    table, at = pd.DataFrame(), step
    if step == final:
        student, label, seed = _key(run)
        same = (scores["student"] == student) & (scores["label"] == label) & (scores["seed"] == seed)
        table = scores[same]
    if table.empty:
        files = sorted(run.folder.glob("eval/*/step-*/scores.csv"))
        steps = {file: float(file.parent.name.removeprefix("step-")) for file in files}
        at = max((number for number in steps.values() if number <= step), default=np.nan)
        here = [file for file in files if steps[file] == at]
        if not here:
            return none
        text = {"benchmark": str, "family": str, "protocol": str}
        table = pd.concat([pd.read_csv(file, dtype=text).assign(suite=file.parent.parent.name) for file in here])
    table = table.assign(family=table["family"].fillna("") if "family" in table else "")
    cards = sorted(map(tuple, table[CARD].astype(str).to_numpy()))
    return {"score": _macro(table, "score"), "score_step": at, "cards": repr(cards)}


def to_csv(table: pd.DataFrame) -> str:
    """Any table of this module, unrounded."""
    return table.to_csv(index=False, lineterminator="\n")


def to_markdown(table: pd.DataFrame) -> str:
    """`cost_table` for reading."""
    if table.empty:
        return "No run is done."
    header, rows = rows_of(table)
    return markdown_table(header, rows, num_left=2)


def rows_of(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Header and rows of `cost_table`, student and label first.

    A column that no row knows is left out, a value that is not known is `-`.
    """
    names = [name for name in table.columns[3:] if table[name].notna().any()]
    rows = [
        [str(row["student"]), str(row["label"]), str(row["num_runs"]), *(_cell(name, row[name]) for name in names)]
        for _, row in table.iterrows()
    ]
    return ["student", "method", "runs", *map(_heading, names)], rows


def equal_cost_markdown(table: pd.DataFrame) -> str:
    """`equal_cost` for reading, accuracies in percent: for each student and measure the budget, a table and notes."""
    if table.empty:
        return "No trained run is done, or none counted its tokens and FLOPs."
    parts = []
    for (student, measure), rows in table.groupby(["student", "measure"], sort=False):
        unit = "FLOPs" if measure == "flops" else "tokens through a model"
        first = rows.iloc[0]
        parts.append(f"{student}: {first['budget']:.3g} {unit}, all of the cheapest run ({first['cheapest']}).")
        parts.append(markdown_table(EQUAL_COST_HEADER, [_equal_cost_row(row) for _, row in rows.iterrows()]))
        notes = rows[rows["note"] != ""].groupby("note", sort=False)["label"]
        if notes.ngroups:
            parts.append("\n".join(f"- {', '.join(labels)}: {note}." for note, labels in notes))
    return "\n\n".join(parts)


EQUAL_COST_HEADER = ["method", "seeds", "step", "rollout accuracy", "lowest", "highest", "score", "at step"]


def _equal_cost_row(row: pd.Series) -> list[str]:
    accuracies = [row[name] * 100 for name in ("accuracy", "accuracy_lowest", "accuracy_highest")]
    return [
        str(row["label"]),
        str(row["num_seeds"]),
        _range(row["step_lowest"], row["step_highest"]),
        *(_number(value, ".1f") for value in accuracies),
        _number(row["score"], ".1f"),
        _range(row["score_step_lowest"], row["score_step_highest"]),
    ]


def _range(low: Any, high: Any) -> str:
    if pd.isna(low):
        return "-"
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"


HEADINGS = {
    "wall_seconds": "wall time", "training_seconds": "training", "flops": "FLOPs", "macro_gain": "macro gain",
    "gain_per_pflop": "points per 10^15 FLOPs",
}  # fmt: skip


def _heading(name: str) -> str:
    text = HEADINGS.get(name, name.replace("flops_", "FLOPs ", 1).replace("_", " "))
    return f"{text.removesuffix(' mb')} (MiB)" if text.endswith(" mb") else text


def _cell(name: str, value: float) -> str:
    if name.endswith("_seconds"):
        return duration(value)
    if name == "macro_gain":
        return _number(value, "+.1f")
    if name.startswith("flops") or name == "gain_per_pflop":
        return _number(value, ".3g")
    return _number(value, ",.0f")


def _number(value: float, form: str) -> str:
    return "-" if pd.isna(value) else format(value, form)


def duration(seconds: float) -> str:
    """Seconds as 45 s, 2.5 min or 3.0 h; `-` where they are not known."""
    if pd.isna(seconds):
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
