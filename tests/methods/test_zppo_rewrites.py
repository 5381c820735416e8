"""Which of the teacher's rewrites ZPPO uses, and what becomes of a prompt that lacks some of them."""

from __future__ import annotations

import numpy as np
import pytest

from harness.types import Prompt, Question, Rewrite
from methods.zppo import ZPPO, ZPPOConfig, summary_outcome

RIGHT = ("right", "1", 1.0)


def wrong(number: int) -> tuple[str, str, float]:
    return f"w{number}", f"9{number}", 0.0


@pytest.mark.parametrize(
    ("answer", "same", "last", "outcome"),
    [
        ("2", True, True, "accepted"),
        ("2", True, False, "other_answer"),
        ("3", False, True, "other_answer"),
        (None, True, False, "accepted"),  # neither the trace nor its summary has a box
        (None, False, False, "other_answer"),
    ],
)
def test_a_summary_ends_with_the_answer_of_its_trace(answer, same, last, outcome):
    asked = Prompt(uid="q", question=Question(id="q", text="", answer=""), messages=())
    given = Rewrite(uid="q", text="1+1", answer=answer, same_answer=same, truncated=False, ends_with_box=last)
    assert summary_outcome(asked, given, max_lines=5) == outcome


def failing(*texts: str):
    """A teacher whose summaries of these traces are always refused."""

    def rewriter(prompt, sample):
        is_bad = prompt.reference in texts
        text = "" if is_bad else f"[{prompt.reference}]"
        return Rewrite(uid=prompt.uid, text=text, answer=None, same_answer=True, truncated=False)

    return rewriter


def ncq_of(actors, batch_of, replies, rewriter, **options):
    """(content of a's NCQ or None, counts) of a step with one question and no BCQ."""
    models = actors({"a/plain": replies}, rewriter=rewriter)
    config = ZPPOConfig(group_size=4, augment_ratio=1.0, bcq=False, **options)
    ZPPO(config).collect(batch_of("a"), models, np.random.default_rng(0))
    prompt = models.prompts.get("a/ncq")
    return None if prompt is None else prompt.messages[-1]["content"], models.counts


def candidates_in(content: str) -> list[str]:
    return [part.split("\n</candidate>")[0] for part in content.split("<candidate>\n")[1:]]


def test_a_trace_without_a_summary_is_dropped_and_its_answer_is_listed(actors, batch_of):
    replies = [wrong(1), RIGHT, wrong(2), wrong(3)]
    content, counts = ncq_of(actors, batch_of, replies, failing("w2"), ncq_on_failed_rewrite="drop_trace")
    assert candidates_in(content) == ["[w1]", "[w3]"]
    assert "\\boxed{91}, \\boxed{92}, \\boxed{93}" in content
    assert (counts["ncq/dropped_traces"], counts["compress/skipped"], counts["ncq/skipped_rewrites"]) == (1, 0, 0)


def test_the_budget_of_a_reply_reaches_the_teacher(actors, batch_of):
    models = actors({"a/plain": [wrong(1)] * 4}, rewriter=failing())
    config = ZPPOConfig(group_size=4, augment_ratio=1.0, bcq=False, rewrite_tokens=4096)
    ZPPO(config).collect(batch_of("a"), models, np.random.default_rng(0))
    assert [line.partition(":")[0] for line in models.log if "rewrite" in line] == [
        "rewrite <summary> 512 in 4096 greedy"
    ]


@pytest.mark.parametrize(("bad", "options"), [("w1 w2 w3", {"ncq_on_failed_rewrite": "drop_trace"}), ("w2", {})])
def test_an_ncq_is_given_up_without_any_trace_and_by_default_without_one(actors, batch_of, bad, options):
    replies = [wrong(1), RIGHT, wrong(2), wrong(3)]
    content, counts = ncq_of(actors, batch_of, replies, failing(*bad.split()), **options)
    assert content is None
    assert (counts["ncq/dropped_traces"], counts["compress/skipped"], counts["ncq/skipped_rewrites"]) == (0, 1, 1)


def test_a_bcq_needs_both_of_its_traces(actors, batch_of):
    replies = {"a/plain": [wrong(1)] * 4, "a/teacher": [RIGHT]}
    models = actors(replies, rewriter=failing("right"))
    config = ZPPOConfig(group_size=4, teacher_group_size=1, augment_ratio=1.0, ncq_on_failed_rewrite="drop_trace")
    ZPPO(config).collect(batch_of("a b"), models, np.random.default_rng(0))
    assert "a/bcq" not in models.prompts and models.counts["bcq/skipped_rewrites"] == 1
    assert candidates_in(models.prompts["a/ncq"].messages[-1]["content"]) == ["[w1]"] * 4


@pytest.mark.parametrize("missing", ["ncq", "compress"])
def test_nothing_fails_without_ncq_or_compression(missing):
    with pytest.raises(ValueError, match=f"ncq_on_failed_rewrite=drop_trace needs method.{missing}=true"):
        ZPPOConfig(ncq_on_failed_rewrite="drop_trace", **{missing: False})
