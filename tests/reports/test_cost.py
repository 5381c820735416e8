import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports import cost
from reports.runs.collect import collect, find_runs

SCORES = {"arithmetic": 50.0, "logic": 70.0, "VLM_chart": 40.0}


@pytest.fixture
def trained(write_run) -> Callable[..., Path]:
    """A run folder with metrics; `steps` are (flops of the student, of the teacher, tokens, accuracy, MiB)."""

    def write(label: str, steps: list[tuple[float, float, float, float | None, float]], **options: Any) -> Path:
        rows = []
        for i, (student, teacher, tokens, accuracy, mb) in enumerate(steps):
            row = {"step": i + 1, "flops/student_update": student, "flops/teacher_generation": teacher}
            row |= {"tokens/student_generated": tokens, "memory/resident_mb": mb, "time/step": 2.0}
            rows.append(row | ({} if accuracy is None else {"rollout/accuracy": accuracy}))
        names = ("flops/student_update", "flops/teacher_generation", "tokens/student_generated", "time/step")
        total = {name: sum(row[name] for row in rows) for name in names}
        folder = write_run(label, options.pop("scores", SCORES), cost=total, **options)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return write


def study(tmp_path: Path) -> list:
    return find_runs(tmp_path / "study")


def row_of(table: pd.DataFrame, label: str, measure: str | None = None) -> pd.Series:
    rows = table[table["label"] == label]
    rows = rows if measure is None else rows[rows["measure"] == measure]
    assert len(rows) == 1
    return rows.iloc[0]


def write_eval(folder: Path, step: int, score: float, protocol: str = "p1") -> None:
    file = folder / "eval" / "mini" / f"step-{step:06d}" / "scores.csv"
    file.parent.mkdir(parents=True)
    lines = [f"{name},{'VLM' if '_' in name else 'LLM'},{score},1,200,{protocol}\n" for name in SCORES]
    file.write_text("benchmark,family,score,stderr,n,protocol\n" + "".join(lines))


def test_means_over_runs(trained, tmp_path):
    trained("grpo", [(2e12, 0, 100, 0.5, 900), (4e12, 0, 120, 0.6, 1200), (4e12, 0, 100, 0.6, 1000)])
    trained("grpo", [(2e12, 1e12, 80, 0.5, 1000)], seed=1, finished="2026-01-01T10:01:00+00:00")
    row = row_of(cost.cost_table(study(tmp_path)), "grpo")
    assert row["num_runs"] == 2
    assert row["wall_seconds"] == 120  # three minutes and one
    assert row["training_seconds"] == 4  # three steps of 2 s and one
    assert row["student_tokens"] == 200  # 320 and 80
    assert row["teacher_tokens"] == 0  # tokens are counted, and none are a teacher's
    assert row["flops_student_update"] == 6e12  # 10e12 and 2e12
    assert row["flops_teacher_generation"] == 0.5e12
    assert row["flops"] == row["flops_student_update"] + row["flops_teacher_generation"]
    assert row["peak_resident_mb"] == 1100  # 1200, not the last step's 1000, and 1000


def test_gain_is_the_mean_of_the_family_gains(trained, write_run, tmp_path):
    write_run("base", {"arithmetic": 20.0, "logic": 30.0, "VLM_chart": 10.0})
    write_run("base", {"arithmetic": 40.0, "logic": 50.0, "VLM_chart": 10.0}, seed=1)
    trained("grpo", [(3e15, 1e15, 1, 0.5, 1)])
    row = row_of(cost.cost_table(study(tmp_path), collect(tmp_path / "study")), "grpo")
    # LLM: (50 - 30 + 70 - 40) / 2 = 25; VLM: 40 - 10 = 30; their mean, not that of the three benchmarks.
    assert row["macro_gain"] == 27.5
    assert row["gain_per_pflop"] == pytest.approx(27.5 / 4)
    base = row_of(cost.cost_table(study(tmp_path), collect(tmp_path / "study")), "base")
    assert base[["flops", "macro_gain"]].isna().all()


@pytest.mark.parametrize("base", [None, {"arithmetic": 20.0, "VLM_chart": 10.0}, "other protocol"])
def test_no_gain_without_the_same_card_of_base(trained, write_run, tmp_path, base):
    if base == "other protocol":
        write_run("base", SCORES, protocol="p2")
    elif base is not None:
        write_run("base", base)
    trained("grpo", [(1e15, 0, 1, 0.5, 1)])
    row = row_of(cost.cost_table(study(tmp_path), collect(tmp_path / "study")), "grpo")
    assert math.isnan(row["macro_gain"]) and math.isnan(row["gain_per_pflop"])


def test_what_one_run_lacks_is_a_hole_of_the_row(trained, write_run, tmp_path):
    trained("grpo", [(1e12, 0, 100, 0.5, 900)])
    write_run("grpo", SCORES, seed=1)
    row = row_of(cost.cost_table(study(tmp_path)), "grpo")
    assert row["num_runs"] == 2 and row["wall_seconds"] == 180
    assert row[["flops", "student_tokens", "teacher_tokens", "peak_resident_mb"]].isna().all()


def test_only_runs_that_are_done_count(trained, tmp_path):
    trained("grpo", [(1e12, 0, 100, 0.5, 900)])
    trained("zppo", [(1e9, 0, 1, 0.5, 900)], status="failed", error="out of memory")
    assert list(cost.cost_table(study(tmp_path))["label"]) == ["grpo"]
    assert set(cost.cost_curves(study(tmp_path))["label"]) == {"grpo"}
    assert set(cost.equal_cost(study(tmp_path), collect(tmp_path / "study"))["cheapest"]) == {"grpo"}


def test_a_step_that_could_not_be_graded_leaves_the_accuracy_of_the_others(trained, tmp_path):
    trained("grpo", [(1e12, 0, 100, 0.2, 900), (1e12, 0, 100, None, 900), (1e12, 0, 100, 0.4, 900)])
    row = row_of(cost.equal_cost(study(tmp_path), collect(tmp_path / "study")), "grpo", "flops")
    assert row["accuracy"] == pytest.approx(0.3) and cost.NO_ROLLOUTS not in row["note"]


def test_no_run_is_done(trained, tmp_path):
    trained("zppo", [(1e9, 0, 1, 0.5, 900)], status="running", finished=None)
    runs, scores = study(tmp_path), collect(tmp_path / "study")
    assert cost.cost_table(runs, scores).empty and cost.equal_cost(runs, scores).empty
    assert cost.to_markdown(cost.cost_table(runs, scores)) == "No run is done."
    assert "No trained run" in cost.equal_cost_markdown(cost.equal_cost(runs, scores))


def test_curves_add_up_to_the_total(trained, tmp_path):
    folder = trained("grpo", [(2, 1, 10, 0.5, 1), (3, 0, 20, 0.75, 1)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "flops/st')  # a run that was killed while it wrote
    curve = cost.cost_curves(study(tmp_path))
    assert list(curve["cumulative_flops"]) == [3, 6]
    assert list(curve["cumulative_tokens"]) == [10, 30]
    assert list(curve["accuracy"]) == [0.5, 0.75]


def test_every_label_is_cut_at_the_budget_of_the_cheapest(trained, tmp_path):
    trained("grpo", [(10, 0, 50, 0.1 * i, 1) for i in range(1, 7)])  # 60 FLOPs, 300 tokens
    for seed, accuracies in ((0, [0.2, 0.4, 0.9]), (1, [0.4, 0.6, 0.9])):  # 75 FLOPs, 600 tokens
        trained("zppo", [(20, 5, 200, a, 1) for a in accuracies], seed=seed)
    table = cost.equal_cost(study(tmp_path), collect(tmp_path / "study"))
    assert set(table["cheapest"]) == {"grpo"}
    zppo = row_of(table, "zppo", "flops")
    assert (zppo["budget"], zppo["num_seeds"]) == (60, 2)
    assert (zppo["step_lowest"], zppo["step_highest"]) == (2, 2)  # 25, 50 | 75
    # Seeds: (0.2 + 0.4) / 2 = 0.3 and (0.4 + 0.6) / 2 = 0.5; the third step, beyond the budget, is in neither.
    assert list(zppo[["accuracy", "accuracy_lowest", "accuracy_highest"]]) == pytest.approx([0.4, 0.3, 0.5])
    assert math.isnan(zppo["score"]) and zppo["note"] == cost.ONLY_ROLLOUTS
    assert row_of(table, "zppo", "tokens")["step_highest"] == 1  # 200 | 400
    grpo = row_of(table, "grpo", "flops")
    assert grpo["step_lowest"] == 6
    assert grpo["accuracy"] == pytest.approx(0.4)  # the last five of 0.1 ... 0.6
    # LLM (50 + 70) / 2 = 60, VLM 40: their mean is 50, by the evaluation after the last step.
    assert (grpo["score"], grpo["score_step_lowest"], grpo["note"]) == (50, 6, "")


def test_last_evaluation_within_the_budget(trained, tmp_path):
    trained("grpo", [(10, 0, 1, 0.5, 1)] * 4)
    folder = trained("zppo", [(10, 3, 1, 0.5, 1)] * 6)  # 39 | 52: three steps
    for step, score in ((1, 11), (2, 22), (4, 44)):
        write_eval(folder, step, score)
    zppo = row_of(cost.equal_cost(study(tmp_path), collect(tmp_path / "study")), "zppo", "flops")
    assert (zppo["step_lowest"], zppo["score"], zppo["score_step_lowest"]) == (3, 22, 2)


def test_scores_of_other_cards_are_not_compared(trained, tmp_path):
    for label in ("grpo", "grpo_both"):
        trained(label, [(10, 0, 1, 0.5, 1)])
    trained("zppo", [(10, 0, 1, 0.5, 1)], protocol="p2")
    table = cost.equal_cost(study(tmp_path), collect(tmp_path / "study"))
    assert row_of(table, "grpo_both", "flops")["score"] == 50
    zppo = row_of(table, "zppo", "flops")
    assert math.isnan(zppo["score"]) and zppo["note"] == cost.OTHER_CARDS


def test_a_benchmark_without_a_score_leaves_no_macro_average(trained, tmp_path):
    trained("grpo", [(10, 0, 1, 0.5, 1)], scores={"arithmetic": 50.0, "logic": math.nan})
    grpo = row_of(cost.equal_cost(study(tmp_path), collect(tmp_path / "study")), "grpo", "flops")
    assert math.isnan(grpo["score"]) and grpo["note"] == cost.HOLES


def test_what_samples_nothing_sets_no_budget(trained, tmp_path):
    trained("sft", [(1, 0, 0, None, 1)])
    trained("grpo", [(10, 0, 1, 0.5, 1)])
    table = cost.equal_cost(study(tmp_path), collect(tmp_path / "study"))
    assert row_of(table, "sft", "flops")["budget"] == 10
    assert row_of(table, "sft", "flops")["note"] == cost.NO_ROLLOUTS
    assert row_of(table, "sft", "flops")["score"] == 50


def test_first_step_over_the_budget(trained, tmp_path):
    trained("grpo", [(10, 0, 1, 0.5, 1)])
    trained("zppo", [(30, 0, 1, 0.5, 1)])
    zppo = row_of(cost.equal_cost(study(tmp_path), collect(tmp_path / "study")), "zppo", "flops")
    assert zppo["note"] == cost.TOO_DEAR
    assert zppo[["step_lowest", "accuracy", "score"]].isna().all()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.floats(1, 1e3), min_size=1, max_size=6), min_size=2, max_size=4))
def test_no_label_spends_more_than_the_budget(tmp_path_factory, costs):
    folder = tmp_path_factory.mktemp("study")
    for i, flops in enumerate(costs):
        run = folder / f"m{i}" / "s" / "seed0"
        run.mkdir(parents=True)
        info = {"status": "done", "label": f"m{i}", "method": "grpo", "student": "s", "seed": 0, "cost": {}}
        (run / "run.json").write_text(json.dumps(info))
        rows = [{"step": k + 1, "flops/a": f, "rollout/accuracy": 0.5} for k, f in enumerate(flops)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = cost.equal_cost(find_runs(folder), collect(folder))
    for i, flops in enumerate(costs):
        row = row_of(table, f"m{i}", "flops")
        step = 0 if pd.isna(row["step_lowest"]) else int(row["step_lowest"])
        spent = pd.Series(flops).cumsum()
        assert step == 0 or spent[step - 1] <= row["budget"]
        assert step == len(flops) or spent[step] > row["budget"]


def test_text_is_for_reading_and_the_same_twice(trained, write_run, tmp_path):
    write_run("base", dict.fromkeys(SCORES, 10.0))
    trained("grpo", [(2e15, 0, 1000, 0.5, 900)] * 2)
    runs, scores = study(tmp_path), collect(tmp_path / "study")
    text = cost.to_markdown(cost.cost_table(runs, scores))
    header, _, base, grpo = ([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines())
    assert header[:5] == ["student", "method", "runs", "wall time", "training"]
    assert dict(zip(header, base, strict=True))["FLOPs"] == "-"
    cells = dict(zip(header, grpo, strict=True))
    assert (cells["wall time"], cells["student tokens"], cells["FLOPs"]) == ("3.0 min", "2,000", "4e+15")
    assert (cells["macro gain"], cells["points per 10^15 FLOPs"]) == ("+40.0", "10")  # 50 - 10, by 4e15 FLOPs
    assert cells["peak resident (MiB)"] == "900"
    assert cost.to_csv(cost.cost_table(runs, scores)) == cost.to_csv(cost.cost_table(study(tmp_path), scores))
    equal = cost.equal_cost_markdown(cost.equal_cost(runs, scores))
    assert equal.startswith("tiny_s: 4e+15 FLOPs, all of the cheapest run (grpo).\n\n| method")
    assert "| 50.0 |" in equal.replace("  ", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119, "119 s"), (120, "2.0 min"), (7199, "120.0 min"), (7200, "2.0 h"), (math.nan, "-")],
)
def test_duration(seconds, text):
    assert cost.duration(seconds) == text
