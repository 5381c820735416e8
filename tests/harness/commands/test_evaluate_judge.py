"""`zppo eval` with a judge: one that dies, one that is silent, one whose replies are no verdicts."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pandas as pd
import pytest

from harness.app import main
from reports.runs.answers import read_answers
from reports.runs.collect import collect, find_runs
from reports.sections import comparison_section
from reports.tables import compare
from tests.support.http_server import Body, Fault, LoopbackServer, running
from tests.support.judge_server import make_server, saying, serve

FIXTURES = Path(__file__).parents[2] / "fixtures" / "benchmarks"


def scores(folder: Path) -> dict[str, dict[str, str]]:
    table = pd.read_csv(folder / "scores.csv", dtype=str, keep_default_na=False)
    return {str(row["benchmark"]): row for row in table.to_dict("records")}


JUDGED = ["model=tiny_xs", "suite=paper31", f"data_root={FIXTURES}", "eval.max_response_tokens=8", "study=judged",
          "eval.judge.retries=0", "eval.judge.concurrency=1"]  # fmt: skip


def dying(after: int) -> LoopbackServer:
    """A judge that answers so many requests, then closes its door in the middle of the next one."""

    def plan(number: int, body: Body) -> Fault | None:
        if number < after:
            return None
        server.shutdown()
        server.socket.close()
        return Fault(drop=True)

    server = make_server(plan=plan)
    return server


def test_a_judge_that_dies_in_the_middle_leaves_holes_that_a_later_one_fills(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    words = ["eval", *JUDGED, "eval.columns=[infovqa,aime26,mmlu]", f"outputs={tmp_path}"]
    with running(dying(after=1)) as server:
        assert main([*words, f"eval.judge.url={server.url}"]) == 0
    study = tmp_path / "judged"
    folder = study / "base" / "tiny_xs" / "seed0" / "eval" / "paper31"
    found = scores(folder)
    assert {name: (row["score"] != "", row["n"]) for name, row in found.items()} == {
        "infovqa": (True, "2"), "aime26": (False, "0"), "mmlu": (False, "0"),
    }  # fmt: skip
    holes = json.loads((folder / "protocol.json").read_text())["holes"]
    assert holes["aime26"].startswith("aime26: the judge gave no verdict on 1 of 2: ")
    assert holes["mmlu"].startswith("mmlu: the judge gave no verdict on 2 of 2: ")
    assert all(hole.endswith("; the responses are kept, stage=judge goes on from them") for hole in holes.values())
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    ungraded = [row for row in rows if row["score"] is None]
    assert len(rows) == 6 and {(row["verdict"], row["how"]) for row in ungraded} == {("ungraded", "missing_verdict")}
    assert len(ungraded) == 3 and sum(row["verdict"] == "ungraded" for row in rows) == 3
    answers, _ = read_answers(find_runs(study))  # what the tests of a report read
    assert sum(found.scores_RI.size for found in answers.values()) == 3
    (table,) = [table for table in compare(collect(study)) if table.family == "LLM"]
    assert "no score on aime26, mmlu" in "".join(table.refused)
    assert main(["report", "--compare", str(folder.parents[1]), str(folder.parents[1])]) == 0
    assert capsys.readouterr().out.count("no score of A and B") == 2
    responses = (folder / "responses.jsonl").read_bytes()
    names = {record.name.partition(".")[0] for record in caplog.records}
    assert "harness" in names and not names & {"httpx", "httpx2", "httpcore2", "openai"}
    # Another judge is asked about these three alone. One of its replies is out of form: wrong, and its column marked.
    with serve(plan=lambda number, body: saying("Yes.") if number == 0 else None) as server:
        assert main([*words, "stage=judge", f"eval.judge.url={server.url}"]) == 0
    assert len(server.requests) == 3 and (folder / "responses.jsonl").read_bytes() == responses
    found = scores(folder)
    counts = {name: (row["n"], row["num_judged"], row["num_malformed"]) for name, row in found.items()}
    assert counts == {"infovqa": ("2", "0", "0"), "aime26": ("2", "2", "1"), "mmlu": ("2", "2", "0")}
    assert all(row["score"] for row in found.values())
    (table,) = [table for table in compare(collect(study)) if table.family == "LLM"]
    section = comparison_section(table, "LLM", pd.DataFrame())
    assert "aime26 †" in section and "mmlu †" not in section and "(worst run: aime26 50.0%)" in section


def test_a_judge_without_a_verdict_gives_no_score_and_one_without_form_stops_the_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data" / "MathArena" / "aime_2026"
    data.mkdir(parents=True)
    rows = [{"problem": f"What is {i}+{i}?", "answer": 2 * i} for i in range(20)]
    pd.DataFrame(rows).to_parquet(data / "train.parquet")
    words = ["eval", *JUDGED, "eval.columns=[aime26]", f"data_root={tmp_path / 'data'}", f"outputs={tmp_path}"]
    run_folder = tmp_path / "judged" / "base" / "tiny_xs" / "seed0"
    folder = run_folder / "eval" / "paper31"

    def launch(fault: Fault | None, *more: str) -> tuple[int, str, int]:
        with serve(plan=lambda number, body: fault) as server:
            code = main([*words, *more, f"eval.judge.url={server.url}"])
        return code, capsys.readouterr().err.strip().rpartition("\n")[2], len(server.requests)

    code, error, num_open = launch(Fault(status=500))  # an empty reply is wrong without asking
    silent = f"aime26: the judge gave no verdict on {num_open} of 20: status 500 (1 tries); the responses are kept, "
    assert code == 2 and num_open >= 16 and error.startswith(f"error: {silent}stage=judge goes on from them")
    assert (scores(folder)["aime26"]["score"], scores(folder)["aime26"]["n"]) == ("", "0")
    assert json.loads((folder / "protocol.json").read_text())["holes"]["aime26"].startswith(silent)
    assert json.loads((run_folder / "run.json").read_text())["status"] == "failed"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    code, error, num_asked = launch(saying("I am sorry"), "stage=judge")
    assert (code, num_asked) == (2, 16)
    assert error.startswith("error: none of the judge's first 16 replies is a verdict; the first is 'I am sorry': see ")
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert json.loads((run_folder / "run.json").read_text())["status"] == "failed"
    code, _, num_asked = launch(None, "stage=judge")
    assert (code, num_asked) == (0, num_open) and scores(folder)["aime26"]["num_malformed"] == "0"
    assert scores(folder)["aime26"]["score"] != ""
    assert json.loads((run_folder / "run.json").read_text())["status"] == "done"
