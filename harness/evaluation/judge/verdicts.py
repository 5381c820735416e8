"""The judging pass over answers that no rule resolved, with a cache of replies that survives a killed process."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.config.evaluation import JudgeConfig
from harness.errors import UserError
from harness.evaluation.judge.formats import FORMATS, wording
from harness.rewards.judge.client import JudgeClient, JudgeFailure, Reply, sampling
from harness.types import Message, Question

NUM_FIRST = 16
"""A judge whose first replies, so many, are all out of form is not the one that was meant."""
MAX_SHOWN = 200
"""Characters of a reply in a message."""


class MalformedReplies(UserError):
    """The judge answers, and its first replies are no verdicts."""


@dataclass(frozen=True, kw_only=True)
class JudgeItem:
    """An answer to judge. `answer` is the content of its box, None without one."""

    key: str
    """What the caller knows it by."""
    format: str
    question: Question = field(repr=False)
    response: str = field(repr=False)
    answer: str | None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the judge says about an item. `score` is in [0, 1]; 0.0 for a malformed reply, None for a missing one."""

    key: str
    score: float | None
    malformed: bool = False
    """The reply is not in the form."""
    missing: bool = False
    """No reply came; the next pass asks again."""
    reply: str
    """The reply; of a missing one, why it is missing."""
    cached: bool
    """The reply was there before this pass."""


def judge(items: Sequence[JudgeItem], client: JudgeClient, cache_path: Path) -> list[Verdict]:
    """A verdict on each item, in their order. What is in the cache, and what is asked already, is not asked again.

    Every reply is appended to the cache as it comes. Raises MalformedReplies where the first `NUM_FIRST` are all out of
    form, with none of them kept, and another UserError if the endpoint cannot be used at all.
    """
    asked, hashes = _requests(items, client)
    by_key = dict(zip(hashes, items, strict=True))
    known = {key: reply for key, reply in read_cache(cache_path).items() if key in by_key}
    first = _FirstReplies(known, by_key)
    if first.stops:  # an earlier version kept them
        known, first = {}, _FirstReplies({}, by_key)
    new = {key: messages for key, messages in zip(hashes, asked, strict=True) if key not in known}
    replies: dict[str, Reply] = {**known, **(_ask(new, client, cache_path, first) if new else {})}
    return [_verdict(item, replies[key], cached=key in known) for item, key in zip(items, hashes, strict=True)]


def kept_verdicts(items: Sequence[JudgeItem], client: JudgeClient, cache_path: Path, reason: str) -> list[Verdict]:
    """What the cache has, without asking. What it lacks is missing for this reason."""
    _, hashes = _requests(items, client)
    known = read_cache(cache_path)
    return [
        _verdict(item, known.get(key, JudgeFailure(reason)), cached=key in known)
        for item, key in zip(items, hashes, strict=True)
    ]


def judge_settings(
    config: JudgeConfig,
    formats: Collection[str] | None = None,
) -> dict[str, Any]:
    """What decides a verdict, for an evaluation card: model, sampling, the wording of these forms (default: all), and
    one `version` over all of it. Where the endpoint is and how often it is tried does not matter.
    """
    settings = {
        **sampling(config),
        "forms": {name: wording(name) for name in sorted(FORMATS if formats is None else formats)},
    }
    return settings | {"version": _digest(settings)[:12]}


def request_hash(sampling: Mapping[str, Any], messages: Sequence[Message]) -> str:
    """Identifies a request by all that decides its reply: model, sampling, messages."""
    return _digest({"sampling": sampling, "messages": messages})


def read_cache(path: Path) -> dict[str, str]:
    """Replies by request. A line that a killed process left unfinished is passed over."""
    replies: dict[str, str] = {}
    if not path.exists():
        return replies
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                entry = json.loads(line)
                replies[str(entry["request"])] = str(entry["reply"])
            except (ValueError, LookupError, TypeError):
                continue
    return replies


def _requests(items: Sequence[JudgeItem], client: JudgeClient) -> tuple[list[list[Message]], list[str]]:
    """What is asked about each item, and its hash."""
    asked = [FORMATS[item.format].messages(item.question, item.response, item.answer) for item in items]
    return asked, [request_hash(client.sampling, messages) for messages in asked]


class _FirstReplies:
    """Holds replies back while none has been a verdict; `items` by request say how each is read."""

    def __init__(self, known: Mapping[str, str], items: Mapping[str, JudgeItem]) -> None:
        self._items = items
        self._waiting: dict[str, str] = {}
        self._num_malformed = 0
        self._first = ""
        self._passed = False
        for key, reply in known.items():
            self._count(key, reply)

    @property
    def stops(self) -> bool:
        return not self._passed and self._num_malformed >= NUM_FIRST

    def take(self, key: str, reply: str) -> dict[str, str]:
        """What may be kept now that this reply has come. Raises MalformedReplies."""
        self._count(key, reply)
        self._waiting[key] = reply
        if self.stops:
            self._waiting = {}
            raise MalformedReplies(
                f"none of the judge's first {NUM_FIRST} replies is a verdict; the first is "
                f"{self._first[:MAX_SHOWN]!r}: see eval.judge.model, eval.judge.max_tokens and eval.judge.extra_body, "
                "or what the server does with its chat template; the responses are kept"
            )
        return self.rest() if self._passed else {}

    def rest(self) -> dict[str, str]:
        """What is held back."""
        waiting, self._waiting = self._waiting, {}
        return waiting

    def _count(self, key: str, reply: str) -> None:
        if self._passed:
            return
        item = self._items[key]
        if FORMATS[item.format].read(item.question, reply) is not None:
            self._passed = True
            return
        self._first = self._first if self._num_malformed else reply
        self._num_malformed += 1


def _ask(
    new: Mapping[str, list[Message]], client: JudgeClient, cache_path: Path, first: _FirstReplies
) -> dict[str, Reply]:
    keys = list(new)
    with _appending(cache_path) as append:

        def keep(replies: Mapping[str, str]) -> None:
            for key, reply in replies.items():
                append({"request": key, "reply": reply})

        def take(position: int, reply: Reply) -> None:
            if isinstance(reply, str):
                keep(first.take(keys[position], reply))

        try:
            return dict(zip(keys, client.ask(list(new.values()), take), strict=True))
        finally:
            keep(first.rest())


@contextmanager
def _appending(path: Path) -> Iterator[Callable[[dict[str, str]], None]]:
    """Adds a line to a file, in one write; an unfinished last line is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")

        def append(entry: dict[str, str]) -> None:
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()

        yield append


def _verdict(item: JudgeItem, reply: Reply, *, cached: bool) -> Verdict:
    if isinstance(reply, JudgeFailure):
        return Verdict(key=item.key, score=None, missing=True, reply=reply.reason, cached=cached)
    score = FORMATS[item.format].read(item.question, reply)
    return Verdict(key=item.key, score=score or 0.0, malformed=score is None, reply=reply, cached=cached)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
