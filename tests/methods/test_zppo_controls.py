"""ZPPO's controls (a wrong "right" candidate, another question's wrong answers), what the candidate audit is told, and
prompts over the window. The questions are those of test_zppo.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.types import Rewrite
from methods.registry import MethodError, build
from methods.zppo import ZPPO, ZPPOConfig


def right(text: str = "yes") -> tuple[str, str, float]:
    return (text, "42", 1.0)


def wrong(text: str = "no", answer: str | None = None) -> tuple[str, str | None, float]:
    return (text, answer, 0.0)


def zppo(**options) -> ZPPO:
    return ZPPO(ZPPOConfig(**({"group_size": 4, "teacher_group_size": 2, "augment_ratio": 0.75} | options)))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def boxing(*failing: str, answer=lambda text: f"box {text}"):
    """A rewriter whose summary of `x` is `[x]` with the box `box x`; those of `failing` have another answer."""

    def rewriter(prompt, sample):
        text = prompt.reference
        same = text not in failing
        return Rewrite(uid=prompt.uid, text=f"[{text}]", answer=answer(text), same_answer=same, truncated=False)

    return rewriter


def shown(models, uid: str) -> list[str]:
    """The candidates of a prompt."""
    parts = models.prompts[uid].messages[-1]["content"].split("<candidate>\n")[1:]
    return [part.partition("\n</candidate>")[0] for part in parts]


@pytest.fixture
def example():
    """`a` is easy, `d` at tau; `b` has 1/4 and `c` 0/4; the teacher solves b once, c never."""
    return {
        "a/plain": [right()] * 4,
        "b/plain": [wrong("b0", "7"), right("b1"), wrong("b2", "8"), wrong("b3", "7")],
        "c/plain": [wrong("c0"), wrong("c1", "9"), wrong("c2", ""), wrong("c3")],
        "d/plain": [right(), right(), wrong(), wrong()],
        "b/teacher": [wrong("tb0", "6"), right("tb1")],
        "c/teacher": [wrong("tc0"), wrong("tc1")],
    }


# what the audit is told


def answers(models, uid: str) -> tuple[str | None, tuple[str, ...]]:
    prompt = models.prompts[uid]
    return prompt.positive_answer, prompt.negative_answers


@pytest.mark.clause("C119")
def test_answers_are_those_of_the_compressed_traces(actors, batch_of, example):
    models = actors(example, rewriter=boxing())
    zppo().collect(batch_of("a b c d"), models, rng())
    assert shown(models, "b/bcq") == ["[tb1]", "[b2]"]
    assert answers(models, "b/bcq") == ("box tb1", ("box b2",))
    # the right trace of the question's BCQ, which the NCQ does not show
    assert answers(models, "b/ncq") == ("box tb1", ("7", "8", "box b0", "box b2", "box b3"))
    assert shown(models, "b/ncq") == ["[b0]", "[b2]", "[b3]"]
    assert answers(models, "c/ncq") == (None, ("9", "box c0", "box c1", "box c2", "box c3"))  # the teacher failed
    assert answers(models, "b/plain") == answers(models, "b/teacher") == (None, ())


def test_answers_are_listed_once_and_traces_without_one_left_out(actors, batch_of, example):
    given = {"b0": "7", "b2": None, "b3": "7", "tb1": None}
    models = actors(example, rewriter=boxing(answer=lambda text: given.get(text, "")))
    zppo().collect(batch_of("a b c d"), models, rng())
    assert answers(models, "b/ncq") == (None, ("7", "8"))
    assert answers(models, "c/ncq") == (None, ("9",))
    assert answers(models, "b/bcq") == (None, ())


def test_a_right_trace_that_could_not_be_compressed_gives_no_answer(actors, batch_of, example):
    models = actors(example, rewriter=boxing("tb1"))
    zppo().collect(batch_of("a b c d"), models, rng())
    assert "b/bcq" not in models.prompts
    assert answers(models, "b/ncq") == (None, ("7", "8", "box b0", "box b2", "box b3"))


def test_a_bcq_without_room_still_tells_the_ncq_the_right_answer(actors, batch_of, example):
    models = actors(example, rewriter=boxing("b2"))
    zppo().collect(batch_of("a b c d"), models, rng())
    assert "b/bcq" not in models.prompts and "b/ncq" not in models.prompts  # both show b2
    models = actors(example, rewriter=boxing(), too_long=("b/bcq",))
    zppo().collect(batch_of("a b c d"), models, rng())
    assert "b/bcq" not in models.prompts
    assert answers(models, "b/ncq") == ("box tb1", ("7", "8", "box b0", "box b2", "box b3"))


def test_without_bcq_or_the_teacher_there_is_no_positive(actors, batch_of, example):
    models = actors(example, rewriter=boxing())
    zppo(bcq=False).collect(batch_of("a b c d"), models, rng())
    assert answers(models, "b/ncq") == (None, ("7", "8", "box b0", "box b2", "box b3"))


def test_without_compression_answers_are_those_of_the_traces(actors, batch_of, example):
    models = actors(example)
    zppo(compress=False).collect(batch_of("a b c d"), models, rng())
    assert answers(models, "b/bcq") == ("42", ("8",))
    assert answers(models, "b/ncq") == ("42", ("7", "8"))
    assert answers(models, "c/ncq") == (None, ("9",))


def test_a_prompt_over_the_window_frees_its_slot(actors, batch_of, example):
    """Cap 2: c/ncq does not fit, so b/bcq and b/ncq are asked."""
    models = actors(example, too_long=("c/ncq",))
    zppo(augment_ratio=0.5).collect(batch_of("a b c d"), models, rng())
    assert models.log[-2] == "student x4: b/bcq b/ncq"
    assert (models.counts["ncq/over_window"], models.counts["compress/skipped"]) == (1, 0)


# control: the right candidate is wrong


def test_both_candidates_are_wrong_the_teachers_first(actors, batch_of, example):
    models = actors(example, rewriter=boxing())
    groups = zppo(bcq_positive="wrong").collect(batch_of("a b c d"), models, rng())
    assert [group.uid for group in groups[-3:]] == ["c/ncq", "b/bcq", "b/ncq"]
    assert sorted(shown(models, "b/bcq")) == ["[b2]", "[tb0]"]
    assert answers(models, "b/bcq")[0] is None
    assert sorted(answers(models, "b/bcq")[1]) == ["box b2", "box tb0"]
    assert answers(models, "b/ncq") == (
        None,
        ("7", "8", "box b0", "box b2", "box b3"),
    )  # nobody compressed the right trace
    assert "tb1" not in [prompt.reference for prompt in models.rewritten]
    as_they_are = actors(example)
    zppo(bcq_positive="wrong", compress=False).collect(batch_of("a b c d"), as_they_are, rng())
    assert answers(as_they_are, "b/bcq")[0] is None and sorted(answers(as_they_are, "b/bcq")[1]) == ["6", "8"]
    # the form says what it always says
    assert "one right and one wrong" in models.prompts["b/bcq"].messages[-1]["content"]


def test_where_the_teacher_is_always_right_another_wrong_trace_of_the_student_is_shown(actors, batch_of):
    """Three wrong traces: 6 ordered pairs of two different ones, equally likely."""
    replies = {
        "a/plain": [wrong("w0"), wrong("w1"), right(), wrong("w2")],
        "a/teacher": [right("t0"), right("t1")],
    }
    seen = []
    for seed in range(600):
        models = actors(replies)
        zppo(augment_ratio=1.0, ncq=False, bcq_positive="wrong").collect(batch_of("a"), models, rng(seed))
        seen.append(tuple(shown(models, "a/bcq")))
    assert len(set(seen)) == 6 and all(first != second for first, second in seen)
    assert sum((seen.count(pair) - 100) ** 2 / 100 for pair in set(seen)) < 20.5  # 5 degrees of freedom, p = 0.001


def test_the_teachers_wrong_trace_is_drawn_uniformly_in_random_order(actors, batch_of):
    replies = {
        "a/plain": [wrong("w0"), wrong("w1"), wrong("w2"), wrong("w3")],
        "a/teacher": [wrong("t0"), right("t1"), wrong("t2")],
    }
    options = {"augment_ratio": 1.0, "ncq": False, "teacher_group_size": 3, "bcq_positive": "wrong"}
    seen = []
    for seed in range(400):
        models = actors(replies)
        zppo(**options).collect(batch_of("a"), models, rng(seed))
        seen.append(next((i, text) for i, text in enumerate(shown(models, "a/bcq")) if text.startswith("[t")))
    assert set(seen) == {(0, "[t0]"), (1, "[t0]"), (0, "[t2]"), (1, "[t2]")}
    assert sum((seen.count(pair) - 100) ** 2 / 100 for pair in set(seen)) < 16.3  # 3 degrees of freedom, p = 0.001


def test_a_lone_wrong_trace_makes_no_control_prompt(actors, batch_of):
    """tau above 3/4: one wrong trace, and the teacher has none. The plain BCQ would show it beside the right one."""
    replies = {
        "a/plain": [right(), right(), right(), wrong("w")],
        "a/teacher": [right(), right()],
        "b/plain": [right()] * 4,
    }
    asked = []
    for positive in ("right", "wrong"):
        models = actors(replies)
        zppo(augment_ratio=1.0, tau=0.8, bcq_positive=positive).collect(batch_of("a b"), models, rng())
        asked.append("a/bcq" in models.prompts)
        assert "a/ncq" in models.prompts
    assert asked == [True, False]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2)), min_size=1, max_size=8),
    st.sampled_from([0.25, 0.5, 1.0]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_the_control_asks_on_the_same_questions(actors, batch_of, cases, ratio, ncq, seed):
    """`cases`: right rollouts of the student (of 4) and of the teacher (of 2)."""
    names = [f"q{i}" for i in range(len(cases))]
    replies = {}
    for name, (num_right, num_solved) in zip(names, cases, strict=True):
        replies[f"{name}/plain"] = [right()] * num_right + [wrong(f"w{i}") for i in range(4 - num_right)]
        replies[f"{name}/teacher"] = [right()] * num_solved + [wrong("t")] * (2 - num_solved)
    asked = []
    for positive in ("right", "wrong"):
        method = zppo(augment_ratio=ratio, ncq=ncq, bcq_positive=positive)
        groups = method.collect(batch_of(" ".join(names)), actors(replies), rng(seed))
        asked.append([g.uid for g in groups if g.prompt.kind != "plain"])
    assert asked[0] == asked[1]  # ties are broken before anything else is drawn


# control: another question's wrong answers


def test_an_ncq_shows_another_hard_questions_traces_and_answers(actors, batch_of, example):
    models = actors(example, rewriter=boxing())
    zppo(ncq_source="foreign").collect(batch_of("a b c d"), models, rng())
    assert (
        models.prompts["b/ncq"]
        .messages[-1]["content"]
        .startswith(
            "Q b?\n\nThese answers are all wrong: \\boxed{9}. "
            "Each <candidate> block that follows holds a line of reasoning that went wrong.\n\n"
            "<candidate>\n[c0]\n</candidate>\n\n<candidate>\n[c1]"
        )
    )
    assert (
        models.prompts["c/ncq"]
        .messages[-1]["content"]
        .startswith(
            "Q c?\n\nThese answers are all wrong: \\boxed{7}, \\boxed{8}. "
            "Each <candidate> block that follows holds a line of reasoning that went wrong.\n\n"
            "<candidate>\n[b0]\n</candidate>"
        )
    )
    # a foreign trace is not its own question's trace of the same index, and is compressed once for both
    assert shown(models, "b/ncq") == ["[c0]", "[c1]", "[c2]", "[c3]"]
    assert shown(models, "c/ncq") == ["[b0]", "[b2]", "[b3]"]
    assert shown(models, "b/bcq") == ["[tb1]", "[b2]"]
    uids = [prompt.uid for prompt in models.rewritten]
    assert uids == [
        "b/compress/student/0", "b/compress/student/2", "b/compress/student/3", "b/compress/teacher/1",
        "c/compress/student/0", "c/compress/student/1", "c/compress/student/2", "c/compress/student/3",
    ]  # fmt: skip
    assert answers(models, "b/ncq") == ("box tb1", ("9", "box c0", "box c1", "box c2", "box c3"))
    assert answers(models, "c/ncq") == (None, ("7", "8", "box b0", "box b2", "box b3"))
    assert models.prompts["b/ncq"].question is models.prompts["b/plain"].question


def test_a_foreign_trace_that_gives_the_gold_answer_is_left_out(actors, batch_of):
    replies = {
        "a/plain": [wrong("a0", "1"), wrong("a1", " gold b "), wrong("a2", "1"), wrong("a3")],
        "b/plain": [wrong("b0", "gold a")] * 4,
    }
    models = actors(replies)
    zppo(augment_ratio=1.0, bcq=False, ncq_source="foreign").collect(batch_of("a b"), models, rng())
    assert shown(models, "b/ncq") == ["[a0]", "[a2]", "[a3]"]
    assert "all wrong: \\boxed{1}." in models.prompts["b/ncq"].messages[-1]["content"]
    assert "a/ncq" not in models.prompts  # every trace of b gives a's answer


def test_alone_a_hard_question_gets_no_foreign_ncq_and_takes_no_slot(actors, batch_of, example):
    options = {"augment_ratio": 0.5, "ncq_source": "foreign"}
    models = actors(example | {"c/plain": [right()] * 4})
    zppo(**options).collect(batch_of("a b c d"), models, rng())
    assert models.log[-2] == "student x4: b/bcq"
    models = actors({"a/plain": [right()] * 4})
    zppo(**options | {"bcq": False}).collect(batch_of("a b"), models, rng())
    assert models.log == ["student x4: a/plain b/plain", "student waited for"]


def test_the_other_question_is_drawn_uniformly_among_all_hard_ones(actors, batch_of):
    """One slot, for a (0/4); b, c and d (1/4) are hard but not kept."""
    replies = {f"{name}/plain": [right()] + [wrong(f"{name}{i}") for i in range(3)] for name in "bcd"}
    replies["a/plain"] = [wrong("a0")] * 4
    seen = []
    for seed in range(300):
        models = actors(replies)
        method = zppo(augment_ratio=0.25, bcq=False, ncq_source="foreign")
        method.collect(batch_of("a b c d"), models, rng(seed))
        (name,) = {text[1] for text in shown(models, "a/ncq")}
        seen.append(name)
    assert set(seen) == set("bcd")
    assert sum((seen.count(name) - 100) ** 2 / 100 for name in "bcd") < 13.8  # 2 degrees of freedom, p = 0.001


# options


@pytest.mark.parametrize(
    ("options", "use"),
    [
        ({}, "rollouts"),
        ({"bcq": False}, "rollouts"),  # to compress
        ({"compress": False}, "rollouts"),
        ({"ncq": False, "compress": False}, "rollouts"),
        ({"bcq": False, "compress": False}, "none"),
        ({"bcq": False, "compress": False, "ncq_source": "foreign"}, "none"),
    ],
)
def test_when_a_teacher_is_needed(actors, batch_of, example, options, use):
    method = zppo(**options)
    assert method.needs_teacher == use
    models = actors(example)
    method.collect(batch_of("a b c d"), models, rng())
    asked = any(line.startswith(("teacher", "rewrite")) for line in models.log)
    assert asked == (use != "none")
    assert models.log[-2].startswith("student x4: ") and models.log[-2] != models.log[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bcq": False, "bcq_positive": "wrong"}, "method.bcq_positive=wrong needs method.bcq=true"),
        ({"ncq": False, "ncq_source": "foreign"}, "method.ncq_source=foreign needs method.ncq=true"),
        ({"compress": False, "rewrite_tokens": 600}, "method.rewrite_tokens=600 needs method.compress=true"),
        ({"compress": False, "compress_max_lines": 3}, "method.compress_max_lines=3 needs method.compress=true"),
        ({"augment_ratio": -0.1}, "method.augment_ratio must be at least 0, got -0.1"),
        ({"augment_ratio": 1.5}, "method.augment_ratio must be at most 1, got 1.5"),
        ({"tau": 1.5}, "method.tau must be at most 1, got 1.5"),
        ({"replay_ratio": 2.0}, "method.replay_ratio must be at most 1, got 2.0"),
        ({"compress_max_lines": 0}, "method.compress_max_lines must be greater than 0, got 0"),
        ({"compress_max_tokens": 0}, "method.compress_max_tokens must be greater than 0, got 0"),
        (
            {"bcq": False, "ncq": False},
            "without BCQ and NCQ prompts zppo is GRPO: use method=grpo or method=grpo_replay",
        ),
    ],
)
def test_incoherent_options_are_refused_word_for_word(options, message):
    with pytest.raises(MethodError) as caught:
        build({"name": "x", "class": "zppo"} | options)
    assert str(caught.value) == message
