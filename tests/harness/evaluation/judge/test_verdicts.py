"""The judging pass: scores, counts, and a cache that a killed process does not lose."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.config.evaluation import JudgeConfig
from harness.errors import UserError
from harness.evaluation.judge.verdicts import (
    JudgeItem,
    MalformedReplies,
    Verdict,
    judge,
    judge_settings,
    kept_verdicts,
    read_cache,
    request_hash,
)
from harness.rewards.judge.client import JudgeClient
from harness.rewards.judge.forms import SHARED
from harness.types import Question
from tests.support.http_server import Fault, LoopbackServer
from tests.support.judge_server import saying

Start = Callable[..., tuple[LoopbackServer, JudgeClient]]
CORRECT, WRONG = '{"verdict": "correct"}', '{"verdict": "wrong"}'


def item(key: str, gold: str, said: str | None, response: str = "") -> JudgeItem:
    question = Question(id=key, text=f"Question {key}?", answer=gold)
    return JudgeItem(key=key, format="shared", question=question, response=response, answer=said)


ITEMS = [
    item("a", "oak", "Oak"),
    item("b", "oak", "elm"),
    item("c", "oak", None, "So:\nit is an oak."),
    item("d", "3", "3"),
]
SCORES = [1.0, 0.0, 1.0, 1.0]


def test_verdicts_keep_the_order_of_items(start: Start, tmp_path: Path) -> None:
    _, client = start()
    verdicts = judge(ITEMS, client, tmp_path / "deep" / "verdicts.jsonl")
    assert verdicts == [
        Verdict(key="a", score=1.0, reply=CORRECT, cached=False),
        Verdict(key="b", score=0.0, reply=WRONG, cached=False),
        Verdict(key="c", score=1.0, reply=CORRECT, cached=False),
        Verdict(key="d", score=1.0, reply=CORRECT, cached=False),
    ]


def test_what_was_judged_is_not_asked_again_even_without_an_endpoint(start: Start, tmp_path: Path) -> None:
    server, client = start()
    cache = tmp_path / "verdicts.jsonl"
    judge(ITEMS, client, cache)
    offline = JudgeClient(JudgeConfig(url="http://127.0.0.1:9/v1"))
    verdicts = judge(list(reversed(ITEMS)), offline, cache)
    assert [(verdict.score, verdict.cached) for verdict in verdicts] == [(score, True) for score in reversed(SCORES)]
    assert len(server.requests) == len(ITEMS)


def test_equal_questions_are_asked_once(start: Start, tmp_path: Path) -> None:
    server, client = start()
    verdicts = judge(
        [item("a", "oak", "oak"), item("a", "oak", "oak"), item("a", "oak", "elm")], client, tmp_path / "v"
    )
    assert [verdict.score for verdict in verdicts] == [1.0, 1.0, 0.0]
    assert len(server.requests) == 2


def test_another_model_or_sampling_is_asked_anew(start: Start, tmp_path: Path) -> None:
    server, client = start()
    cache = tmp_path / "verdicts.jsonl"
    judge(ITEMS[:1], client, cache)
    for change in ({"model": "other"}, {"temperature": 0.5}, {"top_p": 0.9}, {"max_tokens": 64}):
        judge(ITEMS[:1], JudgeClient(JudgeConfig(url=server.url, **change)), cache)
    judge(ITEMS[:1], JudgeClient(JudgeConfig(url=server.url, extra_body={})), cache)
    judge(ITEMS[:1], JudgeClient(JudgeConfig(url=server.url, timeout=7, retries=0, concurrency=1)), cache)
    assert len(server.requests) == 6
    assert len(read_cache(cache)) == 6


@pytest.mark.clause("C111")
def test_malformed_replies_score_nothing_and_are_kept(start: Start, tmp_path: Path) -> None:
    server, client = start(lambda number, body: saying("I think so.") if number == 0 else None)
    cache = tmp_path / "verdicts.jsonl"
    expected = Verdict(key="a", score=0.0, malformed=True, reply="I think so.", cached=False)
    assert judge(ITEMS[:1], client, cache) == [expected]
    (again,) = judge(ITEMS[:1], client, cache)
    assert again.malformed and again.cached and again.score == 0.0
    assert len(server.requests) == 1


def many(number: int) -> list[JudgeItem]:
    return [item(f"q{i}", "oak", "oak") for i in range(number)]


def test_16_replies_out_of_form_before_any_verdict_stop_the_pass(start: Start, tmp_path: Path) -> None:
    server, client = start(lambda number, body: saying(f"Sure {number}!\x1b[2J\n" + "x" * 500), concurrency=1)
    cache = tmp_path / "verdicts.jsonl"
    judge(many(3), client, cache)  # fewer are malformed verdicts, and kept
    for _ in range(2):
        with pytest.raises(MalformedReplies) as caught:
            judge(many(30), client, cache)
        message = str(caught.value)
        assert message.startswith(
            "none of the judge's first 16 replies is a verdict; the first is 'Sure 0!\\x1b[2J\\nx"
        )
        assert "eval.judge.max_tokens" in message and "\n" not in message and len(message) < 500
        assert len(read_cache(cache)) == 3  # the 13 are asked about again
    assert len(server.requests) == 3 + 13 + 13
    mended, client = start()
    verdicts = judge(many(30), client, cache)
    assert [v.score for v in verdicts] == [0.0] * 3 + [1.0] * 27 and len(mended.requests) == 27


def test_one_verdict_among_the_first_16_lets_the_pass_go_on(start: Start, tmp_path: Path) -> None:
    _, client = start(lambda number, body: None if number == 15 else saying("no"), concurrency=1)
    cache = tmp_path / "verdicts.jsonl"
    verdicts = judge(many(40), client, cache)
    assert [i for i, verdict in enumerate(verdicts) if not verdict.malformed] == [15]
    assert list(read_cache(cache).values()) == ["no"] * 15 + [CORRECT] + ["no"] * 24


def test_replies_out_of_form_that_an_earlier_version_kept_are_asked_again(start: Start, tmp_path: Path) -> None:
    server, client = start()
    asked = [SHARED.messages(one.question, one.response, one.answer) for one in many(16)]
    lines = [{"request": request_hash(client.sampling, messages), "reply": "no"} for messages in asked]
    cache = tmp_path / "verdicts.jsonl"
    cache.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [verdict.score for verdict in judge(many(16), client, cache)] == [1.0] * 16 == [1.0] * len(server.requests)


def test_what_a_refused_pass_has_is_kept(start: Start, tmp_path: Path) -> None:
    _, client = start(lambda number, body: saying("no") if number == 0 else Fault(status=401), concurrency=1)
    cache = tmp_path / "verdicts.jsonl"
    with pytest.raises(UserError, match="refuses: status 401"):
        judge(ITEMS, client, cache)
    found = kept_verdicts(ITEMS, client, cache, "it refuses")
    assert [(v.score, v.malformed, v.missing) for v in found] == [(0.0, True, False)] + [(None, False, True)] * 3
    assert {v.reply for v in found[1:]} == {"it refuses"}


def test_missing_replies_have_no_score_and_are_asked_again(start: Start, tmp_path: Path) -> None:
    _, client = start(lambda number, body: Fault(status=400) if number == 0 else None)
    cache = tmp_path / "verdicts.jsonl"
    expected = Verdict(key="a", score=None, missing=True, reply="status 400: told to fail", cached=False)
    assert judge(ITEMS[:1], client, cache) == [expected]
    assert judge(ITEMS[:1], client, cache) == [Verdict(key="a", score=1.0, reply=CORRECT, cached=False)]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_costs_that_line_only(start: Start, tmp_path: Path, cut: int) -> None:
    server, client = start(concurrency=1)
    cache = tmp_path / "verdicts.jsonl"
    judge(ITEMS, client, cache)
    cache.write_bytes(cache.read_bytes()[:-cut])
    whole = cut == 1  # without its end of line the entry is still there
    verdicts = judge(ITEMS, client, cache)
    assert [verdict.score for verdict in verdicts] == SCORES
    assert [verdict.cached for verdict in verdicts] == [True, True, True, whole]
    assert len(server.requests) == (4 if whole else 5)
    assert all(verdict.cached for verdict in judge(ITEMS, client, cache))
    assert len(server.requests) == (4 if whole else 5)


def test_other_lines_are_passed_over(tmp_path: Path) -> None:
    cache = tmp_path / "verdicts.jsonl"
    cache.write_bytes(b'null\n[]\n{"request": "x"}\n\xff\xfe\n\n{"request": "y", "reply": "z"}\n')
    assert read_cache(cache) == {"y": "z"}
    assert read_cache(tmp_path / "none") == {}


def test_a_wrong_key_midway_keeps_what_was_judged(start: Start, tmp_path: Path) -> None:
    _, client = start(lambda number, body: Fault(status=401) if number == 2 else None, concurrency=1)
    cache = tmp_path / "verdicts.jsonl"
    with pytest.raises(UserError):
        judge(ITEMS, client, cache)
    assert len(read_cache(cache)) == 2
    assert [verdict.cached for verdict in judge(ITEMS, client, cache)] == [True, True, False, False]


KILLED = """
import sys
from pathlib import Path
from harness.config.evaluation import JudgeConfig
from harness.rewards.judge.client import JudgeClient
from harness.evaluation.judge.verdicts import JudgeItem, judge
from harness.types import Question

items = [
    JudgeItem(key=key, format="shared", question=Question(id=key, text=key, answer="oak"), response="", answer="oak")
    for key in map(str, range(20))
]
client = JudgeClient(JudgeConfig(url=sys.argv[1], concurrency=1))
print(sum(verdict.cached for verdict in judge(items, client, Path(sys.argv[2]))))
"""


def test_after_kill_9_nothing_is_asked_twice(start: Start, tmp_path: Path) -> None:
    # The sixth request hangs, so that the process dies between two replies.
    server, _ = start(lambda number, body: Fault(delay=30) if number == 5 else None)
    cache = tmp_path / "verdicts.jsonl"
    command = [sys.executable, "-c", KILLED, server.url, str(cache)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(server.requests) < 6 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(read_cache(cache)) == 5
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60)
    assert int(done.stdout) == 5
    assert len(server.requests) == 6 + 15


def test_settings_are_json_and_name_what_decides_a_verdict() -> None:
    settings = judge_settings(JudgeConfig(url="http://somewhere/v1"), ["shared", "hle"])
    assert json.loads(json.dumps(settings)) == settings
    assert settings.keys() == {
        "model", "temperature", "top_p", "max_tokens", "chat_template_kwargs", "forms", "version",
    }  # fmt: skip
    assert settings["model"] == "Qwen/Qwen3.5-27B-FP8" and settings["max_tokens"] == 512
    assert settings["forms"].keys() == {"shared", "hle"}


def test_the_version_changes_with_model_sampling_and_forms_and_not_with_the_endpoint() -> None:
    def version(forms: list[str], **config: object) -> str:
        return judge_settings(JudgeConfig(**config), forms)["version"]  # type: ignore[arg-type]

    base = version(["shared", "hle"])
    assert base == version(["hle", "shared"], url="http://b/v1", retries=9, timeout=1.0, concurrency=1)
    others = [version(["shared"]), version(["shared", "hle"], model="m"), version(["shared", "hle"], temperature=0.1)]
    assert len({base, *others}) == 4
