"""A judge as the reward: what it is asked, what becomes of its replies, and runs that it takes part in."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.app import main
from harness.config.compose import compose
from harness.config.evaluation import JudgeConfig
from harness.config.identity import comparable
from harness.config.schema import RewardConfig, from_hydra
from harness.errors import RunInterrupted, UserError
from harness.evaluation import evaluate
from harness.records.folder import RunFolder
from harness.rewards.choice import normal_text
from harness.rewards.judge import judged
from harness.rewards.judge.judged import JudgedGrader
from harness.rewards.judge.sections import read_sections
from harness.rewards.rules import Grade
from harness.rewards.workers import Grader
from harness.run.run import run
from harness.testing import assert_same_run, run_metrics
from harness.training.trainer import Trainer
from harness.types import Question
from reports.page.rollouts import collect_rollouts
from reports.runs.collect import find_runs
from tests.support.http_server import Fault, LoopbackServer, Plan
from tests.support.judge_server import saying, serve

Start = Callable[..., tuple[LoopbackServer, JudgedGrader]]

TREE = Question(id="tree", text="Which tree?", answer="oak", answer_type="text")
FISH = Question(id="fish", text="Which fish?", answer="carp", answer_type="text")


def boxed(answer: str) -> str:
    return f"So it is \\boxed{{{answer}}}."


def judged_as(answer: str, verdict: Any, *, malformed: bool = False) -> Grade:
    reward = float(verdict == "correct")
    return Grade(answer=answer, verdict=verdict, reward=reward, judged=True, malformed=malformed)


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(plan, retries=..., ...)`: a judge that follows the plan, and a grader that asks it."""
    with ExitStack() as stack:

        def start(plan: Plan | None = None, **config: Any) -> tuple[LoopbackServer, JudgedGrader]:
            server = stack.enter_context(serve(plan=plan))
            settings = JudgeConfig(**{"url": server.url, "timeout": 10.0, "retries": 0, **config})
            return server, stack.enter_context(JudgedGrader(Grader(RewardConfig()), settings))

        yield start


@pytest.mark.clause("C052")
def test_only_text_answers_that_the_rule_finds_wrong_are_asked_about(start: Start) -> None:
    server, grader = start()
    number = Question(id="n", text="2+2?", answer="4")
    letter = Question(id="c", text="Which?", answer="A", answer_type="choice")
    grades = grader.grade(
        [
            (boxed("Oak."), TREE), ("It is an oak tree.", TREE), (boxed(""), TREE), (boxed("?!"), TREE),
            (boxed("5"), number), (boxed("B"), letter),
        ]
    )  # fmt: skip
    verdicts = ["correct", "unparsable", "wrong", "wrong", "wrong", "wrong"]
    assert [grade.verdict for grade in grades] == verdicts and not any(grade.judged for grade in grades)
    assert grader.same([("oak", "an oak tree"), ("oak", "Oak")]) == [False, True]
    assert grader.gold_errors([TREE]) == [None]
    assert server.requests == []


def test_its_verdict_is_the_reward(start: Start) -> None:
    """The rule finds all of these wrong; this judge looks for the gold answer in the student's."""
    server, grader = start()
    grades = grader.grade([(boxed("an oak tree"), TREE), (boxed("elm"), TREE), (boxed("Oak"), TREE)])
    assert grades == [
        judged_as("an oak tree", "correct"), judged_as("elm", "wrong"),
        Grade(answer="Oak", verdict="correct", reward=1.0),
    ]  # fmt: skip
    asked = server.requests[0]["messages"][-1]["content"]
    assert "Which tree?" in asked and "oak" in asked and len(server.requests) == 2


def test_the_same_answer_to_a_question_is_asked_about_once(start: Start) -> None:
    server, grader = start()
    items = [(boxed(a), TREE) for a in ("an oak tree", "An  oak tree.", "elm", "$elm$")]
    verdicts = ["correct", "correct", "wrong", "wrong"]
    for _ in range(2):
        assert [grade.verdict for grade in grader.grade(items)] == verdicts
    assert len(server.requests) == 2
    assert grader.grade([(boxed("elm"), FISH)])[0].judged  # the same answer to another question
    assert len(server.requests) == 3


def test_two_threads_ask_about_the_same_answer_once(start: Start) -> None:
    server, grader = start(lambda number, body: Fault(delay=0.2))
    threads = [threading.Thread(target=grader.grade, args=([(boxed("elm"), TREE)],)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1


def test_the_oldest_verdicts_are_forgotten(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judged, "CACHE_SIZE", 2)
    server, grader = start()
    for answer in ("elm", "ash", "fir", "ash", "fir", "elm"):  # fir pushes elm out, so that elm is new at the end
        grader.grade([(boxed(answer), TREE)])
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "fault",
    [Fault(status=500), Fault(status=400), Fault(drop=True), Fault(delay=0.6)],
    ids=["500", "400", "dropped", "late"],
)
def test_without_a_reply_an_answer_is_ungraded_and_asked_about_again(
    start: Start, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    caplog.set_level(logging.WARNING)
    _, grader = start(lambda number, body: fault if number < 2 else None, timeout=0.3)
    item = (boxed("an oak tree"), TREE)
    assert grader.grade([item, item]) == [judged_as("an oak tree", "ungraded")] * 2
    assert grader.grade([item]) == [judged_as("an oak tree", "ungraded")]
    assert grader.grade([item]) == [judged_as("an oak tree", "correct")]
    assert len([record for record in caplog.records if "gave no verdict" in record.message]) == 1


@pytest.mark.clause("C111")
@pytest.mark.parametrize("reply", ["I think so.", "", '{"verdict": "right"}', '```json\n{"verdict": "correct"}\n```'])
def test_a_reply_out_of_form_is_wrong_and_counted(start: Start, caplog: pytest.LogCaptureFixture, reply: str) -> None:
    def first_of_the_oak(number: int, body: dict[str, Any]) -> Fault | None:
        """Requests that are under way together come in any order."""
        if "elm" in str(body) or asked:
            return None
        asked.append(number)
        return saying(reply)

    asked: list[int] = []
    _, grader = start(first_of_the_oak)
    items = [(boxed("an oak tree"), TREE), (boxed("elm"), TREE), (boxed("An oak  tree"), TREE)]
    assert grader.grade(items) == [
        judged_as("an oak tree", "wrong", malformed=True), judged_as("elm", "wrong"),
        judged_as("An oak  tree", "wrong", malformed=True),
    ]  # fmt: skip
    assert grader.grade(items[:1]) == [judged_as("an oak tree", "correct")]  # it is asked about again
    assert len([record for record in caplog.records if "its reply is no verdict" in record.message]) == 1


def nobody() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def test_a_judge_that_was_never_there_interrupts(start: Start) -> None:
    _, grader = start(url=nobody())
    for ask in (grader.check, lambda: grader.grade([(boxed("elm"), TREE)])):
        with pytest.raises(RunInterrupted, match=r"cannot be reached.*reward\.judge\.url=") as caught:
            ask()
        assert "eval.judge" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_judge_that_goes_away_interrupts_instead_of_giving_timeouts() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(serve())
        config = JudgeConfig(url=server.url, timeout=5.0, retries=0)
        grader = JudgedGrader(Grader(RewardConfig()), config)
        with grader:
            assert grader.grade([(boxed("elm"), TREE)])[0].verdict == "wrong"
            stack.close()
            with pytest.raises(RunInterrupted, match="cannot be reached"):
                grader.grade([(boxed("ash"), TREE)])
            assert grader.grade([(boxed("elm"), TREE)])[0].verdict == "wrong"  # known


@pytest.mark.parametrize(("status", "named"), [(401, r"reward\.judge\.api_key_env"), (404, r"reward\.judge\.model")])
def test_a_judge_that_refuses_ends_the_run_for_good(start: Start, status: int, named: str) -> None:
    """A launcher that requeues on 75 would ask it again for ever."""
    _, grader = start(lambda number, body: Fault(status=status))
    with pytest.raises(UserError, match=rf"refuses: status {status}.*{named}") as caught:
        grader.grade([(boxed("elm"), TREE)])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("option", ["max_tokens=0", "timeout=-1", "concurrency=0", "when=unparsed"])
def test_what_no_judge_could_use_is_refused(option: str) -> None:
    with pytest.raises(UserError, match=r"reward\.judge\."):
        from_hydra(compose(["student=tiny_xs", "method=grpo", f"reward.judge.{option}"]))


def test_moving_the_endpoint_is_the_same_run_and_another_judge_is_not() -> None:
    def of(**judge: Any) -> dict[str, Any]:
        return comparable({"reward": {"grader": "math_verify", "judge": judge}})

    assert of(url="a", model="m", timeout=1.0) == of(url="b", model="m", timeout=2.0) != of(url="a", model="n")
    assert of(url=None, model="m") == of(url=None, model="n") == comparable({"reward": {"grader": "math_verify"}})
    assert of(url=None, model="m") != of(url="a", model="m")
    for left in (of(url="a", model="m"), of(url=None, model="m")):  # which a checkpoint stores
        assert comparable(left) == left


SMALL = [
    "student=tiny_xs", "method=grpo", "eval=none", "data=jsonl", "data.answer_type=text", "data.batch_size=6",
    "method.group_size=4", "rollout.max_response_tokens=32", "num_threads=1", "checkpoint.every=1",
    "data.pool_size=12", "reward.judge.retries=0",
]  # fmt: skip


def train(folder: Path, url: str, *overrides: str) -> Path:
    """Sums as text, `8.0`: to the rule an `8` is another text, to the judge it is the same number."""
    rows = [{"question": f"Compute {i}+{k}.", "answer": f"{i + k}.0"} for i in (23, 41, 52, 64) for k in (3, 5, 7)]
    file = folder.parent / "sums.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    lines = [*SMALL, f"data.path={file}", f"outputs={folder}", f"reward.judge.url={url}", *overrides]
    return run(from_hydra(compose(lines)), overrides=lines)


def rollouts(folder: Path) -> pd.DataFrame:
    return pd.concat((pd.read_parquet(path) for path in sorted((folder / "rollouts").iterdir())), ignore_index=True)


def num_pairs(frame: pd.DataFrame) -> int:
    """Different answers to the same question; the rule finds none right."""
    answered = frame[frame["answer"].notna()]
    answers = answered["answer"].map(normal_text)
    return len({pair for pair in zip(answered["question_id"], answers, strict=True) if pair[1]})


def test_a_run_is_rewarded_by_the_judge(tmp_path: Path) -> None:
    with serve() as server:
        folder = train(tmp_path / "a", server.url, "steps=1")
    (row,), frame = run_metrics(folder), rollouts(folder)
    right = frame["verdict"] == "correct"
    assert right.any() and (frame["verdict"] == "wrong").any()
    assert (frame["reward"] == right).all() and row["rollout/accuracy"] == pytest.approx(right.mean())
    assert row["reward/judged"] == frame["answer"].fillna("").map(normal_text).ne("").sum() > 0
    assert row["reward/judge_failures"] == row["reward/judge_malformed"] == 0
    assert "rollout/ungraded_frac" not in row
    assert len(server.requests) == num_pairs(frame) < row["reward/judged"]


def test_a_run_goes_on_without_some_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    graders: list[Any] = []
    monkeypatch.setattr(evaluate, "evaluate", lambda config, engine, grader, **names: graders.append(grader) or [])

    def plan(number: int, body: Any) -> Fault | None:
        """No reply about 31, all that one question gets, nor about single answers to others; no verdict about 61."""
        answer = read_sections(body["messages"][-1]["content"])["answer"]
        return Fault(status=500) if answer in ("31", "56", "69") else saying("Yes.") if answer == "61" else None

    with serve(plan=plan) as server:
        folder = train(tmp_path / "a", server.url, "steps=1", "method=grpo_replay", "method.group_size=6", "eval=mini")
    assert [type(grader) for grader in graders] == [Grader]  # the evaluation does not ask the training's judge
    (row,), frame = run_metrics(folder), rollouts(folder)
    ungraded = frame["verdict"] == "ungraded"
    assert row["reward/judge_failures"] == ungraded.sum() > 0 and row["rollout/timeout_frac"] == 0.0
    assert row["rollout/ungraded_frac"] == pytest.approx(ungraded.mean())
    assert row["reward/judge_malformed"] == (frame["answer"] == "61").sum() > 0
    assert frame["reward"].isna().equals(ungraded) and (frame["advantage"][ungraded] == 0.0).all()
    assert frame["trained"].all() and row["train/num_tokens"] == frame["num_response_tokens"].sum()
    # Accuracies and the buffer are of the groups with two graded rollouts, and over these.
    groups = [group["reward"].dropna() for _, group in frame.groupby("question_id")]
    known = [rewards.mean() for rewards in groups if len(rewards) > 1]
    assert len(known) == 5 and row["rollout/accuracy"] == pytest.approx(sum(known) / len(known))
    assert row["buffer/admitted"] == sum(mean < 0.5 for mean in known)
    assert_advantages(frame)
    for command in ("view", "audit"):
        assert main([command, str(folder)]) == 0
    assert "no reward, ungraded, advantage +0.000" in capsys.readouterr().out
    shown, _ = collect_rollouts(find_runs(folder.parents[2]))
    responses = [response for question in shown for group in question.groups for response in group.responses]
    assert {response.reward is None for response in responses if response.verdict == "ungraded"} == {True}


def assert_advantages(frame: pd.DataFrame) -> None:
    """Eqs. 1-6 over the graded rollouts: the groups whose rewards differ share one sigma."""
    graded = frame[frame["reward"].notna()].groupby("question_id")
    mixed = [group["reward"] for _, group in graded if group["reward"].nunique() > 1]
    centred = pd.concat([rewards - rewards.mean() for rewards in mixed])
    expected = frame["reward"] * 0.0
    expected[centred.index] = (centred - centred.mean()) / (centred.std(ddof=0) + 1e-6)
    assert len(mixed) > 1 and frame["advantage"].to_numpy() == pytest.approx(expected.fillna(0.0).to_numpy(), abs=1e-6)


@pytest.mark.slow
def test_a_run_whose_judge_goes_away_goes_on_with_another_endpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as server:
        whole = train(tmp_path / "a", server.url, "steps=2")
    first = rollouts(whole).query("step == 1")
    gone = lambda number, body: Fault(status=404) if number >= num_pairs(first) else None  # noqa: E731
    with serve(plan=gone) as server, pytest.raises(UserError, match="refuses: status 404"):
        train(tmp_path / "b", server.url, "steps=2")
    (folder,) = (path.parent for path in (tmp_path / "b").rglob("run.json"))
    assert RunFolder.read_info(folder)["status"] == "failed" and len(run_metrics(folder)) == 1
    with monkeypatch.context() as patch, pytest.raises(RunInterrupted, match="cannot be reached"):
        patch.delattr(Trainer, "train")  # it is said before anything is sampled
        train(tmp_path / "b", nobody(), "steps=2")
    with serve() as server:
        assert train(tmp_path / "b", server.url, "steps=2") == folder
    assert_same_run(whole, folder)
