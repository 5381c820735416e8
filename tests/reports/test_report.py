from __future__ import annotations

import itertools

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from reports.collect import find_runs
from reports.figures import draw_curves, load_metrics, spread
from reports.report import TINY_NOTE, cost_table, report_command, write_report


def test_report_of_a_small_study(write_run, tmp_path):
    study = tmp_path / "study"
    cost = {"time/step": 90.0, "tokens/student_generated": 1000.0, "flops/student_update": 1e9, "flops/x": 1e9}
    write_run("base", {"level1": 30.0})
    write_run("grpo", {"level1": 40.0}, accuracies=[0.1, 0.2], cost=cost)
    write_run("zppo", status="failed", error="no memory", accuracies=[0.1])
    file = write_report(study)
    assert file == study / "report" / "report.md"
    assert {path.name for path in file.parent.iterdir()} == {
        "report.md",
        "scores.csv",
        "table-tiny_s-LLM.csv",
        "curves.png",
    }
    assert file.read_text().splitlines() == [
        "# study",
        "",
        "## tiny_s, LLM",
        "",
        "| method |   level1 | macro avg | seeds |",
        "| :----- | -------: | --------: | ----: |",
        "| base   |     30.0 |      30.0 |     1 |",
        "| grpo   | **40.0** |  **40.0** |     1 |",
        "",
        "Accuracy in percent, 200 questions a benchmark; the standard error of a single score is up to 1.5.",
        "",
        "## Incomplete",
        "",
        "1 of 3 runs are in no table.",
        "",
        "- zppo tiny_s seed0: failed: no memory",
        "",
        TINY_NOTE,
        "",
        "## Training",
        "",
        "![Training curves](curves.png)",
        "",
        "Lines are means over the seeds that reached the step; bands reach from the lowest to the highest.",
        "",
        "## Cost",
        "",
        "Means over the runs of a row.",
        "",
        "| student | method | runs | wall time | training | student tokens | FLOPs |",
        "| :------ | :----- | ---: | --------: | -------: | -------------: | ----: |",
        "| tiny_s  | base   |    1 |   3.0 min |        - |              - |     - |",
        "| tiny_s  | grpo   |    1 |   3.0 min |     90 s |          1,000 | 2e+09 |",
    ]
    assert len(pd.read_csv(file.parent / "scores.csv")) == 2


def test_command_returns_tables_and_place(write_run, tmp_path):
    write_run("base", {"level1": 30.0}, student="qwen")
    text = report_command(str(tmp_path / "study"))
    assert text.startswith("## qwen, LLM\n\n| method |")
    assert text.endswith(f"Written: {tmp_path / 'study' / 'report' / 'report.md'}")
    assert TINY_NOTE not in text


def test_a_study_of_incomplete_runs_still_has_a_report(write_run, tmp_path):
    write_run("grpo", status="interrupted")
    assert "- grpo tiny_s seed0: interrupted" in write_report(tmp_path / "study").read_text()
    assert cost_table(find_runs(tmp_path / "study")) == "No run is done."
    with pytest.raises(ValueError, match="no study folder"):
        write_report(tmp_path / "other")


def test_refused_rows_are_in_the_report(write_run, tmp_path):
    write_run("base", {"level1": 30.0})
    write_run("grpo", {"level1": 40.0}, protocol="p2")
    assert "- grpo tiny_s seed0: evaluated on level1 by protocol p2" in write_report(tmp_path / "study").read_text()


def test_metrics_keep_whole_lines_only(write_run, tmp_path):
    folder = write_run("grpo", accuracies=[0.1, 0.2])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rollout/acc')
    assert load_metrics(find_runs(tmp_path / "study"))["step"].tolist() == [1, 2]


def test_curves_have_ink_in_every_method_colour(write_run, tmp_path):
    for label, level in (("grpo", 0.2), ("zppo", 0.6)):
        for seed in (0, 1):
            write_run(label, accuracies=[level, level + 0.1 * seed, level], seed=seed)
    assert draw_curves(load_metrics(find_runs(tmp_path / "study")), tmp_path / "curves.png")
    image = (imread(tmp_path / "curves.png")[..., :3] * 255).round()
    for colour in ([0x00, 0x72, 0xB2], [0xD5, 0x5E, 0x00]):  # the first two of the palette
        assert (image == colour).all(axis=-1).sum() > 500


def test_no_figure_without_training(write_run, tmp_path):
    write_run("base", {"level1": 30.0})
    assert not draw_curves(load_metrics(find_runs(tmp_path / "study")), tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_spread_of_equal_and_of_distant_places():
    # Two at 0.5: centred around it, 0.1 apart. The third is far enough and stays.
    assert spread([0.5, 0.5, 0.9], 0.1) == pytest.approx([0.45, 0.55, 0.9])


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), max_size=8).map(sorted))
def test_spread_keeps_order_gap_and_mean(places):
    spaced = spread(places, 0.1)
    assert len(spaced) == len(places)
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(spaced))
    assert sum(spaced) == pytest.approx(sum(places), abs=1e-9)


def test_each_family_has_its_table_and_its_average(write_run, tmp_path):
    for label, offset in (("base", 0.0), ("zppo", 10.0)):
        write_run(
            label, {"level1": 50.0 + offset, "VLM_level1": 30.0, "VLM_level2": 20.0 + offset, "Video_level1": 5.0}
        )
    report = write_report(tmp_path / "study")
    text = report.read_text()
    assert [line for line in text.splitlines() if line.startswith("## tiny_s")] == [
        "## tiny_s, LLM",
        "## tiny_s, VLM",
        "## tiny_s, Video",
    ]
    assert "| zppo   |   **30.0** |   **30.0** |  **30.0** |     1 |" in text  # VLM: the mean of 30 and 30
    assert {path.name for path in report.parent.glob("table-*")} == {
        "table-tiny_s-LLM.csv", "table-tiny_s-VLM.csv", "table-tiny_s-Video.csv",
    }  # fmt: skip


def test_scores_without_a_family_are_one_table(write_run, tmp_path):
    folder = write_run("base", {"level1": 50.0})
    (folder / "eval" / "mini" / "scores.csv").write_text("benchmark,score,stderr,n,protocol\nlevel1,50.0,1.5,200,p1\n")
    report = write_report(tmp_path / "study")
    assert "## tiny_s\n" in report.read_text() and (report.parent / "table-tiny_s.csv").exists()
