import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from reports.compare_runs import ABSENT, compare_runs, flatten

CARD = {"benchmark": "arithmetic", "decoding": {"temperature": 0.0, "top_p": 1.0}, "questions": "abc"}


@pytest.fixture
def whole_run(write_run) -> Callable[..., Path]:
    """A run folder with configuration, cards and rows; `marks` is {benchmark: marks of its questions in order}."""

    def write(
        label: str,
        marks: dict[str, list[float]],
        *,
        config: dict[str, Any] | None = None,
        card: dict[str, Any] = CARD,
        protocol: str = "p1",
        **info: Any,
    ) -> Path:
        scores = {name: 100 * sum(values) / len(values) for name, values in marks.items()}
        folder = write_run(label, scores, protocol=protocol, **info)
        (folder / "config.yaml").write_text(yaml.safe_dump({"steps": 2, "method": {"name": label}} | (config or {})))
        rows = [
            {"benchmark": name, "uid": f"eval/{name}/{i}", "score": mark}
            for name, values in marks.items()
            for i, mark in enumerate(values)
        ]
        (folder / "eval" / "mini" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "eval" / "mini" / "protocol.json").write_text(json.dumps({"cards": {protocol: card}}))
        return folder

    return write


def section(text: str, title: str) -> list[list[str]]:
    """The lines of a section, cut at two spaces and more."""
    block = next(block for block in text.split("\n\n") if block.startswith(title))
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in block.splitlines()[1:]]


def test_configuration_shows_only_what_differs(whole_run):
    a = whole_run("grpo", {"arithmetic": [1.0]}, config={"update": {"lr": 0.1, "betas": [0.9, 0.95]}, "seed": 1})
    b = whole_run("zppo", {"arithmetic": [1.0]}, config={"update": {"lr": 1, "betas": [0.9, 0.95]}, "bcq": None})
    assert section(compare_runs(a, b), "Configuration") == [
        ["A", "B"],
        ["bcq", ABSENT, "null"],  # an absent key is not the same as null
        ["method.name", '"grpo"', '"zppo"'],
        ["seed", "1", ABSENT],
        ["update.lr", "0.1", "1"],
    ]


def test_versions_and_commit(whole_run):
    a = whole_run("grpo", {"arithmetic": [1.0]}, versions={"torch": "2.1", "python": "3.11"}, git_commit="aa")
    b = whole_run("zppo", {"arithmetic": [1.0]}, versions={"torch": "2.2", "python": "3.11"}, git_commit="bb")
    rows = section(compare_runs(a, b), "Versions")
    assert rows == [["A", "B"], ["git_commit", '"aa"', '"bb"'], ["torch", '"2.1"', '"2.2"']]


def test_flips_are_paired_by_question(whole_run):
    a = whole_run("grpo", {"arithmetic": [1, 1, 0, 0, 0.5], "logic": [1, 0]})
    b = whole_run("zppo", {"arithmetic": [1, 0, 1, 1, 0.75], "logic": [1, 0]})
    assert section(compare_runs(a, b), "Scores")[1:] == [
        # 50 and 75 percent; questions 2 and 3 and the half mark are higher, question 1 is lower
        ["mini/arithmetic", "50.0", "75.0", "+25.0", "3", "1", "5"],
        ["mini/logic", "50.0", "50.0", "+0.0", "0", "0", "2"],
    ]


def test_differences_turn_round_with_the_runs(whole_run):
    a, b = whole_run("grpo", {"arithmetic": [1, 1, 0, 0]}), whole_run("zppo", {"arithmetic": [0, 1, 1, 1]})
    there, back = (section(compare_runs(*pair), "Scores")[1] for pair in ((a, b), (b, a)))
    assert there == ["mini/arithmetic", "50.0", "75.0", "+25.0", "2", "1", "4"]
    assert back == ["mini/arithmetic", "75.0", "50.0", "-25.0", "1", "2", "4"]


def test_other_cards_are_named_and_not_compared(whole_run):
    warm = CARD | {"decoding": {"temperature": 0.6, "top_p": 1.0}}
    a = whole_run("grpo", {"arithmetic": [1, 0], "logic": [0]})
    b = whole_run("zppo", {"arithmetic": [1, 1], "logic": [0]}, card=warm, protocol="p2")
    text = compare_runs(a, b)
    assert section(text, "Evaluation cards") == [
        ["mini/arithmetic, mini/logic:"],
        ["A", "B"],
        ["decoding.temperature", "0.0", "0.6"],
    ]
    assert section(text, "Scores")[1] == [
        "mini/arithmetic", "50.0", "100.0", "-", "-", "-", "-", "other evaluation card: not compared"
    ]  # fmt: skip


def test_protocol_of_version_1(whole_run):
    a, b = (whole_run(f"m{t}", {"arithmetic": [1]}, protocol=f"p{t}") for t in (0, 1))
    for t, folder in enumerate((a, b)):
        described = {"protocol": f"p{t}", "settings": {"temperature": t, "seed": 0}}
        (folder / "eval" / "mini" / "protocol.json").write_text(json.dumps(described))
    assert section(compare_runs(a, b), "Evaluation cards")[1:] == [["A", "B"], ["temperature", "0", "1"]]


def test_cards_that_are_not_there_are_known_by_their_hash(whole_run):
    a, b = whole_run("grpo", {"arithmetic": [1]}), whole_run("zppo", {"arithmetic": [1]}, protocol="p2")
    for folder in (a, b):
        (folder / "eval" / "mini" / "protocol.json").unlink()
    assert section(compare_runs(a, b), "Evaluation cards")[1] == ["only the hashes are known: p1 and p2"]


def test_holes_and_missing_benchmarks(whole_run):
    a, b = whole_run("grpo", {"arithmetic": [1], "logic": [1]}), whole_run("zppo", {"arithmetic": [1], "sets": [1]})
    file = a / "eval" / "mini" / "scores.csv"
    file.write_text("benchmark,family,score,n,protocol\narithmetic,LLM,,0,\nlogic,LLM,100,1,p1\n")
    text = compare_runs(a, b)
    assert [(row[0], row[-1]) for row in section(text, "Scores")[1:]] == [
        ("mini/arithmetic", "no score of A"),
        ("mini/logic", "no score of B"),
        ("mini/sets", "no score of A"),
    ]
    assert section(text, "Evaluation cards") == [["the same"]]


def test_cost_with_its_ratio(whole_run):
    a = whole_run("grpo", {"arithmetic": [1]}, cost={"flops/student_update": 2e12, "tokens/student_generated": 100})
    b = whole_run("zppo", {"arithmetic": [1]}, cost={"flops/student_update": 3e12, "tokens/student_generated": 500})
    rows = {row[0]: row[1:] for row in section(compare_runs(a, b), "Cost")}
    assert rows["wall_seconds"] == ["3.0 min", "3.0 min", "1.00"]
    assert rows["flops"] == ["2e+12", "3e+12", "1.50"]
    assert rows["student_tokens"] == ["100", "500", "5.00"]
    assert rows["teacher_tokens"] == ["0", "0", "-"]  # nothing has no ratio


def test_a_run_with_itself(whole_run):
    run = whole_run("grpo", {"arithmetic": [1, 0, 1]})
    text = compare_runs(run, run)
    for title in ("Configuration", "Versions", "Evaluation cards"):
        assert section(text, title) == [["the same"]]
    assert section(text, "Scores")[1][3:] == ["+0.0", "0", "0", "3"]
    assert text == compare_runs(run, run)


def test_runs_that_are_not_evaluated(write_run):
    folders = [write_run(label) for label in ("grpo", "zppo")]
    for folder in folders:
        (folder / "config.yaml").write_text("steps: 1\n")
    assert section(compare_runs(*folders), "Scores") == [["neither run is evaluated"]]


def test_no_control_characters_of_a_configuration_reach_the_terminal(whole_run):
    a = whole_run("grpo", {"arithmetic": [1]}, config={"study": "\x1b[2Jx"})
    b = whole_run("zppo", {"arithmetic": [1]}, config={"study": "y"})
    assert "\x1b" not in compare_runs(a, b)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", None, "no run in "),
        ("run.json", '{"status": "do', "cannot be read as JSON"),
        ("run.json", '{"status": "done"}', "has no 'started'"),
        ("config.yaml", None, ": no config.yaml: copy the complete run folder"),
        ("config.yaml", "a: [1", "cannot be read as YAML"),
        ("eval/mini/scores.csv", "benchmark,score\na,1\n", "has no column 'protocol'"),
        ("eval/mini/rows.jsonl", '{"uid": "a"}\n', "rows without benchmark, uid or score"),
    ],
)
def test_what_a_user_can_mend_is_one_line(whole_run, name, content, message):
    a, b = whole_run("grpo", {"arithmetic": [1]}), whole_run("zppo", {"arithmetic": [1]})
    if content is None:
        (b / name).unlink()
    else:
        (b / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        compare_runs(a, b)
    assert "\n" not in str(caught.value) and "zppo" in str(caught.value)


def test_flatten_keeps_empty_mappings():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
