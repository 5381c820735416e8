from __future__ import annotations

import re
from html import unescape

import pytest
from markdown_it import MarkdownIt

from reports.runs.collect import collect
from reports.sections import table_note
from reports.tables import compare, latex, markdown_table, to_csv, to_latex, to_markdown


def test_markdown_of_a_small_study(write_run, tmp_path):
    write_run("base", {"level1": 30.0, "level2": 10.0})
    write_run("grpo", {"level1": 50.0, "level2": 20.0})
    write_run("zppo", {"level1": 60.0, "level2": 20.0}, seed=0)
    write_run("zppo", {"level1": 62.0, "level2": 20.0}, seed=1)
    (table,) = compare(collect(tmp_path / "study"))
    # zppo: level1 (60 + 62) / 2 = 61, std sqrt(1 + 1) = 1.41; macro of the seeds 40 and 41: 40.5, std 0.71.
    # Delta: 61 - 50, 20 - 20, 40.5 - 35.
    assert to_markdown(table).splitlines() == [
        "| method                  |         level1 |         level2 |      macro avg | seeds |",
        "| :---------------------- | -------------: | -------------: | -------------: | ----: |",
        "| base                    |           30.0 |           10.0 |           20.0 |     1 |",
        "| grpo                    |           50.0 |       **20.0** |           35.0 |     1 |",
        "| zppo                    | **61.0** ± 1.4 | **20.0** ± 0.0 | **40.5** ± 0.7 |     2 |",
        "| delta zppo - best other |          +11.0 |           +0.0 |           +5.5 |       |",
    ]


def test_csv_is_unrounded(write_run, tmp_path):
    write_run("grpo", {"level1": 33.33333})
    write_run("zppo", {"level1": 44.44444})
    (table,) = compare(collect(tmp_path / "study"))
    assert to_csv(table).splitlines()[:3] == [
        "method,level1,level1 std,macro avg,macro avg std,seeds",
        "grpo,33.33333,,33.33333,,1",
        "zppo,44.44444,,44.44444,,1",
    ]


def test_values_that_print_alike_are_all_bold(write_run, tmp_path):
    write_run("a", {"level1": 50.04})
    write_run("b", {"level1": 49.96})
    (table,) = compare(collect(tmp_path / "study"))
    assert to_markdown(table).count("**50.0**") == 4  # level1 and macro average of both


@pytest.mark.clause("C117")
def test_delta_is_against_the_best_of_each_column(write_run, tmp_path):
    write_run("base", {"level1": 55.0, "level2": 5.0})
    write_run("grpo", {"level1": 40.0, "level2": 20.0})
    write_run("off_policy_kd", {"level1": 50.0, "level2": 15.0})
    write_run("zppo", {"level1": 45.0, "level2": 30.0})
    write_run("zppo,updates_per_step=8", {"level1": 60.0, "level2": 60.0})  # an ablation of zppo is no rival
    (table,) = compare(collect(tmp_path / "study"))
    assert table.delta is not None
    assert table.delta[0] == "delta zppo - best other"
    assert table.delta[1].tolist() == [-10.0, 10.0, 5.0]  # base; grpo; the mean 37.5 against off_policy_kd's 32.5


def test_delta_of_choice_and_without_zppo(write_run, tmp_path):
    write_run("base", {"level1": 30.0})
    write_run("grpo", {"level1": 40.0})
    scores = collect(tmp_path / "study")
    assert compare(scores)[0].delta is None
    chosen = compare(scores, ("grpo", "base"))[0].delta
    assert chosen is not None and chosen[0] == "delta grpo - base" and chosen[1]["level1"] == 10.0
    with pytest.raises(ValueError, match="no student has scores of both; labels here: base, grpo"):
        compare(scores, ("zppo", "base"))


def test_a_missing_benchmark_leaves_the_macro_average_open(write_run, tmp_path):
    write_run("base", {"level1": 30.0, "level2": 10.0})
    write_run("grpo", {"level1": 40.0})
    (table,) = compare(collect(tmp_path / "study"))
    assert to_markdown(table).splitlines()[3] == "| grpo   | **40.0** |        - |         - |     1 |"


def test_runs_of_another_protocol_are_not_compared(write_run, tmp_path):
    write_run("base", {"level1": 30.0})
    write_run("grpo", {"level1": 40.0}, seed=0)
    write_run("grpo", {"level1": 99.0}, seed=1, protocol="p2")
    (table,) = compare(collect(tmp_path / "study"))
    assert table.mean["level1"].to_dict() == {"base": 30.0, "grpo": 40.0}
    assert table.refused == (
        "grpo tiny_s seed1: evaluated on level1 by protocol p2, the others by p1: not compared, evaluate it again",
    )


def test_a_tie_of_protocols_goes_to_base(write_run, tmp_path):
    write_run("base", {"level1": 30.0}, protocol="z")
    write_run("grpo", {"level1": 40.0}, protocol="a")
    (table,) = compare(collect(tmp_path / "study"))
    assert list(table.mean.index) == ["base"]


def test_students_have_tables_of_their_own(write_run, tmp_path):
    write_run("base", {"level1": 30.0}, student="tiny_xs")
    write_run("base", {"level1": 40.0}, student="tiny_s")
    tables = compare(collect(tmp_path / "study"))
    assert [(table.student, table.mean.loc["base", "level1"]) for table in tables] == [("tiny_s", 40), ("tiny_xs", 30)]


def test_a_bar_in_a_cell_does_not_break_the_table():
    assert markdown_table(["a", "b"], [["x|y", "1"]]) == "| a    |   b |\n| :--- | --: |\n| x\\|y |   1 |"


def test_what_a_cell_says_is_no_markup():
    cells = ["x|y\\", "a\nb\x1b\u2028c", "<b>*_`[z](u)", "on_policy_kd", "**40.0**"]
    (row,) = markdown_table(["a"] * 5, [cells]).splitlines()[2:]
    assert [cell.strip() for cell in row[1:-1].replace("\\|", "/").split("|")] == [
        "x/y\\\\", "a b c", "\\<b>\\*\\_\\`\\[z](u)", "on_policy_kd", "\\*\\*40.0\\*\\*",
    ]  # fmt: skip
    html = MarkdownIt("commonmark").enable("table").render(markdown_table(["a"] * 5, [cells]))
    shown = [unescape(text) for text in re.findall("<td[^>]*>(.*?)</td>", html)]
    assert shown == ["x|y\\", "a b c", "<b>*_`[z](u)", "on_policy_kd", "**40.0**"]


def test_latex_of_what_has_another_meaning_there():
    assert latex("a|b $x_{$ <\\>\n\x00c") == (r"a\textbar{}b \$x\_\{\$ \textless{}\textbackslash{}\textgreater{} c")


def test_a_benchmark_that_could_not_be_evaluated_is_a_hole(write_run, tmp_path):
    write_run("base", {"level1": 30.0, "level2": 10.0, "level3": 5.0})
    write_run("zppo", {"level1": 60.0, "level2": 20.0, "level3": 7.0})
    for label in ("base", "zppo"):
        file = tmp_path / "study" / label / "tiny_s" / "seed0" / "eval" / "mini" / "scores.csv"
        text = file.read_text().replace("level3,LLM,5.0,1.5,200,p1", "level3,LLM,,,0,")  # nobody has it
        text = text.replace("level3,LLM,7.0,1.5,200,p1", "level3,LLM,,,0,")
        file.write_text(text.replace("level2,LLM,10.0,1.5,200,p1", "level2,LLM,,,0,"))
    (table,) = compare(collect(tmp_path / "study"))
    assert to_markdown(table).splitlines()[2:] == [
        "| base                    |     30.0 |        - |      - |         - |     1 |",
        "| zppo                    | **60.0** | **20.0** |      - |         - |     1 |",
        "| delta zppo - best other |    +30.0 |        - |      - |         - |       |",
    ]
    assert table.refused == (
        "base tiny_s seed0: no score on level2, level3 (not evaluated, see protocol.json)",
        "zppo tiny_s seed0: no score on level3 (not evaluated, see protocol.json)",
    )
    assert table.num_questions.to_dict() == {"level1": 200, "level2": 200}


def test_latex_of_a_small_study(write_run, tmp_path):
    write_run("base", {"level_1": 30.0})
    write_run("zppo", {"level_1": 60.0}, seed=0)
    write_run("zppo", {"level_1": 62.0}, seed=1)
    write_run("off_policy_kd", {"level_1": 50.0})
    (table,) = compare(collect(tmp_path / "study"))
    assert to_latex(table, "50% & more").splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{50\% \& more}",
        r"\resizebox{\linewidth}{!}{%",
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"method & level\_1 & macro avg & seeds \\",
        r"\midrule",
        r"base & 30.0 & 30.0 & 1 \\",
        r"off\_policy\_kd & 50.0 & 50.0 & 1 \\",
        r"zppo & \textbf{61.0} {\scriptsize$\pm$1.4} & \textbf{61.0} {\scriptsize$\pm$1.4} & 2 \\",
        r"\midrule",
        r"delta zppo - best other & $+11.0$ & $+11.0$ &  \\",
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]


def test_learning_rates_stand_below_the_table(write_run, tmp_path):
    write_run("base", {"level1": 30.0}, learning_rate=None)
    write_run("grpo", {"level1": 50.0}, learning_rate=1e-6)
    write_run("zppo", {"level1": 60.0}, learning_rate=1e-6)
    (table,) = compare(collect(tmp_path / "study"))
    assert table_note(table).endswith("Learning rate of all trained rows: 1e-06.")
    write_run("off_policy_kd", {"level1": 60.0}, learning_rate=2e-5)
    write_run("zppo", {"level1": 60.0}, seed=1, learning_rate=3e-6)
    (table,) = compare(collect(tmp_path / "study"))
    assert table_note(table).endswith("Learning rates: off_policy_kd 2e-05, grpo 1e-06, zppo 1e-06 and 3e-06.")


def test_rows_of_a_swept_number_are_in_its_order(write_run, tmp_path):
    for value in ("16", "4", "1"):
        write_run(f"zppo,updates_per_step={value}", {"level1": 50.0})
    for value in ("0.0001", "3e-05"):
        write_run(f"grpo,update.learning_rate={value}", {"level1": 50.0})
    (table,) = compare(collect(tmp_path / "study"))
    assert [label.rpartition("=")[2] for label in table.mean.index] == ["3e-05", "0.0001", "1", "4", "16"]


def test_columns_with_more_than_one_percent_of_malformed_verdicts_are_marked(write_run, tmp_path):
    scores = {"a": 10.0, "b": 20.0, "c": 30.0}
    # 1 of 100 is not more than 1%; 2 of 199 is, in one run of two; a column that nobody judged has no share.
    write_run("grpo", scores, judged={"a": (100, 1), "b": (199, 2), "c": (0, 0)})
    write_run("zppo", scores, judged={"a": (100, 1), "b": (200, 0), "c": (0, 0)})
    (table,) = compare(collect(tmp_path / "study"))
    assert table.malformed == {"b": 2 / 199}
    assert to_markdown(table).splitlines()[0].split() == [
        *"|",
        "method",
        *"|a|b†|c|",
        "macro",
        "avg",
        "|",
        "seeds",
        "|",
    ]
    assert table_note(table).split(". ")[1] == (
        "† More than 1% of the judge's replies were no verdicts and count as wrong (worst run: b 1.0%)."
    )
    assert r"b \textdagger{}" in to_latex(table, "x") and "†" not in to_csv(table)


def test_scores_of_an_earlier_version_do_not_say_what_was_malformed(write_run, tmp_path):
    write_run("grpo", {"a": 10.0})
    write_run("zppo", {"a": 10.0}, judged={"a": (10, 1)})
    (table,) = compare(collect(tmp_path / "study"))
    assert table.malformed == {"a": 0.1}
    (tmp_path / "study" / "zppo" / "tiny_s" / "seed0" / "eval" / "mini" / "scores.csv").write_text(
        "benchmark,family,score,stderr,n,protocol\na,LLM,10.0,1.5,200,p1\n"
    )
    (table,) = compare(collect(tmp_path / "study"))
    assert table.malformed == {} and "†" not in to_markdown(table)
