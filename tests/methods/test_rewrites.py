"""The teacher's rewrites: each trace once, greedily, a failure once more by sampling, every outcome counted."""

from __future__ import annotations

import dataclasses

import pytest

from harness.types import Question, Rewrite
from methods.rewrites import Rewriter


@pytest.fixture
def make(actors):
    """A rewriter that takes what is not "bad"; `bad` says which replies are: by prompt uid, greedy and sampled."""

    def build(bad=lambda uid, sample: False):
        def reply(prompt, sample):
            text = "bad" if bad(prompt.uid, sample) else f"{'sampled' if sample else 'greedy'} {prompt.reference}"
            return Rewrite(uid=prompt.uid, text=text, answer=None, same_answer=True, truncated=False)

        models = actors({}, rewriter=reply)
        rewriter = Rewriter(
            models,
            section="s",
            kind="compress",
            tag="t",
            max_tokens=9,
            ask=lambda response: f"ask {response}",
            outcome=lambda prompt, rewrite: "refused" if rewrite.text == "bad" else "accepted",
            outcomes=("refused", "other"),
        )
        return rewriter, models

    return build


@pytest.fixture
def trace(rollout):
    def make(question_id, index, sampler="student"):
        question = Question(id=question_id, text="secret", answer="secret", source="data")
        return question, rollout(sampler, index, (f"{question_id}{index}", None, 0.0))

    return make


def test_each_trace_is_rewritten_once_whoever_asks(make, trace):
    rewriter, models = make()
    a0, a1, b0 = trace("a", 0), trace("a", 1), trace("b", 0)
    rewriter.prepare([a0, a1, a0])
    rewriter.prepare([a1, b0])
    rewriter.prepare([a0])
    assert models.log == [
        "rewrite <t> 9 greedy: a/compress/student/0 a/compress/student/1",
        "rewrite <t> 9 greedy: b/compress/student/0",
    ]
    assert [rewriter.get(t).text for t in (a0, a1, b0)] == ["greedy a0", "greedy a1", "greedy b0"]


def test_traces_of_two_questions_or_samplers_with_the_same_index_are_two(make, trace):
    rewriter, models = make()
    traces = [trace("a", 0), trace("b", 0), trace("a", 0, "teacher")]
    rewriter.prepare(traces)
    uids = ["a/compress/student/0", "b/compress/student/0", "a/compress/teacher/0"]
    assert [prompt.uid for prompt in models.rewritten] == uids
    assert rewriter.get(traces[1]).text == "greedy b0"


def test_a_failure_is_sampled_once_and_then_given_up(make, trace):
    rewriter, models = make(bad=lambda uid, sample: uid.startswith("a") and (not sample or "student/1" in uid))
    a0, a1, b0 = trace("a", 0), trace("a", 1), trace("b", 0)
    for _ in range(2):  # what failed is not asked for again
        rewriter.prepare([a0, a1, b0])
    assert models.log == [
        "rewrite <t> 9 greedy: a/compress/student/0 a/compress/student/1 b/compress/student/0",
        "rewrite <t> 9 sampled: a/compress/student/0 a/compress/student/1",
    ]
    assert rewriter.get(a0).text == "sampled a0" and rewriter.get(b0).text == "greedy b0"
    assert rewriter.get(a1) is None
    assert models.counts == {}
    rewriter.report()
    # a0: refused, accepted; a1: refused twice; b0: accepted
    assert models.counts == {"s/accepted": 2, "s/refused": 3, "s/other": 0, "s/redrawn": 2}


def test_what_nobody_asked_for_has_no_rewrite(make, trace):
    rewriter, models = make()
    rewriter.prepare([])
    assert rewriter.get(trace("a", 0)) is None and models.log == []


@pytest.mark.clause("C030")
def test_the_prompt_shows_the_response_and_nothing_of_the_question(make, trace):
    rewriter, models = make()
    question, rollout = trace("a", 3)
    question = dataclasses.replace(
        question,
        messages=({"role": "user", "content": "secret"},),
        images=("secret",),
        video="secret",
        metadata={"x": 1},
    )
    rewriter.prepare([(question, rollout)])
    (prompt,) = models.rewritten
    assert prompt.question == Question(id="a", text="", answer="", source="data") and prompt.question.metadata == {}
    assert prompt.messages == ({"role": "user", "content": "ask a3"},)
    assert (prompt.kind, prompt.reference) == ("compress", "a3")
