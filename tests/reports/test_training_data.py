from __future__ import annotations

import json

import pytest

from reports.runs.collect import find_runs
from reports.training_data import training_data


def test_what_a_label_was_trained_on(write_run, tmp_path):
    steps = [
        {"group/num_plain": 4, "group/num_student": 8, "group/all_right_frac": 0.5, "group/all_wrong_frac": 0.25},
        {"group/num_plain": 6, "group/num_student": 2, "group/all_right_frac": 0.0, "group/all_wrong_frac": 1.0},
    ]
    trained = {"train/num_samples": 10, "train/num_tokens": 100}
    for label, more in (("grpo", {}), ("zppo", {"tokens/teacher_generated": 7})):
        run = write_run(label, {"a": 1.0})
        lines = [json.dumps({"step": i + 1, **step, **trained, **more}) + "\n" for i, step in enumerate(steps)]
        (run / "metrics.jsonl").write_text("".join(lines))
    old = write_run("sft", {"a": 1.0})
    (old / "metrics.jsonl").write_text(json.dumps({"step": 1, "group/num_plain": 3, "group/num_student": 3, **trained}))
    write_run("base", {"a": 1.0})
    table = training_data(find_runs(tmp_path / "study")).set_index("label")
    assert list(table.index) == ["sft", "grpo", "zppo"]
    # All right: 4 of 8 and 0 of 2 groups; all wrong: 2 of 8 and 2 of 2.
    assert table.loc["grpo", ["questions", "all_right", "all_wrong"]].tolist() == pytest.approx([10, 40, 40])
    assert table["teacher_tokens"].to_dict() == {"sft": 0, "grpo": 0, "zppo": 14}
    assert table.loc["grpo", ["trained_samples", "trained_tokens"]].tolist() == [20, 200]
    assert table["all_right"].isna().to_dict() == {"sft": True, "grpo": False, "zppo": False}
