"""Algorithm 1 on scripted models: who is helped, in which order, with which literal prompts, and what is trained."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.types import Question, Rewrite
from methods.registry import MethodError, build
from methods.zppo import ZPPO, ZPPOConfig

CLOSING = (
    "Work it out first in an inner monologue, which must stand inside <think> </think>. "
    "Then state the final answer, which must stand in \\boxed{}."
)


def right(text: str = "yes") -> tuple[str, str, float]:
    return (text, "42", 1.0)


def wrong(text: str = "no", answer: str | None = None) -> tuple[str, str | None, float]:
    return (text, answer, 0.0)


def zppo(**options) -> ZPPO:
    return ZPPO(ZPPOConfig(**({"group_size": 4, "teacher_group_size": 2, "augment_ratio": 0.5} | options)))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def failing(*fragments: str):
    """A rewriter that answers differently whenever the reference contains one of the fragments."""

    def rewriter(prompt, sample):
        same = not any(fragment in prompt.reference for fragment in fragments)
        return Rewrite(uid=prompt.uid, text=f"[{prompt.reference}]", answer=None, same_answer=same, truncated=False)

    return rewriter


@pytest.fixture
def example():
    """N = 4. `a` is easy, `d` and `r` are at tau (not hard), `b` has 1/4 and `c` 0/4; the teacher solves b once.

    With seed 0 the BCQ of b shows the teacher's trace first and the wrong trace b2.
    """
    return {
        "a/plain": [right()] * 4,
        "b/plain": [wrong("b0", "7"), right("b1"), wrong("b2", "8"), wrong("b3", "7")],
        "c/plain": [wrong("c0"), wrong("c1 <|im_end|>", " 9 "), wrong("c2", ""), wrong("c3")],
        "d/plain": [right(), right(), wrong(), wrong()],
        "r/plain": [right(), wrong(), right(), wrong()],
        "b/teacher": [wrong("tb0", "6"), right("tb1")],
        "c/teacher": [wrong("tc0"), wrong("tc1")],
        "c/ncq": [right(), wrong(), wrong(), wrong()],
        "b/bcq": [right(), right(), right(), wrong()],
        "b/ncq": [wrong()] * 4,
    }


@pytest.mark.clause("C005", "C011", "C014", "C015", "C017", "C029")
def test_algorithm_1_asks_in_this_order(actors, batch_of, example):
    models = actors(example)
    groups = zppo(augment_ratio=0.75).collect(batch_of("a b c d", "r"), models, rng())
    assert models.log == [
        "student x4: a/plain b/plain c/plain d/plain r/plain",
        "teacher x2: b/teacher c/teacher",
        "student waited for",
        "teacher waited for",
        # c before b: 0/4 before 1/4. b2 is shared by BCQ and NCQ and is compressed once.
        "rewrite <summary> 512 greedy: c/compress/student/0 c/compress/student/1 c/compress/student/2 "
        "c/compress/student/3 b/compress/teacher/1 b/compress/student/2 b/compress/student/0 b/compress/student/3",
        "student x4: c/ncq b/bcq b/ncq",
        "student waited for",
    ]
    uids = "a/plain b/plain c/plain d/plain r/plain b/teacher c/teacher c/ncq b/bcq b/ncq"
    assert [group.uid for group in groups] == uids.split()
    assert models.counts == {
        "compress/accepted": 8, "compress/no_summary": 0, "compress/too_long": 0, "compress/other_answer": 0,
        "compress/redrawn": 0, "compress/skipped": 0,
    }  # fmt: skip


@pytest.mark.clause("C034", "C035", "C038", "C039", "C040", "C041", "C042", "C044")
def test_algorithm_1_prompts_in_full(actors, batch_of, example):
    models = actors(example)
    zppo(augment_ratio=0.75).collect(batch_of("a b c d", "r"), models, rng())
    texts = {uid: prompt.messages[-1]["content"] for uid, prompt in models.prompts.items()}
    assert texts["b/plain"] == texts["b/teacher"] == f"Q b?\n\n{CLOSING}"
    assert texts["b/bcq"] == (
        "Q b?\n\nTwo candidate responses follow in <candidate> tags, one right and one wrong, in no particular order. "
        "Use them as references while you solve the problem.\n\n"
        "<candidate>\n[tb1]\n</candidate>\n\n<candidate>\n[b2]\n</candidate>\n\n" + CLOSING
    )
    # 7 is listed once, in first-seen order; every wrong trace is a candidate; no teacher trace
    assert texts["b/ncq"] == (
        "Q b?\n\nThese answers are all wrong: \\boxed{7}, \\boxed{8}. "
        "Each <candidate> block that follows holds a line of reasoning that went wrong.\n\n"
        "<candidate>\n[b0]\n</candidate>\n\n<candidate>\n[b2]\n</candidate>\n\n<candidate>\n[b3]\n</candidate>\n\n"
        + CLOSING
    )
    # traces without an answer, or with an empty box, are candidates but not listed
    assert texts["c/ncq"] == (
        "Q c?\n\nThese answers are all wrong: \\boxed{9}. "
        "Each <candidate> block that follows holds a line of reasoning that went wrong.\n\n"
        "<candidate>\n[c0]\n</candidate>\n\n"
        "<candidate>\n[c1 < |im_end|>]\n</candidate>\n\n<candidate>\n[c2]\n</candidate>\n\n"
        "<candidate>\n[c3]\n</candidate>\n\n" + CLOSING
    )
    assert [models.prompts[uid].kind for uid in ("b/plain", "b/teacher", "b/bcq", "b/ncq")] == [
        "plain", "plain", "bcq", "ncq",
    ]  # fmt: skip


@pytest.mark.clause("C015", "C016", "C061", "C069", "C070")
def test_credit_trains_student_tokens_only(actors, batch_of, example):
    method = zppo(augment_ratio=0.75)
    samples = method.credit(method.collect(batch_of("a b c d", "r"), actors(example), rng()))
    uids = ["a/plain", "b/plain", "c/plain", "d/plain", "r/plain", "c/ncq", "b/bcq", "b/ncq"]
    assert [s.uid for s in samples] == [uid for uid in uids for _ in range(4)]
    assert all(s.rollout.sampler == "student" for s in samples)
    # non-trivial: b, d, r, c/ncq, b/bcq. Centred squares: 1/4-type groups 3/4 each (3 of them), halves 1 each (2).
    sigma = math.sqrt((3 * 0.75 + 2 * 1.0) / 20)
    by_uid = {uid: [s for s in samples if s.uid == uid] for uid in uids}
    assert [s.advantages[-1] for s in by_uid["b/bcq"]] == pytest.approx([0.25 / sigma] * 3 + [-0.75 / sigma], rel=1e-5)
    assert [s.inert for s in by_uid["a/plain"] + by_uid["b/ncq"]] == [True] * 8
    first = by_uid["c/ncq"][0]
    assert (first.token_ids, first.loss_mask, first.rollout_logprobs) == (
        [5, 6, 10, 2],
        [0, 0, 1, 1],
        [0, 0, -0.5, -0.25],
    )
    assert first.advantages == pytest.approx([0, 0, 0.75 / sigma, 0.75 / sigma], rel=1e-5)
    assert first.norm is None and first.denominator == 2


@pytest.mark.clause("C118")
def test_metrics_by_hand(actors, batch_of, example):
    method = zppo(augment_ratio=0.75)
    metrics = method.metrics(method.collect(batch_of("a b c d", "r"), actors(example), rng()))
    assert metrics == pytest.approx(
        {
            "precap/easy_frac": 3 / 5,
            "precap/bcq_frac": 1 / 5,
            "precap/ncq_frac": 2 / 5,
            "bcq/prompts": 1,
            "bcq/accuracy": 0.75,
            "ncq/prompts": 2,
            "ncq/accuracy": 0.125,
            "teacher/accuracy": 1 / 4,
        }
    )


@pytest.mark.clause("C013")
def test_a_question_with_one_slot_left_keeps_its_bcq(actors, batch_of, example):
    models = actors(example)
    zppo(augment_ratio=0.5).collect(batch_of("a b c d", "r"), models, rng())  # cap 2: c/ncq, b/bcq, no room for b/ncq
    assert models.log[-2] == "student x4: c/ncq b/bcq"
    assert models.log[4].endswith("b/compress/teacher/1 b/compress/student/2")  # b0 and b3 would be b/ncq's alone


@pytest.mark.clause("C012")
def test_cap_is_relative_to_new_questions_and_floored(actors, batch_of):
    for ratio, cap in [(0.25, 1), (0.5, 2), (0.4, 2), (0.2, 1), (0.1, 0)]:
        models = actors({})
        zppo(augment_ratio=ratio, bcq=False).collect(batch_of("a b c d e", "r s t u"), models, rng())
        asked = models.log[-2].removeprefix("student x4: ").split() if "ncq" in models.log[-2] else []
        assert len(asked) == cap


def test_floor_is_not_fooled_by_floating_point(actors, batch_of):
    """0.29 * 100 is 28.999999999999996."""
    models = actors({})
    zppo(augment_ratio=0.29, bcq=False).collect(batch_of(" ".join(f"q{i}" for i in range(100))), models, rng())
    assert len(models.log[-2].removeprefix("student x4: ").split()) == 29


@pytest.mark.clause("C009", "C072")
def test_bcq_alone_passes_over_what_the_teacher_failed(actors, batch_of, example):
    models = actors(example)
    zppo(augment_ratio=0.25, ncq=False).collect(batch_of("a b c d"), models, rng())  # cap 1; c is harder but unsolved
    assert models.log[-2] == "student x4: b/bcq"


@pytest.mark.clause("C072")
def test_ncq_alone_asks_the_teacher_only_to_compress(actors, batch_of, example):
    models, method = actors(example), zppo(augment_ratio=0.75, bcq=False)
    groups = method.collect(batch_of("a b c d"), models, rng())
    assert not any(line.startswith("teacher") for line in models.log)
    assert models.log[-2] == "student x4: c/ncq b/ncq"
    assert method.metrics(groups)["precap/bcq_frac"] == 0.0
    assert "teacher/accuracy" not in method.metrics(groups)


def test_nothing_hard_nothing_asked(actors, batch_of):
    models, method = actors({"a/plain": [right()] * 4}), zppo()
    groups = method.collect(batch_of("a"), models, rng())
    assert models.log == ["student x4: a/plain", "student waited for"]
    assert [group.uid for group in groups] == ["a/plain"]


@pytest.mark.clause("C040")
def test_without_boxed_answers_an_ncq_still_calls_its_traces_wrong(actors, batch_of):
    models = actors({"a/plain": [wrong("x"), right(), wrong("y")]})
    zppo(augment_ratio=1.0, bcq=False, group_size=3).collect(batch_of("a"), models, rng())
    assert models.prompts["a/ncq"].messages[-1]["content"] == (
        "Q a?\n\nEach <candidate> block that follows holds a line of reasoning that went wrong.\n\n"
        "<candidate>\n[x]\n</candidate>\n\n<candidate>\n[y]\n</candidate>\n\n" + CLOSING
    )


def test_ties_are_ordered_by_the_generator(actors, batch_of):
    def order(seed):
        models = actors({})
        zppo(augment_ratio=0.5, bcq=False).collect(batch_of("a b c d e f"), models, rng(seed))
        return models.log[-2]

    assert order(0) == order(0)
    assert len({order(seed) for seed in range(8)}) > 4


@pytest.mark.clause("C036", "C037")
def test_candidates_are_drawn_uniformly_in_random_order(actors, batch_of):
    """2 right and 2 wrong traces, 2 orders: 8 equally likely candidate pairs."""
    replies = {"a/plain": [wrong("w0"), wrong("w1")], "a/teacher": [right("t0"), right("t1")]}
    seen = []
    for seed in range(400):
        models = actors(replies)
        zppo(augment_ratio=1.0, ncq=False, group_size=2).collect(batch_of("a"), models, rng(seed))
        seen.append(models.prompts["a/bcq"].messages[-1]["content"].split("problem.")[1])
    counts = [seen.count(text) for text in set(seen)]
    assert len(counts) == 8
    assert sum((n - 50) ** 2 / 50 for n in counts) < 24.3  # chi-square, 7 degrees of freedom, p = 0.001


# compression


@pytest.mark.clause("C030", "C031", "C032", "C043")
def test_the_teacher_is_shown_the_response_only(actors, batch_of):
    batch = batch_of("")
    question = Question(
        id="a",
        text="secret question",
        answer="secret gold",
        images=("img",),
        messages=({"role": "user", "content": "earlier turn"},),
        metadata={"entry": "secret"},
    )
    batch.new = [question]
    models = actors({"a/plain": [wrong("<think>1+1=3</think>\\boxed{3} <|im_end|>", "3"), right()]})
    zppo(augment_ratio=1.0, bcq=False, group_size=2, tau=0.6).collect(batch, models, rng())
    (prompt,) = models.rewritten
    assert prompt.messages == (
        {
            "role": "user",
            "content": "Rewrite the response below as a summary of at most 5 lines. "
            "Keep only the essential steps and, word for word, the final boxed answer. "
            "Drop all exploration, self-corrections, retries and filler. "
            "Add nothing, derive nothing anew, and end with the boxed answer. "
            "Put the summary between <summary> and </summary>.\n\n"
            "<response>\n1+1=3\n\\boxed{3} < |im_end|>\n</response>",
        },
    )
    assert prompt.kind == "compress" and prompt.reference == "<think>1+1=3</think>\\boxed{3} <|im_end|>"
    assert "secret" not in repr(prompt) and "img" not in repr(prompt)
    ncq = models.prompts["a/ncq"]
    assert ncq.question is question and ncq.messages[0] == question.messages[0]  # BCQ and NCQ keep image and turns


def test_a_freed_slot_goes_to_the_next_instance_of_the_walk(actors, batch_of, example):
    """Cap 2. c/ncq fails twice, is skipped and counted; b/bcq has its slot, and b/ncq the freed one."""
    models = actors(example, rewriter=failing("c2"))
    zppo(augment_ratio=0.5).collect(batch_of("a b c d"), models, rng())
    assert models.log[4:] == [
        "rewrite <summary> 512 greedy: c/compress/student/0 c/compress/student/1 c/compress/student/2 "
        "c/compress/student/3 b/compress/teacher/1 b/compress/student/2",
        "rewrite <summary> 512 sampled: c/compress/student/2",
        "rewrite <summary> 512 greedy: b/compress/student/0 b/compress/student/3",
        "student x4: b/bcq b/ncq",
        "student waited for",
    ]
    assert models.counts == {
        "compress/accepted": 7, "compress/no_summary": 0, "compress/too_long": 0, "compress/other_answer": 2,
        "compress/redrawn": 1, "compress/skipped": 1, "ncq/skipped_rewrites": 1,
    }  # fmt: skip


@pytest.mark.clause("C008")
def test_a_freed_slot_never_goes_past_the_pre_cap(actors, batch_of, example):
    """Cap 1 keeps question c only; its NCQ fails, and b, which is not kept, gets nothing."""
    models = actors(example, rewriter=failing("c2"))
    groups = zppo(augment_ratio=0.25).collect(batch_of("a b c d"), models, rng())
    assert {group.prompt.kind for group in groups} == {"plain"}


def test_a_shared_trace_that_failed_is_not_tried_again(actors, batch_of, example):
    """b2 fails: b/bcq, then b/ncq are skipped, with one greedy and one sampled rewrite of b2 in all."""
    models = actors(example, rewriter=failing("b2"))
    zppo(augment_ratio=0.5).collect(batch_of("a b c d"), models, rng())
    assert [p.uid for p in models.rewritten].count("b/compress/student/2") == 2
    assert models.log[-2] == "student x4: c/ncq"
    assert models.counts["compress/skipped"] == 2


def test_no_slot_is_filled_when_no_trace_can_be_compressed(actors, batch_of, example):
    models = actors(example, rewriter=failing(""))
    groups = zppo(augment_ratio=0.75).collect(batch_of("a b c d"), models, rng())
    assert {group.prompt.kind for group in groups} == {"plain"}
    assert models.counts["compress/skipped"] == 3


@pytest.mark.clause("C033")
@pytest.mark.parametrize(
    ("text", "same_answer", "truncated", "outcome"),
    [
        ("1\n2\n3\n4\n5", True, False, "accepted"),
        ("1\n\n2\n\n3\n\n4\n\n5\n", True, False, "accepted"),  # blank lines do not count
        ("1\n2\n3\n4\n5\n6", True, False, "too_long"),
        ("1", True, True, "too_long"),
        ("", True, True, "too_long"),
        (" \n", True, False, "no_summary"),
        ("1", False, False, "other_answer"),
    ],
)
def test_which_rewrites_are_usable(actors, batch_of, text, same_answer, truncated, outcome):
    def rewriter(prompt, sample):
        return Rewrite(uid=prompt.uid, text=text, answer=None, same_answer=same_answer, truncated=truncated)

    models = actors({"a/plain": [wrong(), right()]}, rewriter=rewriter)
    method = zppo(augment_ratio=1.0, bcq=False, group_size=2, tau=0.6)
    groups = method.collect(batch_of("a"), models, rng())
    accepted = outcome == "accepted"
    assert models.counts[f"compress/{outcome}"] == (1 if accepted else 2)
    assert models.counts["compress/redrawn"] == models.counts["compress/skipped"] == (0 if accepted else 1)
    assert [group.uid for group in groups] == (["a/plain", "a/ncq"] if accepted else ["a/plain"])


def test_a_redraw_can_save_the_instance(actors, batch_of):
    def rewriter(prompt, sample):
        return Rewrite(uid=prompt.uid, text="drawn", answer=None, same_answer=sample, truncated=False)

    models = actors({"a/plain": [wrong(), right()]}, rewriter=rewriter)
    zppo(augment_ratio=1.0, bcq=False, group_size=2, tau=0.6).collect(batch_of("a"), models, rng())
    assert "<candidate>\ndrawn\n</candidate>" in models.prompts["a/ncq"].messages[-1]["content"]
    assert models.counts["compress/skipped"] == 0 and models.counts["compress/redrawn"] == 1


def test_without_compression_traces_stand_as_they_are(actors, batch_of):
    models = actors({"a/plain": [wrong("<think>1</think>2 </candidate>"), right()]})
    zppo(augment_ratio=1.0, bcq=False, group_size=2, tau=0.6, compress=False).collect(batch_of("a"), models, rng())
    assert models.rewritten == [] and not models.counts
    assert "<candidate>\n1\n2 < /candidate>\n</candidate>" in models.prompts["a/ncq"].messages[-1]["content"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bcq": False, "ncq": False}, "zppo is GRPO: use method=grpo"),
        ({"augment_ratio": 0.0}, "zppo is GRPO: use method=grpo"),
        ({"teacher_group_size": 0}, "method.teacher_group_size must be greater than 0, got 0"),
        ({"compress_max_lines": 0}, "method.compress_max_lines must be greater than 0, got 0"),
        ({"compress_max_tokens": 0}, "method.compress_max_tokens must be greater than 0, got 0"),
        ({"rewrite_tokens": 511}, "method.rewrite_tokens=511 is less than method.compress_max_tokens=512"),
        ({"group_size": 1}, "method.group_size must be at least 2"),
    ],
)
def test_incoherent_options_are_refused(options, message):
    with pytest.raises(MethodError, match=message):
        build({"name": "x", "class": "zppo"} | options)
