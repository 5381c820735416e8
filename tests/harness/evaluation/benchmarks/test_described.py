"""A benchmark that is a YAML file and a JSONL, in a suite of one's own, through the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from harness.app import main
from tests.support.library_tasks import write_rows

SUMS = {"name": "sums", "family": "LLM", "data": {"source": "jsonl", "path": "sums.jsonl"}}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "eval").mkdir(parents=True)
    write_rows(tmp_path / "own" / "sums.jsonl", [{"question": f"Compute {i}+1.", "answer": str(i + 1)} for i in (3, 5)])
    path = tmp_path / "own" / "sums.yaml"
    path.write_text(json.dumps(SUMS))
    return path


def test_a_suite_lists_the_file_and_its_rows_are_a_column(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("conf/eval/mine.yaml").write_text("suite: mine\nbenchmarks: [own/sums.yaml]\ntemperature: 0.0\n")
    words = [
        "eval",
        "model=tiny_xs",
        "suite=mine",
        "--config-dir",
        "conf",
        "outputs=out",
        "eval.max_response_tokens=24",
    ]
    assert main(words) == 0
    (scores,) = Path("out").rglob("scores.csv")
    (row,) = csv.DictReader(scores.open())
    assert (row["benchmark"], row["family"], row["n"]) == ("sums", "LLM", "2")
    rows = [json.loads(line) for line in (scores.parent / "rows.jsonl").read_text().splitlines()]
    assert [one["gold"] for one in rows] == ["4", "6"] and rows[0]["messages"][0]["content"].startswith("Compute 3+1.")
    (card,) = json.loads((scores.parent / "protocol.json").read_text())["cards"].values()
    assert card["dataset"] == "sums.yaml"
    capsys.readouterr()
    assert main(["eval", "--list", "--config-dir", "conf", "data_root=."]) == 0
    assert "suites of others: mine (1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"famly": "LLM"}, "has an unknown key 'famly'. Did you mean 'family'?"),
        ({"family": "Text"}, "family must be"),
        ({"data": {"source": "jsonl", "path": "gone.jsonl"}}, "gone.jsonl"),
        ({"data": {"source": "jsonl"}}, "needs a file"),
        ({"data": {"source": "jsonl", "path": "sums.jsonl", "columns": {"answer": "gold"}}}, "gold"),
        ({"name": "aime26"}, "is named aime26, as another benchmark is"),
    ],
)
def test_what_a_file_lacks_is_one_line(
    file: Path, change: dict[str, object], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(json.dumps(SUMS | change))
    assert main(["eval", "model=tiny_xs", "suite=mine", "eval.benchmarks=[own/sums.yaml]", "outputs=out"]) == 2
    said = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert len(said) == 1 and line in said[0] and not list(Path("out").rglob("responses.jsonl"))
