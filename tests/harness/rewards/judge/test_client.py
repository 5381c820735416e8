"""Requests to an endpoint that answers, fails and stalls."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from harness.config.evaluation import JudgeConfig
from harness.errors import UserError
from harness.rewards.judge.client import JudgeClient, JudgeFailure, JudgeGone
from harness.rewards.judge.forms import SHARED
from harness.serving import endpoints
from harness.types import Message, Question
from tests.support.http_server import Fault, LoopbackServer

Start = Callable[..., tuple[LoopbackServer, JudgeClient]]
CORRECT, WRONG = '{"verdict": "correct"}', '{"verdict": "wrong"}'


def prompt(gold: str, said: str) -> list[Message]:
    return SHARED.messages(Question(id="q", text="Which?", answer=gold), "", said)


RIGHT = prompt("oak", "Oak")


def first(number_of_faults: int, fault: Fault) -> Any:
    return lambda number, body: fault if number < number_of_faults else None


def test_replies_keep_the_order_of_prompts(start: Start) -> None:
    server, client = start(lambda number, body: Fault(delay=0.2) if "elm" in str(body) else None)
    came: list[int] = []
    replies = client.ask(
        [prompt("oak", "oak"), prompt("oak", "elm"), prompt("3", "3.0"), prompt("oak", "oaks")],
        lambda position, reply: came.append(position),
    )
    assert replies == [CORRECT, WRONG, CORRECT, WRONG]
    assert sorted(came) == [0, 1, 2, 3] and came != [0, 1, 2, 3]
    assert len(server.requests) == 4


def test_a_request_says_model_sampling_and_key(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret\n")
    server, client = start(api_key_env="JUDGE_KEY", model="m", temperature=0.0, top_p=1.0, max_tokens=512)
    client.ask([RIGHT])
    assert server.requests == [
        {
            "model": "m", "temperature": 0.0, "top_p": 1.0, "max_tokens": 512, "messages": RIGHT,
            "chat_template_kwargs": {"enable_thinking": False},
        }
    ]  # fmt: skip
    assert server.keys == ["Bearer secret"]


def test_without_a_key_none_is_sent(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server, client = start()
    assert client.ask([RIGHT]) == [CORRECT]
    assert server.keys == [None]


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault(status=status) for status in (408, 409, 425, 429, 500, 503)),
        *(Fault(drop=True), Fault(body="<html>"), Fault(body="{}"), Fault(body='{"choices": [3]}')),
    ],
    ids=["408", "409", "425", "429", "500", "503", "dropped", "html", "empty", "no message"],
)
def test_what_may_pass_is_tried_again(start: Start, fault: Fault) -> None:
    server, client = start(first(2, fault), retries=2)
    assert client.ask([RIGHT]) == [CORRECT]
    assert len(server.requests) == 3


def test_tries_are_bounded(start: Start) -> None:
    server, client = start(lambda number, body: Fault(status=500), retries=2)
    assert client.ask([RIGHT]) == [JudgeFailure("status 500 (3 tries)")]
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_is_refused_is_not_tried_again_and_the_others_go_on(start: Start, status: int) -> None:
    server, client = start(first(1, Fault(status=status)), concurrency=1)
    assert client.ask([RIGHT, RIGHT]) == [JudgeFailure(f"status {status}: told to fail"), CORRECT]
    assert len(server.requests) == 2


@pytest.mark.parametrize("charset", ["idna", "nonsense", "utf-16", "zlib"])
def test_the_reason_of_a_refusal_is_read_whatever_its_header_says(start: Start, charset: str) -> None:
    refusal = Fault(status=400, body="too \ufffd long", content_type=f"text/plain; charset={charset}")
    _, client = start(lambda number, body: refusal)
    assert client.ask([RIGHT]) == [JudgeFailure("status 400: too \ufffd long")]


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "OPENAI_API_KEY"), (403, "api_key_env"), (404, "eval.judge.model"), (307, "judge.url")]
)
def test_a_wrong_configuration_is_the_users(start: Start, status: int, remedy: str) -> None:
    server, client = start(lambda number, body: Fault(status=status), concurrency=1)
    with pytest.raises(UserError, match=remedy) as caught:
        client.ask([RIGHT] * 5)
    assert "\n" not in str(caught.value) and str(status) in str(caught.value)
    assert len(server.requests) == 1


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(UserError, match=r"cannot be reached.*eval\.judge\.url=") as caught:
        JudgeClient(JudgeConfig(url=url)).ask([RIGHT])
    assert "\n" not in str(caught.value)


def test_somebody_there_who_says_nothing() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        config = JudgeConfig(url=f"http://127.0.0.1:{deaf.getsockname()[1]}/v1", timeout=0.3)
        began = time.monotonic()
        with pytest.raises(JudgeGone, match=r"cannot be reached \(no answer in 0\.3 s\)"):
            JudgeClient(config).ask([RIGHT])
        assert time.monotonic() - began < 6.0


@pytest.mark.parametrize("url", [None, "", "localhost:8000/v1", "ftp://host/v1", "http://", "http://[::1/v1"])
def test_an_address_that_is_none(url: str | None) -> None:
    """It is no judge that went away: a launcher that requeues would ask it again for ever."""
    with pytest.raises(UserError, match=r"(is no address|there is no judge): eval\.judge\.url=") as caught:
        JudgeClient(JudgeConfig(url=url)).ask([RIGHT])
    assert not isinstance(caught.value, JudgeGone)


def test_the_address_may_name_the_method(start: Start) -> None:
    server, _ = start()
    for url in (f"{server.url}/", f"{server.url}/chat/completions"):
        assert JudgeClient(JudgeConfig(url=url)).ask([RIGHT]) == [CORRECT]


@pytest.mark.parametrize("fault", [Fault(delay=3), Fault(trickle=0.05)], ids=["late", "trickling"])
def test_the_deadline_is_for_the_whole_request(start: Start, fault: Fault) -> None:
    # The body has some 170 bytes: trickling, it takes 8 s, and no single byte takes long.
    server, client = start(lambda number, body: fault, timeout=0.4, retries=1)
    began = time.monotonic()
    assert client.ask([RIGHT]) == [JudgeFailure("no answer in 0.4 s (2 tries)")]
    assert time.monotonic() - began < 6.0
    assert len(server.requests) == 2


def test_a_late_reply_is_not_taken_for_the_next_one(start: Start) -> None:
    _, client = start(first(1, Fault(delay=0.6)), timeout=0.3, retries=0, concurrency=1)
    failure, reply = client.ask([prompt("oak", "oak"), prompt("oak", "elm")])
    assert isinstance(failure, JudgeFailure)
    assert reply == WRONG


def test_the_endpoint_says_when_to_come_back(start: Start) -> None:
    _, client = start(first(1, Fault(status=429, retry_after="0.4")))
    began = time.monotonic()
    assert client.ask([RIGHT]) == [CORRECT]
    assert time.monotonic() - began >= 0.4


@pytest.mark.parametrize("concurrency", [1, 4])
def test_so_many_requests_at_a_time(start: Start, concurrency: int) -> None:
    server, client = start(lambda number, body: Fault(delay=0.15), concurrency=concurrency)
    assert client.ask([RIGHT] * 8 if concurrency > 1 else [RIGHT] * 3) == [CORRECT] * (8 if concurrency > 1 else 3)
    assert server.busiest == concurrency


def test_a_request_that_fails_holds_up_no_other(start: Start) -> None:
    fault = Fault(status=500, retry_after="1")
    server, client = start(lambda number, body: fault if "elm" in str(body) else None, concurrency=2, retries=1)
    replies = client.ask([prompt("oak", "elm"), *[RIGHT] * 6])
    assert replies == [JudgeFailure("status 500 (2 tries)"), *[CORRECT] * 6]
    assert [number for number, body in enumerate(server.requests) if "elm" in str(body)][1] == 7


def test_an_endpoint_that_goes_away_is_given_up(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "GIVE_UP_AFTER", 3)
    server, client = start(lambda number, body: Fault(drop=True) if number else None, concurrency=1, retries=1)
    replies = client.ask([RIGHT] * 50)
    assert replies[0] == CORRECT
    assert all(isinstance(reply, JudgeFailure) for reply in replies[1:])
    assert len(server.requests) == 1 + 3 * 2
    reasons = [reply.reason for reply in replies if isinstance(reply, JudgeFailure)]
    assert reasons[:3] == [reasons[0]] * 3 and reasons[0].endswith(" (2 tries)")
    assert set(reasons[3:]) == {f"not asked any more: 3 requests in a row failed ({reasons[0][:-10]})"}


@pytest.mark.parametrize("between", [None, Fault(status=400)], ids=["answered", "refused"])
def test_losses_that_are_not_in_a_row_give_nothing_up(
    start: Start, monkeypatch: pytest.MonkeyPatch, between: Fault | None
) -> None:
    monkeypatch.setattr(endpoints, "GIVE_UP_AFTER", 2)
    server, client = start(lambda number, body: between if number % 2 else Fault(status=500), concurrency=1, retries=0)
    client.ask([RIGHT] * 6)
    assert len(server.requests) == 6


def test_an_error_about_a_reply_comes_before_the_next_request(start: Start) -> None:
    server, client = start(concurrency=1)

    def refuse(position: int, reply: object) -> None:
        raise UserError(f"not {reply}")

    with pytest.raises(UserError, match=r"not .*correct"):
        client.ask([RIGHT] * 5, refuse)
    assert len(server.requests) == 1


def test_a_message_without_text_is_a_reply(start: Start) -> None:
    body = '{"choices": [{"message": {"role": "assistant", "content": null}}]}'
    _, client = start(lambda number, asked: Fault(body=body))
    assert client.ask([RIGHT]) == [""]


def test_nothing_to_ask_needs_no_endpoint() -> None:
    assert JudgeClient(JudgeConfig(url="http://127.0.0.1:9/v1")).ask([]) == []
