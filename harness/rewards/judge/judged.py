"""A judge after the rule: a text answer that is not equal to the gold answer may still mean the same."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Sequence
from types import TracebackType

from harness.config.evaluation import JudgeConfig
from harness.errors import RunInterrupted
from harness.rewards import rules
from harness.rewards.choice import normal_text
from harness.rewards.judge.client import JudgeClient, JudgeFailure, JudgeGone, Reply
from harness.rewards.judge.forms import SHARED
from harness.rewards.rules import Grade
from harness.rewards.workers import Grader
from harness.types import Message, Question, Verdict

logger = logging.getLogger(__name__)

CACHE_SIZE = 100_000
"""Verdicts that are remembered, the newest."""


class JudgedGrader:
    """A `Grader` that leaves text answers which its rule finds wrong to a judge, in the form that benchmarks share.

    An answer to a question is asked about once, whatever its case, spacing and outer punctuation. A response without
    an answer is never asked about. A reply out of form makes an answer `wrong`, and `malformed`. One about which no
    reply comes, in all its tries, is `ungraded`. In both cases the same answer is asked about when it comes again.

    Thread-safe, one call at a time at the judge, so that `config.concurrency` holds. `grade` and `check` raise
    RunInterrupted where the endpoint is gone, and UserError where it refuses: launched again it would refuse again.
    """

    def __init__(self, grader: Grader, config: JudgeConfig) -> None:
        self.config = grader.config
        self._grader = grader
        self._client = JudgeClient(config, option="reward.judge")
        self._lock = threading.Lock()
        self._verdicts: dict[bytes, Verdict] = {}
        self._warned = False

    def check(self) -> None:
        """Whether the judge is there."""
        with self._lock:
            try:
                self._client.check()
            except JudgeGone as error:
                raise RunInterrupted(str(error)) from error

    def grade(self, items: Sequence[tuple[str, Question]]) -> list[Grade]:
        """Grade (response, question) pairs, in order."""
        grades = self._grader.grade(items)
        unresolved = [i for i, (_, question) in enumerate(items) if _is_unresolved(grades[i], question)]
        if unresolved:
            with self._lock:
                verdicts = self._judge([(*items[i], grades[i].answer) for i in unresolved])
            for i, verdict in zip(unresolved, verdicts, strict=True):
                known: Verdict = verdict or "wrong"
                grades[i] = Grade.of(grades[i].answer, known, judged=True, malformed=verdict is None)
        return grades

    def are_right(self, answers: Sequence[tuple[Question, str]]) -> list[bool]:
        """The grader's answer: the judge is not asked."""
        return self._grader.are_right(answers)

    def same(self, pairs: Sequence[tuple[str | None, str | None]]) -> list[bool]:
        """The grader's answer: the judge is not asked."""
        return self._grader.same(pairs)

    def gold_errors(self, questions: Sequence[Question]) -> list[str | None]:
        return self._grader.gold_errors(questions)

    def close(self) -> None:
        self._grader.close()

    def __enter__(self) -> JudgedGrader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _judge(self, items: Sequence[tuple[str, Question, str | None]]) -> list[Verdict | None]:
        """The judge's verdicts; None for a reply that is none."""
        keys = [_key(question, answer) for _, question, answer in items]
        known: dict[bytes, Verdict | None] = {key: self._verdicts[key] for key in keys if key in self._verdicts}
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in known}
        replies = self._ask([SHARED.messages(question, text, answer) for text, question, answer in new.values()])
        for (key, (_, question, _)), reply in zip(new.items(), replies, strict=True):
            score = SHARED.read(question, reply) if isinstance(reply, str) else None
            if score is None:
                known[key] = "ungraded" if isinstance(reply, JudgeFailure) else None
                self._warn(reply)
            else:
                known[key] = verdict = rules.verdict_of(score == 1.0)
                self._remember(key, verdict)
        return [known[key] for key in keys]

    def _ask(self, prompts: Sequence[list[Message]]) -> list[Reply]:
        try:
            replies = self._client.ask(prompts)
            if any(isinstance(reply, JudgeFailure) for reply in replies):
                self._client.check()  # a judge that is gone must not pass for one that is late
        except JudgeGone as error:
            raise RunInterrupted(str(error)) from error
        return replies

    def _remember(self, key: bytes, verdict: Verdict) -> None:
        self._verdicts[key] = verdict
        if len(self._verdicts) > CACHE_SIZE:
            del self._verdicts[next(iter(self._verdicts))]

    def _warn(self, reply: Reply) -> None:
        """Once: the metrics say how often."""
        if not self._warned:
            reason = reply.reason if isinstance(reply, JudgeFailure) else f"its reply is no verdict: {reply[:100]!r}"
            logger.warning(
                "the judge gave no verdict (%s): see reward/judge_failures and judge_malformed in the metrics", reason
            )
        self._warned = True


def _is_unresolved(grade: Grade, question: Question) -> bool:
    """An empty box is no answer: the judge would read the complete response instead."""
    by_rule = question.answer_type == "text" and not question.scorer
    return by_rule and grade.verdict == "wrong" and bool(normal_text(grade.answer or ""))


def _key(question: Question, answer: str | None) -> bytes:
    """A digest, since an answer may be as long as a response."""
    return hashlib.sha256(json.dumps([question.id, normal_text(answer or "")]).encode()).digest()
