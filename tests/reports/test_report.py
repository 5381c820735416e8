from __future__ import annotations

import json
import random
import shutil

import pandas as pd
import pytest

from reports.report import SCORE_COLUMNS, TINY_NOTE, write_report
from reports.sections import VERDICT_NOTE


def test_report_of_a_small_study(write_run, tmp_path):
    study = tmp_path / "study"
    cost = {"time/step": 90.0, "tokens/student_generated": 1000.0, "flops/student_update": 1e9, "flops/x": 1e9}
    write_run("base", {"level1": 30.0})
    write_run("zppo", {"level1": 40.0}, accuracies=[0.1, 0.2], cost=cost)
    write_run("grpo", status="failed", error="no memory", accuracies=[0.1])
    report = write_report([study])
    assert report.folder == study / "report"
    assert {path.name for path in report.folder.iterdir() if path.suffix not in (".png", ".svg")} == {
        "report.md", "index.html", "scores.csv", "bootstrap.csv", "cost.csv", "equal_cost.csv", "significance.csv",
        "aggregates.csv", "profiles.csv", "data.csv",
        "table-tiny_s-LLM.csv", "table-tiny_s-LLM.tex",
    }  # fmt: skip
    text = (report.folder / "report.md").read_text()
    assert text.splitlines()[:21] == [
        "# study",
        "",
        "## tiny_s, LLM",
        "",
        "| method                  |   level1 | macro avg | seeds |",
        "| :---------------------- | -------: | --------: | ----: |",
        "| base                    |     30.0 |      30.0 |     1 |",
        "| zppo                    | **40.0** |  **40.0** |     1 |",
        "| delta zppo - best other |    +10.0 |     +10.0 |       |",
        "",
        "Accuracy in percent, 200 questions a benchmark; the standard error of a single score is up to 1.5.",
        "",
        "### tiny_s, LLM, against zppo",
        "",
        "| label | lead | interval |      verdict | better on | worse on | detectable | seeds |             note |",
        "| :---- | ---: | -------: | -----------: | --------: | -------: | ---------: | ----: | ---------------: |",
        "| base  |    - |        - | not compared |         - |        - |          - |     - | base has no rows |",
        "",
        VERDICT_NOTE,
        "",
        "## Leads of zppo: choice of benchmarks, these runs",
    ]
    assert "## Incomplete\n\n1 of 3 runs are in no table.\n\n- grpo tiny_s seed0: failed: no memory\n" in text
    assert TINY_NOTE in text and "![Training dynamics](dynamics.png)" in text
    assert report.text.startswith("## tiny_s, LLM\n\n| method ")
    assert report.text.endswith(f"Written: {study / 'report' / 'report.md'} and index.html")
    scores = pd.read_csv(report.folder / "scores.csv")
    assert list(scores.columns) == list(SCORE_COLUMNS)
    assert scores[
        ["study", "label", "student", "seed", "family", "benchmark", "score", "n", "card"]
    ].values.tolist() == [
        ["study", "base", "tiny_s", 0, "LLM", "level1", 30.0, 200, "p1"],
        ["study", "zppo", "tiny_s", 0, "LLM", "level1", 40.0, 200, "p1"],
    ]


def test_twice_the_same_study_gives_the_same_bytes(write_run, tmp_path):
    for label, score in (("base", 30.0), ("grpo", 40.0), ("zppo", 50.0)):
        for seed in (0, 1):
            write_run(label, {"level1": score + seed, "VLM_level1": score}, seed=seed, accuracies=[0.1, 0.2])
    first, second = (write_report([tmp_path / "study"], out=tmp_path / name).folder for name in ("a", "b"))
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert [name for name in names if (first / name).read_bytes() != (second / name).read_bytes()] == []


def test_a_large_model_has_no_note_on_tiny_ones(write_run, tmp_path):
    write_run("base", {"level1": 30.0}, student="qwen")
    assert TINY_NOTE not in write_report([tmp_path / "study"]).text


def test_a_study_of_incomplete_runs_still_has_a_report(write_run, tmp_path):
    write_run("grpo", status="interrupted")
    assert "- grpo tiny_s seed0: interrupted" in write_report([tmp_path / "study"]).text
    with pytest.raises(ValueError, match="no study folder"):
        write_report([tmp_path / "other"])


def test_refused_rows_are_in_the_report(write_run, tmp_path):
    write_run("base", {"level1": 30.0})
    write_run("grpo", {"level1": 40.0}, protocol="p2")
    assert "- grpo tiny_s seed0: evaluated on level1 by protocol p2" in write_report([tmp_path / "study"]).text


def test_several_studies_need_a_place_and_say_whose_row_it_is_where_names_meet(write_run, tmp_path):
    write_run("base", {"level1": 30.0})
    shutil.copytree(tmp_path / "study", tmp_path / "again")
    write_run("zppo", {"level1": 40.0})
    both = [tmp_path / "study", tmp_path / "again"]
    with pytest.raises(ValueError, match=r"several studies, .*: --out DIR"):
        write_report(both)
    text = write_report(both, out=tmp_path / "out").text
    assert [line.split("|")[1].strip() for line in text.splitlines()[4:7]] == ["study/base", "again/base", "study/zppo"]
    shutil.rmtree(tmp_path / "again" / "base")
    shutil.copytree(tmp_path / "study" / "zppo", tmp_path / "again" / "grpo")
    run_json = tmp_path / "again" / "grpo" / "tiny_s" / "seed0" / "run.json"
    run_json.write_text(run_json.read_text().replace('"zppo"', '"grpo"'))
    text = write_report(both, out=tmp_path / "out").text  # no name twice: no study in front
    assert [line.split("|")[1].strip() for line in text.splitlines()[4:7]] == ["base", "grpo", "zppo"]


def test_the_papers_scores_stand_beside_ones_own_but_never_in_one_column(write_run, tmp_path):
    write_run("zppo", {"aime25": 10.0}, student="qwen3_5_2b")
    text = write_report([tmp_path / "study"], with_published=True).text
    own, published = text.split("## qwen3_5_2b, LLM: as published")
    assert "| zppo   | **10.0** |" in own
    assert published.count("| zppo ") == 1 and "| grpo_replay " in published


def test_the_published_scores_have_no_folder_of_their_own():
    with pytest.raises(ValueError, match="have no folder of their own: --out DIR"):
        write_report(["published"])


@pytest.mark.slow  # with a study's they are in the test above
def test_the_published_scores_by_themselves(tmp_path):
    folder = write_report(["published"], out=tmp_path).folder
    bootstrap = pd.read_csv(folder / "bootstrap.csv")
    assert list(bootstrap.columns[:8]) == ["student", "family", "baseline", "delta", "lo", "hi", "wins", "n"]
    assert len(list(folder.glob("table-*.tex"))) == 15  # four students and the teacher, three families
    assert len(pd.read_csv(folder / "scores.csv")) == 1275


def test_an_unknown_baseline_names_the_labels(write_run, tmp_path):
    write_run("base", {"level1": 30.0})
    write_run("grpo", {"level1": 40.0})
    with pytest.raises(ValueError, match="--baseline zpo: no run is labelled so; labels here: base, grpo"):
        write_report([tmp_path / "study"], baseline="zpo")


def test_tests_are_said_in_words(write_run, tmp_path):
    rng = random.Random(0)
    for label, right in (("base", 0.2), ("grpo", 0.9), ("zppo", 0.9)):
        for seed in range(3):
            folder = write_run(label, {"level1": 100 * right}, seed=seed)
            rows = [
                {"benchmark": "level1", "question_id": str(i), "score": float(rng.random() < right)} for i in range(200)
            ]
            (folder / "eval" / "mini" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = write_report([tmp_path / "study"])
    said = {row[0]: row[3:6] for row in cells(report.text)}
    assert said.keys() == {"base", "grpo"}
    assert said["base"] == ["worse", "-", "level1"]
    assert said["grpo"] == ["not distinguishable", "-", "-"]
    turned = cells(write_report([tmp_path / "study"], baseline="grpo", out=tmp_path / "turned").text)
    assert {row[0]: row[3] for row in turned} == {"base": "worse", "zppo": "not distinguishable"}
    tests = pd.read_csv(report.folder / "significance.csv")
    assert dict(zip(tests["label"], tests["verdict"], strict=True)) == {"base": "worse", "grpo": "not distinguishable"}
    shutil.rmtree(tmp_path / "study" / "zppo" / "tiny_s" / "seed1")
    shutil.rmtree(tmp_path / "study" / "zppo" / "tiny_s" / "seed2")
    text = write_report([tmp_path / "study"]).text
    assert [row[3] for row in cells(text)] == ["one run", "one run"]
    assert [row[8] for row in cells(text)] == ["zppo has one run", "zppo has one run; seeds are not shared: unpaired"]
    assert "better" not in text.replace("better on", "") and "worse" not in text.replace("worse on", "")


def cells(text: str) -> list[list[str]]:
    """The rows of the verdict table."""
    lines = text.partition("### tiny_s, LLM, against ")[2].splitlines()[4:]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[: lines.index("")]]


def test_each_family_has_its_table_and_its_average(write_run, tmp_path):
    for label, offset in (("base", 0.0), ("zppo", 10.0)):
        write_run(
            label, {"level1": 50.0 + offset, "VLM_level1": 30.0, "VLM_level2": 20.0 + offset, "Video_level1": 5.0}
        )
    folder = write_report([tmp_path / "study"]).folder
    text = (folder / "report.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## tiny_s")] == [
        "## tiny_s, LLM",
        "## tiny_s, VLM",
        "## tiny_s, Video",
    ]
    # VLM: the mean of 30 and 30
    assert "| zppo                    |   **30.0** |   **30.0** |  **30.0** |     1 |" in text
    assert {path.name for path in folder.glob("table-*.csv")} == {
        "table-tiny_s-LLM.csv", "table-tiny_s-VLM.csv", "table-tiny_s-Video.csv",
    }  # fmt: skip


def test_scores_without_a_family_are_one_table(write_run, tmp_path):
    folder = write_run("base", {"level1": 50.0})
    (folder / "eval" / "mini" / "scores.csv").write_text("benchmark,score,stderr,n,protocol\nlevel1,50.0,1.5,200,p1\n")
    folder = write_report([tmp_path / "study"]).folder
    assert "## tiny_s\n" in (folder / "report.md").read_text() and (folder / "table-tiny_s.csv").exists()


def test_labels_that_mean_something_elsewhere_are_printed_as_they_are(write_run, tmp_path):
    """`zppo train` refuses them; folders that others wrote may have them."""
    label = "a|b $x_{$"
    for name, score, shown in (("base", 30.0, "base"), ("zppo", 40.0, label)):
        file = write_run(name, {"level1": score}, accuracies=[0.1, 0.2]) / "run.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"label": shown, "student": "tiny/xs"}))
    folder = write_report([tmp_path / "study"]).folder
    assert r"| a\|b $x\_{$ |" in (folder / "report.md").read_text()
    assert r"a\textbar{}b \$x\_\{\$ &" in (folder / "table-tiny_xs-LLM.tex").read_text()
    assert list(pd.read_csv(folder / "table-tiny_xs-LLM.csv")["method"]) == ["base", label]
    assert list(pd.read_csv(folder / "cost.csv")["label"]) == ["base", label]
