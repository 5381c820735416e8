from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import reports.published
from reports.bootstrap import bootstrap_table
from reports.published import COLUMNS, TABLES, published_benchmarks, published_scores
from reports.tables import compare

REPO = Path(reports.published.__file__).parents[1]
PAPER = {label: name for name, label in reports.published.LABELS.items()}
SCALE = {student: scale for scale, student in reports.published.STUDENTS.items()}


def printed() -> dict[tuple[str, str, str], dict[str, float]]:
    """(scale, method, family) to scores by benchmark, straight from the file."""
    scores: dict[tuple[str, str, str], dict[str, float]] = {}
    with (REPO / "reports" / "published_scores.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            scores.setdefault((row["scale"], row["method"], row["family"]), {})[row["benchmark"]] = float(row["score"])
    return scores


def test_every_printed_score_has_a_row():
    long, names = published_scores(), published_benchmarks()["name"]
    assert tuple(long.columns) == COLUMNS
    # VLM: 4 scales x 11 rows x 16; LLM and Video: 4 x 9 x (10 + 5); the teacher: 31.
    assert len(long) == 4 * 11 * 16 + 4 * 9 * 15 + 31 == 1275
    found = {(row.student, row.label, row.benchmark): row.score for row in long.itertuples()}
    assert found == {
        (reports.published.STUDENTS[scale], reports.published.LABELS[method], names[benchmark]): score
        for (scale, method, _), scores in printed().items()
        for benchmark, score in scores.items()
    }


def test_rows_stand_in_the_order_of_the_paper():
    long = published_scores()
    assert list(dict.fromkeys(long["student"])) == [
        "qwen3_5_0_8b", "qwen3_5_2b", "qwen3_5_4b", "qwen3_5_9b", "qwen3_5_27b"
    ]  # fmt: skip
    assert list(dict.fromkeys(long["label"])) == [
        "base", "off_policy_kd", "off_policy_kd_replay", "on_policy_kd", "on_policy_kd_replay", "grpo", "grpo_replay",
        "grpo_both", "grpo_replay_bcq", "grpo_replay_ncq", "zppo",
    ]  # fmt: skip
    first = long[(long["student"] == "qwen3_5_2b") & (long["label"] == "zppo")]
    assert first["benchmark"].tolist() == published_benchmarks()["name"].tolist()
    assert long["teacher"].isna().equals(long["label"] == "base")


def test_names_are_those_of_the_evaluation_and_the_registry():
    with (REPO / "harness" / "evaluation" / "benchmarks" / "columns.csv").open(encoding="utf-8") as file:
        columns = [(row["label"], row["name"], row["family"]) for row in csv.DictReader(file)]
    assert list(published_benchmarks().reset_index().itertuples(index=False, name=None)) == columns
    labels = set(published_scores()["label"])
    assert all((REPO / "conf" / "method" / f"{label}.yaml").exists() for label in labels)
    students = set(published_scores()["student"]) - {reports.published.TEACHER}
    assert all((REPO / "conf" / "student" / f"{student}.yaml").exists() for student in students)


def test_macro_averages_by_hand():
    macro = published_scores().groupby(["student", "family", "label"])["score"].mean()
    # GRPO at 0.8B, LLM: 0 + 0 + 53.9 + 20 + 3.2 + 5.1 + 59.4 + 44.8 + 64.5 + 19.7 = 270.6, ten benchmarks.
    assert macro["qwen3_5_0_8b", "LLM", "grpo"] == pytest.approx(27.06)
    # ZPPO at 9B, Video: 74.2 + 71.7 + 70.2 + 72.8 + 82.1 = 371.0, five.
    assert macro["qwen3_5_9b", "Video", "zppo"] == pytest.approx(74.2)
    # Base at 0.8B, VLM: 65.6 + 6.7 + 54.3 + 17.8 + 67.9 + 68.6 + 43.5 + 16.4 + 60.7 + 26.8 + 53.2 + 40 + 17 + 20.5
    # + 42.8 + 54.4 = 656.2, sixteen.
    assert macro["qwen3_5_0_8b", "VLM", "base"] == pytest.approx(41.0125)


def test_mean_gains_over_base_are_the_printed_ones():
    # The paper's teacher ablation: mean of the three family gains with the 27B teacher, +7.2 at 0.8B and +4.3 at 2B.
    table = bootstrap_table(published_scores()).set_index(["student", "baseline"])["delta"]
    assert table["qwen3_5_0_8b", "base"].mean() == pytest.approx(7.2, abs=0.1)
    assert table["qwen3_5_2b", "base"].mean() == pytest.approx(4.3, abs=0.1)


PRINTED_DELTAS = {
    ("qwen3_5_0_8b", "VLM"): "5.3 4.1 4.0 7.5 2.1 2.9 8.2 8.3 4.9 7.1 2.4 1.2 1.2 7.2 1.1 9.2 4.9",
    ("qwen3_5_2b", "VLM"): "1.5 4.2 0.9 6.8 0.8 1.5 3.2 7.1 1.2 3.6 3.1 2.4 0.8 1.7 3.5 1.9 2.8",
    ("qwen3_5_0_8b", "LLM"): "0.0 0.0 3.1 16.9 1.5 3.5 3.1 4.6 3.9 7.8 4.4",
    ("qwen3_5_2b", "LLM"): "0.0 6.7 1.6 4.1 0.9 10.2 1.0 0.9 1.5 3.3 3.1",
    ("qwen3_5_0_8b", "Video"): "1.2 3.1 1.7 1.9 3.9 2.3",
    ("qwen3_5_2b", "Video"): "2.3 1.0 1.2 1.3 0.5 1.3",
}
"""The delta rows of Tables 1 and 2, their average last."""


@pytest.mark.clause("C117")
@pytest.mark.parametrize(("student", "family"), PRINTED_DELTAS)
def test_delta_rows_are_the_printed_ones(student, family):
    scores = published_scores()
    scores = scores[(scores["student"] == student) & (scores["family"] == family)]
    (table,) = compare(scores[scores["label"].isin(TABLES["main"])].assign(note=""))
    assert table.delta is not None
    printed = [float(value) for value in PRINTED_DELTAS[student, family].split()]
    assert table.delta[1].tolist()[:-1] == pytest.approx(printed[:-1], abs=1e-6)
    assert table.delta[1].tolist()[-1] == pytest.approx(printed[-1], abs=0.11)  # their averages are rounded ones


@pytest.mark.clause("C116")
def test_best_is_chosen_within_its_table():
    table = bootstrap_table(published_scores())
    best = table[(table["baseline"] == "best") & (table["student"] == "qwen3_5_4b")]
    assert {(row[0], row[1]): row[2] for row in best[["family", "table", "is"]].to_numpy().tolist()} == {
        ("VLM", "main"): "grpo_replay", ("VLM", "ablation"): "grpo_replay_ncq",
        ("LLM", "main"): "grpo_replay", ("LLM", "ablation"): "grpo_replay_ncq",
        ("Video", "main"): "base", ("Video", "ablation"): "grpo_replay_ncq",
    }  # fmt: skip


def test_baselines_share_a_table_with_the_subject():
    table = bootstrap_table(published_scores(), "grpo_both")
    assert set(table["baseline"]) == {*TABLES["ablation"], "best"} - {"grpo_both"}
    assert set(table.loc[table["baseline"] == "best", "table"]) == {"ablation"}


ROWS = sorted({label for labels in TABLES.values() for label in labels})


FAST = ("grpo_both", "off_policy_kd_replay", "zppo")
"""A subject of one table, of another, and of both."""


@pytest.mark.clause("C114", "C115")
@pytest.mark.parametrize("subject", FAST)
def test_pairs_against_a_loop(subject):
    assert_pairs_are_those_of_a_loop(subject)


@pytest.mark.slow
@pytest.mark.parametrize("subject", [row for row in ROWS if row not in FAST])
def test_all_other_pairs_against_a_loop(subject):
    assert_pairs_are_those_of_a_loop(subject)


def assert_pairs_are_those_of_a_loop(subject):
    table = bootstrap_table(published_scores(), subject)
    pairs = table[table["baseline"] != "best"]
    others = {label for labels in TABLES.values() if subject in labels for label in labels} - {subject}
    scores, names = printed(), published_benchmarks()["name"]
    blocks = [(scale, family) for scale, method, family in scores if method == PAPER[subject]]
    expected_pairs = {
        (scale, family, label)
        for scale, family in blocks
        for label in others
        if (scale, PAPER[label], family) in scores
    }
    assert {(SCALE[row.student], row.family, row.baseline) for row in pairs.itertuples()} == expected_pairs
    for row in pairs.itertuples():
        scale = SCALE[row.student]
        ours, theirs = scores[scale, PAPER[subject], row.family], scores[scale, PAPER[row.baseline], row.family]
        deltas = [round(ours[name] - theirs[name], 1) for name in sorted(ours, key=lambda label: names[label])]
        delta, lo, hi, wins = loop(deltas)
        assert [row.delta, row.lo, row.hi] == pytest.approx([delta, lo, hi])
        assert (row.wins, row.n) == (wins, len(ours))


def loop(deltas: list[float]) -> tuple[float, float, float, int]:
    """The bootstrap in plain Python, of the draws of the same seed."""
    num = len(deltas)
    means = []
    for draw in DRAWS[num]:
        total = 0.0
        for position in draw:
            total += deltas[position]
        means.append(total / num)
    means.sort()
    lo, hi = (percentile(means, share) for share in (0.025, 0.975))
    return sum(deltas) / num, lo, hi, sum(delta > 0 for delta in deltas)


def percentile(values: list[float], share: float) -> float:
    """Of sorted values, linear between neighbours."""
    position = share * (len(values) - 1)
    below = int(position)
    return values[below] + (position - below) * (values[min(below + 1, len(values) - 1)] - values[below])


DRAWS = {num: np.random.default_rng(0).integers(num, size=(10_000, num)).tolist() for num in (5, 10, 16)}
