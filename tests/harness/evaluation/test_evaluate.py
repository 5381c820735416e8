from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.config.evaluation import EvalJudgeConfig
from harness.config.schema import EvalConfig, RewardConfig
from harness.data.arithmetic import make_questions
from harness.errors import UserError
from harness.evaluation.evaluate import evaluate
from harness.evaluation.protocol import Setup, card_hash, eval_sampling, evaluation_card
from harness.evaluation.suites import load_suite
from harness.rewards.process import Worker
from harness.rewards.workers import Grader
from harness.types import Prompt
from methods.prompts import plain_messages
from tests.support.judge_server import serve

FIXTURES = Path(__file__).parents[2] / "fixtures" / "benchmarks"
MakeEngine = Callable[..., Any]


def run(config: EvalConfig, engine: Any, grader: Any, out_dir: Path, identity: str = "a") -> list[dict[str, Any]]:
    return evaluate(config, engine, grader, out_dir=out_dir, model_name="scripted", identity=identity)


def hashes(config: EvalConfig, grader: Any) -> dict[str, str]:
    """The protocol of each benchmark."""
    benchmarks = load_suite(config).benchmarks
    return {b.name: card_hash(evaluation_card(b, config, grader.config.grader)) for b in benchmarks}


@pytest.mark.clause("C108")
def test_scores_by_hand(two_levels: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path) -> None:
    # Level 1: right, wrong, cut off, right: p = 2/4, stderr = sqrt(0.5 * 0.5 / 4) = 0.25.
    # Level 2: right, wrong, cut off, no box: p = 1/4, stderr = sqrt(0.25 * 0.75 / 4) = 0.2165063...
    scores = run(two_levels, make_engine(), grader, tmp_path)
    protocol = hashes(two_levels, grader)
    assert (tmp_path / "scores.csv").read_text() == (
        "benchmark,family,score,stderr,n,num_truncated,num_unparsable,num_timeout,num_judged,num_malformed,protocol\n"
        f"arithmetic_l1,LLM,50.0,25.0,4,1,1,0,0,0,{protocol['arithmetic_l1']}\n"
        f"arithmetic_l2,LLM,25.0,21.6506,4,1,2,0,0,0,{protocol['arithmetic_l2']}\n"
    )
    assert scores[1] == {
        "benchmark": "arithmetic_l2",
        "family": "LLM",
        "score": 25.0,
        "stderr": 21.6506,
        "n": 4,
        "num_truncated": 1,
        "num_unparsable": 2,
        "num_timeout": 0,
        "num_judged": 0,
        "num_malformed": 0,
        "protocol": protocol["arithmetic_l2"],
    }
    names = ["model.json", "protocol.json", "responses.jsonl", "rows.jsonl", "scores.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_answers_at_the_graders_limits_are_counted(
    two_levels: EvalConfig, make_engine: MakeEngine, tmp_path: Path
) -> None:
    replies = [f"\\boxed{{{'(' * 1900}}}", "\\boxed{7000}", "no box", "\\boxed{7001}"]
    engine = make_engine(lambda prompt: (replies[int(prompt.uid.rpartition("/")[2])], "stop"))
    with Grader(RewardConfig(cpu_seconds=0.2)) as grader:
        scores = run(replace(two_levels, levels=[1]), engine, grader, tmp_path)
    counts = [(row["n"], row["score"], row["num_unparsable"], row["num_timeout"]) for row in scores]
    assert counts == [(4, 0.0, 1, 1)]


@pytest.fixture
def two_lost_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two workers are killed from outside."""
    real, killed = Worker.run, []

    def run_killed(worker: Worker, jobs: Any) -> list[Any]:
        if len(killed) < 2:
            killed.append(worker)
            worker.kill()
            worker._process.wait()
        return real(worker, jobs)

    monkeypatch.setattr(Worker, "run", run_killed)


@pytest.mark.slow
@pytest.mark.usefixtures("two_lost_workers")
def test_a_row_whose_grader_was_lost_twice_goes_to_the_judge(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(lambda p: (f"\\boxed{{{p.question.answer}{'.0' if p.uid.endswith('/0') else ''}}}", "stop"))
    with serve() as server, Grader(RewardConfig()) as lost:
        judge = EvalJudgeConfig(url=server.url, retries=0)
        config = EvalConfig(suite="llm10", columns=["aime26"], data_root=str(FIXTURES), judge=judge)
        (row,) = [row for row in run(config, engine, lost, tmp_path) if row["benchmark"] == "aime26"]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["outcome"], row["how"]) for row in rows] == [("ungraded", "judge"), ("match", "rule")]
    assert row["n"] == 2 and json.loads((tmp_path / "protocol.json").read_text())["holes"] == {}


@pytest.mark.usefixtures("two_lost_workers")
def test_a_row_whose_grader_was_lost_twice_is_a_hole_until_it_is_graded(
    two_levels: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path
) -> None:
    forms = {"eval/arithmetic_l1/0": ".0"}  # takes a library, as no integer does
    engine = make_engine(lambda p: (f"\\boxed{{{p.question.answer}{forms.get(p.uid, '')}}}", "stop"))
    with Grader(RewardConfig()) as lost:
        scores = run(two_levels, engine, lost, tmp_path)
        assert [(row["score"], row["n"]) for row in scores] == [("", 0), (100.0, 4)]
        rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
        assert [(row["score"], row["verdict"]) for row in rows] == [(None, "ungraded")] + [(1.0, "correct")] * 7
        assert (rows[0]["outcome"], rows[0]["how"]) == ("ungraded", "missing_verdict")
        assert json.loads((tmp_path / "protocol.json").read_text())["holes"] == {
            "arithmetic_l1": "arithmetic_l1: the grader gave no verdict on 1 of 4: two of its workers were lost at an "
            "answer, see the log; the responses are kept, stage=judge goes on from them"
        }
    again = run(replace(two_levels, stage="judge"), None, grader, tmp_path)
    assert [(row["score"], row["n"]) for row in again] == [(100.0, 4), (100.0, 4)]


def test_three_families_keep_the_order_of_the_suite(
    all_tasks: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path
) -> None:
    engine = make_engine()
    run(all_tasks, engine, grader, tmp_path)
    protocol = hashes(all_tasks, grader)
    # Right, wrong, cut off, and then right on level 1 and no box on level 2, as in the test above.
    expected = [
        f"{task}_l{level},{family},{score},4,1,{num_unparsable},0,0,0,{protocol[f'{task}_l{level}']}"
        for task, family in [("bar_clip", "Video"), ("arithmetic", "LLM"), ("bar_chart", "VLM"), ("bar_cards", "VLM")]
        for level, score, num_unparsable in [(1, "50.0,25.0", 1), (2, "25.0,21.6506", 2)]
    ]
    assert (tmp_path / "scores.csv").read_text().splitlines()[1:] == expected
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    asked = [q for benchmark in load_suite(all_tasks).benchmarks for q in benchmark.questions]
    assert [row["question_id"] for row in rows] == [q.id for q in asked]
    assert [row["images"] for row in rows] == [[image.name for image in q.images] for q in asked]
    assert [row["video"] for row in rows] == [None if q.video is None else q.video.name for q in asked]


def test_prompts_of_the_engine_have_the_media_of_their_questions(
    all_tasks: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path
) -> None:
    engine = make_engine()
    run(all_tasks, engine, grader, tmp_path)
    assert {sampling == eval_sampling(all_tasks) for _, sampling in engine.calls} == {True}
    prompts = {prompt.uid: prompt for call, _ in engine.calls for prompt in call}
    for benchmark in load_suite(all_tasks).benchmarks:
        for position, question in enumerate(benchmark.questions):
            prompt = prompts.pop(f"eval/{benchmark.name}/{position}")
            assert prompt.question == question
            assert bool(question.images or question.video) == (benchmark.family != "LLM")
            assert prompt.messages == plain_messages(question)
    assert not prompts


def test_rows_hold_every_response(two_levels: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path) -> None:
    run(two_levels, make_engine(), grader, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    questions = make_questions([1], 4, seed=0, split="held_out")
    assert [row["uid"] for row in rows] == [f"eval/arithmetic_l{level}/{i}" for level in (1, 2) for i in range(4)]
    assert [row["score"] for row in rows] == [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert [row["verdict"] for row in rows[4:]] == ["correct", "wrong", "unparsable", "unparsable"]
    gold = questions[2].answer
    assert rows[2] == {
        "benchmark": "arithmetic_l1",
        "uid": "eval/arithmetic_l1/2",
        "question_id": questions[2].id,
        "messages": list(plain_messages(questions[2])),
        "images": [],
        "video": None,
        "response": "<think> so 12 + 9 =",
        "num_tokens": 6,
        "finish_reason": "length",
        "answer": None,
        "gold": gold,
        "score": 0.0,
        "verdict": "unparsable",
        "outcome": "unparsed",
        "how": "rule",
    }
    assert (rows[0]["answer"], rows[1]["answer"]) == (questions[0].answer, "7000")


def test_protocol_file_says_what_the_hash_stands_for(
    two_levels: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path
) -> None:
    run(two_levels, make_engine(), grader, tmp_path)
    cards = [evaluation_card(b, two_levels, grader.config.grader) for b in load_suite(two_levels).benchmarks]
    assert json.loads((tmp_path / "protocol.json").read_text()) == {
        "model": "scripted",
        "identity": "a",
        "cards": {card_hash(card): card for card in cards},
        "holes": {},
        "partial": {},
    }


@pytest.mark.clause("C045")
def test_a_benchmarks_prompts_reach_the_engine_in_one_call_with_the_protocols_decoding(
    two_levels: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path
) -> None:
    config = replace(two_levels, seed=3, temperature=0.7, top_p=0.8, top_k=9, min_p=0.02, presence_penalty=0.4)
    engine = make_engine()
    run(config, engine, grader, tmp_path)
    assert [sampling for _, sampling in engine.calls] == [eval_sampling(config)] * 2
    prompts = [prompt for call, _ in engine.calls for prompt in call]
    questions = [q for level in (1, 2) for q in make_questions([level], 4, seed=3, split="held_out")]
    assert [p.question for p in prompts] == questions
    assert [p.messages for p in prompts] == [plain_messages(q) for q in questions]
    assert {p.kind for p in prompts} == {"plain"}


def test_global_random_state_and_environment_are_untouched(
    all_tasks: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    drawn_inside = []

    def script(prompt: Prompt) -> tuple[str, str]:
        os.environ["HF_NEW"] = os.environ["HF_OLD"] = "set on the way"
        os.environ.pop("WORLD", None)
        drawn_inside.append(draws())
        return "", "stop"

    monkeypatch.setenv("HF_OLD", "as before")
    monkeypatch.setenv("WORLD", "as before")
    before = dict(os.environ)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = draws()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    run(all_tasks, make_engine(script), grader, tmp_path)
    assert draws() == expected
    assert drawn_inside[0][1:] == expected[1:]  # not seeded on the way either (lm-eval draws from python's itself)
    assert dict(os.environ) == before


def test_nothing_is_printed_or_logged_even_outside_a_repository(
    all_tasks: EvalConfig,
    make_engine: MakeEngine,
    grader: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, logger="lm_eval")
    run(all_tasks, make_engine(), grader, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith("lm_eval")]
    assert logging.getLogger("lm_eval").level == logging.INFO


def test_a_failed_evaluation_leaves_the_earlier_files(
    two_levels: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path
) -> None:
    run(two_levels, make_engine(), grader, tmp_path)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}

    def script(prompt: Prompt) -> tuple[str, str]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run(two_levels, make_engine(script), grader, tmp_path, identity="b")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_a_second_evaluation_sees_the_new_weights(
    two_levels: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path
) -> None:
    engine = make_engine()
    first = run(two_levels, engine, grader, tmp_path)
    engine.script = lambda prompt: (f"\\boxed{{{prompt.question.answer}}}", "stop")
    second = run(two_levels, engine, grader, tmp_path, identity="b")
    assert [s["score"] for s in first] == [50.0, 25.0]
    assert [(s["score"], s["stderr"]) for s in second] == [(100.0, 0.0), (100.0, 0.0)]


def test_whose_responses_they_are_is_known_by_engine_and_dtype_or_asked_again(
    two_levels: EvalConfig, make_engine: MakeEngine, grader: Any, tmp_path: Path
) -> None:
    setup = Setup(engine="transformers", dtype="float32", enable_thinking=False)
    two_levels = replace(two_levels, levels=[1])

    def judging() -> list[dict[str, Any]]:
        config = replace(two_levels, stage="judge")
        return evaluate(config, None, grader, out_dir=tmp_path, model_name="scripted", identity=None)

    def asked(setup: Setup) -> int:
        engine = make_engine()
        evaluate(two_levels, engine, grader, out_dir=tmp_path, model_name="scripted", identity="a", setup=setup)
        return sum(len(prompts) for prompts, _ in engine.calls)

    others = [replace(setup, engine="vllm"), replace(setup, dtype="bfloat16"), replace(setup, enable_thinking=True)]
    assert [asked(other) for other in (*others, setup, setup)] == [4, 4, 4, 4, 0]
    scored = judging()
    assert {row["protocol"] for row in scored} == set(json.loads((tmp_path / "protocol.json").read_text())["cards"])
    model = tmp_path / "model.json"
    stored = json.loads(model.read_text())
    assert stored == {"model": "scripted", "identity": "a", "engine": "transformers", "dtype": "float32"} | {
        "enable_thinking": False
    }
    model.write_text(json.dumps({"model": "scripted", "identity": "a"}))  # as earlier versions wrote it
    with pytest.raises(UserError, match=r"^4 of 4 responses to arithmetic_l1 are not there: generate them first"):
        judging()
    for damage in ("", "{", "[]", "{}", '{"identity": "a", "engine": [1], "dtype"'):
        model.write_text(damage)
        with pytest.raises(UserError, match=r"model\.json is damaged: generate them first, with stage=generate$"):
            judging()
