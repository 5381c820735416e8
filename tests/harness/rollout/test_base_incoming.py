"""Prompts that come late: what is there is taken, and nothing is waited for unless that is asked."""

import queue
import threading

import pytest

from harness.rollout.base import Incoming
from harness.types import Prompt, Question


def prompt(uid: str) -> Prompt:
    return Prompt(uid=uid, question=Question(id=uid, text="", answer=""), messages=())


def test_a_list_is_there_at_once():
    incoming = Incoming([prompt("a"), prompt("b")])
    assert [p.uid for p in incoming.take(wait=False)] == ["a", "b"] and incoming.ended
    assert incoming.take(wait=True) == []
    assert Incoming([]).take(wait=True) == []


def test_late_prompts_are_taken_as_they_come():
    fed: queue.SimpleQueue = queue.SimpleQueue()
    incoming = Incoming(iter(fed.get, None))
    assert incoming.take(wait=False) == [] and not incoming.ended
    threading.Timer(0.05, fed.put, [prompt("a")]).start()
    assert [p.uid for p in incoming.take(wait=True)] == ["a"] and not incoming.ended
    threading.Timer(0.05, fed.put, [None]).start()
    assert incoming.take(wait=True) == [] and incoming.ended


def test_what_the_source_raises_is_raised_where_it_is_taken():
    def source():
        yield prompt("a")
        raise OSError("gone")

    incoming = Incoming(source())
    with pytest.raises(OSError, match="gone"):
        while True:
            incoming.take(wait=True)
    assert incoming.ended
