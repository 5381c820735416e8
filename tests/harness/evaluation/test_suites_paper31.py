"""All 31 columns end to end: loading, both libraries, marking, a judge on loopback, aggregation."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from harness.config.evaluation import EvalJudgeConfig
from harness.config.schema import EvalConfig
from harness.errors import UserError
from harness.evaluation.benchmarks.columns import columns
from harness.evaluation.evaluate import evaluate
from harness.evaluation.suites import load_suite, spread
from harness.types import Prompt
from tests.support.judge_server import serve

FIXTURES = Path(__file__).parents[2] / "fixtures" / "benchmarks"
MakeEngine = Callable[..., Any]
JUDGED = [name for name, column in columns().items() if column.scoring == "bench_judge"]
WITHOUT_JUDGE = [name for name, column in columns().items() if column.scoring == "det"]
NAMED = {"aime25", "aime26", "imo_answerbench", "mmvet", "charxiv"}
SOME = [name for number, name in enumerate(columns()) if number % 3 == 0 or name in NAMED]
"""Half of them, of each way to score at least one; `test_gold_scores_100_in_every_column` runs all."""


@pytest.fixture(scope="module")
def judge_url() -> Iterator[str]:
    with serve() as server:
        yield server.url


@pytest.fixture
def config(judge_url: str) -> EvalConfig:
    return EvalConfig(suite="paper31", data_root=str(FIXTURES), judge=EvalJudgeConfig(url=judge_url))


def right(prompt: Prompt) -> tuple[str, str]:
    """The gold answer in a box; in MultiChallenge what the criterion asks for, where it is to be met."""
    question = prompt.question
    if question.source == "multichallenge":
        return (question.metadata["target_question"] if question.answer == "YES" else "Quite another matter."), "stop"
    return f"<think> A or (B)? </think> \\boxed{{{question.answer}}}", "stop"


def cut_off(prompt: Prompt) -> tuple[str, str]:
    """The gold answer, in a sentence of a reasoning that never ends."""
    return f"<think> Then the answer is {prompt.question.answer}\n", "length"


def run(config: EvalConfig, engine: Any, grader: Any, out_dir: Path, identity: str = "m") -> dict[str, dict[str, Any]]:
    rows = evaluate(config, engine, grader, out_dir=out_dir, model_name="scripted", identity=identity)
    return {row["benchmark"]: row for row in rows}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.clause("C107")
def test_gold_scores_100_in_every_column(
    config: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path
) -> None:
    scores = run(config, make_engine(right), grader, tmp_path)
    assert list(scores) == list(columns())
    assert {name for name, row in scores.items() if row["score"] != 100.0} == set()
    assert {name for name, row in scores.items() if row["num_judged"]} == set(JUDGED)  # nobody else is asked
    assert all(row["num_malformed"] == 0 and row["num_truncated"] == 0 for row in scores.values())
    protocol = json.loads((tmp_path / "protocol.json").read_text())
    assert [protocol["cards"][row["protocol"]]["benchmark"] for row in scores.values()] == list(columns())
    assert protocol["cards"][scores["wemath"]["protocol"]]["options"] == {"wemath": "accuracy"}


@pytest.mark.slow
def test_an_empty_reply_scores_0_without_asking(
    config: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path
) -> None:
    config = replace(config, columns=SOME)
    scores = run(config, make_engine(lambda prompt: ("", "stop")), grader, tmp_path)
    assert {(row["score"], row["num_judged"]) for row in scores.values()} == {(0.0, 0)}
    assert all(row["num_unparsable"] == row["n"] > 0 for row in scores.values())


@pytest.mark.clause("C113")
def test_a_reply_that_is_cut_off_goes_to_the_judge_where_there_is_one(
    config: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path
) -> None:
    scores = run(replace(config, columns=SOME), make_engine(cut_off), grader, tmp_path)
    for name, row in scores.items():
        assert row["num_judged"] == (0 if name in WITHOUT_JUDGE else row["n"])
        assert row["num_truncated"] == row["n"]
    assert {scores[name]["score"] for name in WITHOUT_JUDGE if name in scores} == {0.0}
    assert {scores[name]["score"] for name in NAMED} == {100.0}


@pytest.mark.clause("C107")
@pytest.mark.parametrize(
    ("when", "reply", "judged"),
    [
        ("unmatched", "\\boxed{B}", "no row"),  # gold is A or C: another option is wrong without asking
        ("unmatched", "\\boxed{none of these}", "every row"),
        ("unmatched", "no box", "every row"),
        ("unparsed", "\\boxed{none of these}", "no row"),
        ("unparsed", "no box", "every row"),
    ],
)
def test_when_the_judge_is_asked(
    when: str, reply: str, judged: str, config: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path
) -> None:
    config = replace(config, columns=["embspatial"], judge=replace(config.judge, when=when))
    golds = {q.answer for q in load_suite(config).benchmarks[0].questions}
    assert golds == {"A", "C"}
    row = run(config, make_engine(lambda prompt: (reply, "stop")), grader, tmp_path)["embspatial"]
    assert row["num_judged"] == {"no row": 0, "every row": row["n"]}[judged] and row["score"] == 0.0


def test_without_a_judge_rules_decide_and_columns_that_need_one_are_holes(
    config: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path
) -> None:
    scores = run(replace(config, judge=EvalJudgeConfig(), columns=SOME), make_engine(right), grader, tmp_path)
    assert {name for name, row in scores.items() if row["n"] == 0} == set(JUDGED) & set(SOME)
    assert {row["score"] for name, row in scores.items() if name not in JUDGED} == {100.0}
    holes = json.loads((tmp_path / "protocol.json").read_text())["holes"]
    assert holes["mmvet"] == "mmvet: every row is judged: set eval.judge.url, or eval.stage=generate for now"
    table = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert [row["score"] for row in table if row["benchmark"] == "mmvet"] == [""]
    config = replace(config, judge=EvalJudgeConfig(), columns=["aime25"])
    unresolved = run(config, make_engine(cut_off), grader, tmp_path, identity="n")
    assert unresolved["aime25"]["score"] == 0.0
    assert {row["how"] for row in lines(tmp_path / "rows.jsonl") if row["benchmark"] == "aime25"} == {"no_judge"}


@pytest.mark.slow
def test_judging_is_a_pass_of_its_own_that_needs_no_student(
    config: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path
) -> None:
    generate = replace(config, stage="generate", judge=EvalJudgeConfig())
    assert evaluate(generate, make_engine(cut_off), grader, out_dir=tmp_path, model_name="x", identity="m") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "responses.jsonl"]
    judging = replace(config, stage="judge")
    rows = evaluate(judging, None, grader, out_dir=tmp_path, model_name="x", identity=None)
    apart = {row["benchmark"]: row for row in rows}
    together = run(config, make_engine(cut_off), grader, tmp_path / "together")
    assert apart == together
    with pytest.raises(UserError, match=r"^\d+ of \d+ responses to ai2d are not there: generate them first"):
        run(judging, None, grader, tmp_path, identity="another model")
    with pytest.raises(UserError, match="has no responses: generate them first, with stage=generate"):
        evaluate(judging, None, grader, out_dir=tmp_path / "empty", model_name="x", identity=None)


@pytest.mark.slow
def test_an_evaluation_that_died_goes_on_where_it_stopped(
    config: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path
) -> None:
    class Died(BaseException):
        """Not an Exception: nothing may catch it on its way."""

    config = replace(config, columns=list(columns())[::3])
    asked = []
    replies = {}

    def first_time(prompt: Prompt) -> tuple[str, str]:
        replies[prompt.uid] = cut_off(prompt) if len(replies) % 3 == 0 else right(prompt)
        return replies[prompt.uid]

    unbroken = run(config, make_engine(first_time), grader, tmp_path / "unbroken")

    fatal = 2 * len(replies) // 3

    def dying(prompt: Prompt) -> tuple[str, str]:
        asked.append(prompt.uid)
        if len(asked) == fatal:
            raise Died
        return replies[prompt.uid]

    with pytest.raises(Died):
        run(config, make_engine(dying), grader, tmp_path / "broken")
    assert len(lines(tmp_path / "broken" / "responses.jsonl")) == fatal - 1 > 20
    with (tmp_path / "broken" / "responses.jsonl").open("a") as file:
        file.write('{"key": "half a l')  # as a process leaves it that is killed while it writes
    assert run(config, make_engine(dying), grader, tmp_path / "broken") == unbroken
    assert len(asked) == len(replies) + 1  # none was asked twice but the one that killed it
    for name in ("rows.jsonl", "scores.csv", "protocol.json"):
        assert (tmp_path / "broken" / name).read_text() == (tmp_path / "unbroken" / name).read_text()


def test_another_model_and_another_decoding_are_never_mixed(
    config: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path
) -> None:
    config = replace(config, columns=["aime25", "infovqa"])
    run(config, make_engine(right), grader, tmp_path)
    engine = make_engine(lambda prompt: ("\\boxed{none}", "stop"))
    for other, identity in (
        (config, "another"),
        (replace(config, temperature=0.1), "m"),
        (replace(config, seed=1), "m"),
    ):
        engine.calls.clear()
        assert run(other, engine, grader, tmp_path, identity=identity)["aime25"]["score"] == 0.0
        assert sum(len(prompts) for prompts, _ in engine.calls) == 6
    assert run(config, None, grader, tmp_path)["aime25"]["score"] == 100.0


def test_a_limit_spreads_over_a_benchmark_and_keeps_the_draws(
    config: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path
) -> None:
    assert spread(10, 4) == [0, 2, 5, 7] and spread(3, 4) == [0, 1, 2] == spread(3, None)
    config = replace(config, columns=["dynamath"], limit=4)
    assert run(config, make_engine(right), grader, tmp_path)["dynamath"]["n"] == 4
    uids = [row["uid"] for row in lines(tmp_path / "rows.jsonl")]
    assert uids == [f"eval/dynamath/{i}" for i in (0, 10, 20, 30)]
    whole = make_engine(right)
    run(replace(config, limit=None), whole, grader, tmp_path)
    assert sum(len(prompts) for prompts, _ in whole.calls) == 36  # four are there


def test_what_one_benchmark_lacks_is_a_hole_and_the_others_finish(
    config: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "data"
    for name in ("MathArena/aime_2026", "opencompass/AIME2025", "lmms-lab/DocVQA", "cais/mmlu"):
        shutil.copytree(FIXTURES / name, root / name)
    shutil.copytree(FIXTURES / "ceval" / "ceval-exam", root / "TIGER-Lab" / "MMLU-Pro")  # the wrong schema
    (root / "cais" / "mmlu" / "all" / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    chosen = ["aime25", "aime26", "infovqa", "mmlu", "mmlu_pro", "gpqa_diamond"]
    config = replace(config, data_root=str(root), columns=chosen)
    scores = run(config, make_engine(right), grader, tmp_path / "out")
    assert {name: row["score"] for name, row in scores.items()} == {
        "infovqa": 100.0, "aime25": 100.0, "aime26": 100.0, "gpqa_diamond": "", "mmlu": "", "mmlu_pro": "",
    }  # fmt: skip
    messages = "\n".join(record.getMessage() for record in caplog.records)
    assert "not evaluated: gpqa_diamond: there is no folder" in messages
    assert "not evaluated: mmlu: " in messages and "cannot be loaded" in messages
    assert "not evaluated: mmlu_pro: " in messages
    with pytest.raises(UserError, match=r"gpqa_diamond: there is no folder .*Idavidrein/gpqa: hf download"):
        run(replace(config, columns=["gpqa_diamond"]), make_engine(right), grader, tmp_path / "none")


def test_a_part_of_a_benchmark_and_rows_without_gold_are_told(
    config: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "MathArena" / "aime_2026"
    folder.mkdir(parents=True)
    rows = [{"problem": f"q{i}", "answer": answer} for i, answer in enumerate([None, "", " ", "7"])]
    datasets.Dataset.from_list(rows).to_parquet(folder / "train-00000-of-00001.parquet")
    config = replace(config, data_root=str(tmp_path), columns=["aime26"], judge=EvalJudgeConfig())
    # A student that says None, as the gold answer of two rows once was.
    row = run(config, make_engine(lambda prompt: ("\\boxed{None}", "stop")), grader, tmp_path / "out")["aime26"]
    assert (row["n"], row["score"]) == (1, 0.0)
    lacks = "4 of 30 rows of MathArena/aime_2026 are here; left out without a gold answer: 3"
    assert json.loads((tmp_path / "out" / "protocol.json").read_text())["partial"] == {"aime26": lacks}
    assert f"aime26 is not complete: {lacks}" in [record.getMessage() for record in caplog.records]
    datasets.Dataset.from_list(rows[:3]).to_parquet(folder / "train-00000-of-00001.parquet")
    with pytest.raises(UserError, match=r"^aime26: MathArena/aime_2026 has no question: 3 rows have no gold answer$"):
        load_suite(config)


def test_what_a_column_counts_are_its_own_rows_whatever_is_asked_of_them(
    config: EvalConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HLE's rows with pictures are left out by an option, OCRBench v2 has two languages in one table."""
    chosen = ["hle", "ocrbench_v2_en", "ocrbench_v2_zh", "aime25"]
    config = replace(config, columns=chosen)
    partial = {b.name: b.partial for b in load_suite(config).benchmarks}
    num_rows = {name: int(str(lacks).partition(" of ")[0]) for name, lacks in partial.items()}
    table = list((FIXTURES / "ling99").rglob("*.parquet"))
    kinds = [kind for path in table for kind in datasets.Dataset.from_parquet(str(path))["type"]]
    assert num_rows["ocrbench_v2_en"] == sum(kind.endswith(" en") for kind in kinds) > 0
    assert num_rows["ocrbench_v2_zh"] == sum(kind.endswith(" cn") for kind in kinds) > 0
    everything = load_suite(replace(config, columns=["hle"], options=replace(config.options, hle="all")))
    assert everything.benchmarks[0].partial == partial["hle"] and num_rows["hle"] == 3
    # A copy that is complete lacks nothing.
    complete = {name: replace(column, num_rows=num_rows.get(name, 0)) for name, column in columns().items()}
    monkeypatch.setattr("harness.evaluation.suites.columns", lambda: complete)
    assert {b.partial for b in load_suite(config).benchmarks} == {None}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"problem_idx": 1, "solution": 5}],
            "aime26: MathArena/aime_2026 has no column 'problem' (problem_idx, solution)",
        ),
        ([{"problem": None, "answer": 5}], "aime26: row 0 of MathArena/aime_2026 cannot be read (AttributeError: "),
    ],
)
def test_rows_of_another_form_are_named(
    rows: list[dict[str, Any]], message: str, config: EvalConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "MathArena" / "aime_2026"
    folder.mkdir(parents=True)
    datasets.Dataset.from_list(rows).to_parquet(folder / "train-00000-of-00001.parquet")
    with pytest.raises(UserError, match="^" + re.escape(message)):
        load_suite(replace(config, data_root=str(tmp_path), columns=["aime26"]))


def test_a_judge_that_cannot_be_reached_leaves_what_needs_none(
    config: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path, judge_url: str
) -> None:
    config = replace(config, columns=["aime25", "infovqa", "mmvet"])
    gone = replace(config, judge=replace(config.judge, url="http://127.0.0.1:9/v1", retries=0))
    scores = run(gone, make_engine(cut_off), grader, tmp_path)
    assert (scores["infovqa"]["score"], scores["aime25"]["score"], scores["mmvet"]["score"]) == (0.0, "", "")
    hole = json.loads((tmp_path / "protocol.json").read_text())["holes"]["aime25"]
    assert "the judge at http://127.0.0.1:9/v1 cannot be reached" in hole and "stage=judge goes on from them" in hole
    later = run(replace(config, stage="judge"), None, grader, tmp_path)
    assert (later["aime25"]["score"], later["mmvet"]["score"]) == (100.0, 100.0)


@pytest.mark.slow
def test_an_answer_of_100_000_characters_is_one_wrong_answer(
    config: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path
) -> None:
    long = "\\boxed{" + "7 + x^2 " * 12_500 + "}"
    scores = run(config, make_engine(lambda prompt: (long, "length")), grader, tmp_path)
    some = {name for name, row in scores.items() if row["score"] != 0.0}
    # OCRBench v2 looks for a short gold answer in the reply; so does the judge of these tests in MM-Vet.
    assert some <= {"ocrbench_v2_en", "mmvet"} and all(row["n"] for row in scores.values())


def test_aime_is_sampled_as_often_as_is_asked(
    config: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path
) -> None:
    config = replace(config, columns=["aime26"], options=replace(config.options, aime_repeats=3))
    engine = make_engine(lambda p: right(p) if p.uid in ("eval/aime26/0", "eval/aime26/4") else ("", "stop"))
    row = run(config, engine, grader, tmp_path)["aime26"]
    assert (row["n"], row["score"]) == (6, 33.3333)  # two problems, 1 of 3 right each
    assert [r["question_id"] for r in lines(tmp_path / "rows.jsonl")][:2] == ["aime26/0/0", "aime26/0/1"]
