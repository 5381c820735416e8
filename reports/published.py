"""The paper's printed scores in the form of the long table, to check the reports and to compare one's own with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from reports.runs.collect import BASE

STUDY = "published"
SUITE = "paper31"
PROTOCOL = "published"
TEACHER = "qwen3_5_27b"
STUDENTS = {
    "0.8B": "qwen3_5_0_8b", "2B": "qwen3_5_2b", "4B": "qwen3_5_4b", "9B": "qwen3_5_9b", "27B": TEACHER,
}  # fmt: skip
"""Name of a student by the paper's scale. The teacher has the row `base` of a scale of its own."""
LABELS = {
    "Base": BASE,
    "Off-Distill": "off_policy_kd",
    "Off-Distill†": "off_policy_kd_replay",
    "On-Distill": "on_policy_kd",
    "On-Distill†": "on_policy_kd_replay",
    "GRPO": "grpo",
    "GRPO†": "grpo_replay",
    "GRPO+Both": "grpo_both",
    "GRPO†+BCQ": "grpo_replay_bcq",
    "GRPO†+NCQ": "grpo_replay_ncq",
    "ZPPO": "zppo",
}
"""Label by the paper's name of a method, in the order of its rows."""
TABLES = {
    "main": (
        BASE, "off_policy_kd", "off_policy_kd_replay", "on_policy_kd", "on_policy_kd_replay", "grpo", "grpo_replay",
        "zppo",
    ),
    "ablation": (BASE, "grpo", "grpo_replay", "grpo_both", "grpo_replay_bcq", "grpo_replay_ncq", "zppo"),
}  # fmt: skip
"""The rows of the paper's two tables: the best other row is chosen within one."""
COLUMNS = (
    "study", "label", "method", "student", "teacher", "seed", "benchmark", "family", "score", "stderr", "n", "protocol",
    "suite", "table",
)  # fmt: skip
_FOLDER = Path(__file__).parent


def published_scores() -> pd.DataFrame:
    """The printed scores as a long table (`reports.runs.collect`) with the columns `study` and `table` added.

    Rows by scale, method and benchmark, in the paper's order; `table` has the names of the tables that the row stands
    in, a space between. Scores are in percent with one decimal. The paper prints one run, so the seed is 0, and
    neither errors nor numbers of questions: `stderr` and `n` are NaN. Off- and on-policy distillation without replay
    have the family VLM only.
    """
    scores = pd.read_csv(_FOLDER / "published_scores.csv")
    names = published_benchmarks()["name"]
    label = scores["method"].map(LABELS)
    table = pd.DataFrame({
        "study": STUDY,
        "label": label,
        "method": label,
        "student": scores["scale"].map(STUDENTS),
        "teacher": label.map(lambda name: None if name == BASE else TEACHER),
        "seed": 0,
        "benchmark": scores["benchmark"].map(names),
        "family": scores["family"],
        "score": scores["score"],
        "stderr": np.nan,
        "n": np.nan,
        "protocol": PROTOCOL,
        "suite": SUITE,
        "table": label.map(lambda name: " ".join(table for table, labels in TABLES.items() if name in labels)),
    })  # fmt: skip
    ranks = {
        "student": _ranks(STUDENTS.values()), "label": _ranks(LABELS.values()), "benchmark": _ranks(names),
    }  # fmt: skip
    table = table.sort_values(list(ranks), key=lambda column: column.map(ranks[str(column.name)]), kind="stable")
    return table[list(COLUMNS)].reset_index(drop=True)


def published_benchmarks() -> pd.DataFrame:
    """The 31 benchmarks in the paper's order, by the paper's label: `name` (of the evaluation's columns), `family`."""
    return pd.read_csv(_FOLDER / "published_benchmarks.csv", index_col="label")


def _ranks(names: Iterable[str]) -> dict[str, int]:
    return {name: rank for rank, name in enumerate(names)}
