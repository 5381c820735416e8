"""GRPO with hints (Alg. 5) on scripted models: who is helped, what the teacher is shown, which hints are used."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from harness.rewards.rules import is_correct
from harness.training.metrics import plain_student_groups
from harness.types import Prompt, Question, Rewrite
from methods.hint import Hint, HintConfig, gives_answer, hint_outcome
from methods.registry import MethodError, build

CLOSING = (
    "Work it out first in an inner monologue, which must stand inside <think> </think>. "
    "Then state the final answer, which must stand in \\boxed{}."
)
RIGHT, WRONG = ("yes", "42", 1.0), ("no", "7", 0.0)
NONE = {f"hint/{name}": 0 for name in ("accepted", "no_hint", "too_long", "gives_answer", "copies_solution", "redrawn")}


def hint(**options) -> Hint:
    return Hint(HintConfig(**({"group_size": 4, "teacher_group_size": 2, "augment_ratio": 0.5, "tau": 0.75} | options)))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rewrite(text: str, *, truncated: bool = False) -> Rewrite:
    return Rewrite(uid="", text=text, answer=None, same_answer=False, truncated=truncated)


def saying(text: str):
    """A rewriter that always says the same. `same_answer` is False: a hint need not keep the answer."""
    return lambda prompt, sample: rewrite(text)


@pytest.fixture
def example():
    """N = 4, two kept. `a` is easy, `d` (2/4) is hard but comes behind `c` (0/4) and `b` (1/4)."""
    return {
        "a/plain": [RIGHT] * 4,
        "b/plain": [WRONG, RIGHT, WRONG, WRONG],
        "c/plain": [WRONG] * 4,
        "d/plain": [RIGHT, RIGHT, WRONG, WRONG],
        "b/teacher": [("<think>1+2=3</think>\\boxed{3} <|im_end|>", "3", 1.0), WRONG],
        "c/teacher": [WRONG, ("c right", "42", 1.0)],
        "b/hint": [RIGHT, RIGHT, RIGHT, WRONG],
    }


@pytest.mark.clause("C080", "C083")
def test_only_kept_questions_are_asked_about(actors, batch_of, example):
    models = actors(example, rewriter=saying("begin"))
    groups = hint().collect(batch_of("a b c d"), models, rng())
    assert models.log == [
        "student x4: a/plain b/plain c/plain d/plain",
        "student waited for",
        "teacher x2: c/teacher b/teacher",  # 0/4 before 1/4
        "teacher waited for",
        "rewrite <hint> 512 greedy: c/write_hint/teacher/1 b/write_hint/teacher/0",
        "student x4: c/hint b/hint",
        "student waited for",
    ]
    uids = "a/plain b/plain c/plain d/plain c/teacher b/teacher c/hint b/hint"
    assert [group.uid for group in groups] == uids.split()
    assert models.counts == NONE | {"hint/accepted": 2}


@pytest.mark.clause("C080")
def test_kept_questions_are_relative_to_new_ones(actors, batch_of):
    """floor(0.5 * 3) = 1 of five hard questions, the replayed ones included."""
    models = actors({"s/plain": [WRONG] * 4} | {f"{name}/plain": [RIGHT, WRONG, WRONG, WRONG] for name in "abcr"})
    hint().collect(batch_of("a b c", "r s"), models, rng())
    assert models.log[2] == "teacher x2: s/teacher"


@pytest.mark.clause("C082", "C083")
def test_prompts_in_full(actors, batch_of, example):
    models = actors(example, rewriter=saying("begin with 1 </hint> <|im_end|>\n"))
    hint().collect(batch_of("a b c d"), models, rng())
    asked = {prompt.uid: prompt for prompt in models.rewritten}
    assert asked["b/write_hint/teacher/0"].messages == (
        {
            "role": "user",
            "content": "Turn the response below, which solves a problem, into a concise hint for somebody who has not "
            "solved it. Give general guidance or the key idea alone. Leave out the final answer and every box, and do "
            "not copy the solution. Put the hint between <hint> and </hint>.\n\n"
            "<response>\n1+2=3\n\\boxed{3} < |im_end|>\n</response>",
        },
    )
    assert asked["b/write_hint/teacher/0"].kind == "write_hint"
    prompt = models.prompts["b/hint"]
    assert prompt.messages == (
        {
            "role": "user",
            "content": "Q b?\n\nA hint follows in <hint> tags. Use it while you solve the problem.\n\n"
            "<hint>\nbegin with 1 < /hint> < |im_end|>\n</hint>\n\n" + CLOSING,
        },
    )
    assert (prompt.kind, prompt.prefix_ids, prompt.positive_answer, prompt.negative_answers) == ("hint", (), None, ())


def test_the_teacher_is_shown_the_response_only(actors, batch_of):
    batch = batch_of("")
    turns = ({"role": "user", "content": "secret turn"},)
    question = Question(
        id="a", text="secret", answer="secret", images=("secret",), messages=turns, metadata={"entry": "secret"}
    )
    batch.new = [question]
    models = actors({"a/teacher": [RIGHT, WRONG]}, rewriter=saying("begin"))
    hint(augment_ratio=1.0).collect(batch, models, rng())
    (prompt,) = models.rewritten
    assert "secret" not in repr(prompt)
    guided = models.prompts["a/hint"]
    assert guided.question is question and guided.messages[0] == turns[0]  # the hint prompt keeps image and turns


@pytest.mark.clause("C082")
def test_the_right_trace_is_drawn_uniformly(actors, batch_of):
    """Three right traces of four: 300 draws, 100 each."""
    replies = {"a/teacher": [(f"t{i}", "42", float(i != 1)) for i in range(4)]}
    seen = []
    for seed in range(300):
        models = actors(replies, rewriter=saying("begin"))
        hint(augment_ratio=1.0, teacher_group_size=4).collect(batch_of("a"), models, rng(seed))
        seen += [prompt.reference for prompt in models.rewritten]
    assert sorted(set(seen)) == ["t0", "t2", "t3"] and len(seen) == 300
    # chi-square, 2 degrees of freedom, p = 0.001
    assert sum((seen.count(text) - 100) ** 2 / 100 for text in set(seen)) < 13.8


@pytest.mark.clause("C081")
def test_a_question_without_a_right_trace_gets_no_hint_and_its_place_goes_to_nobody(actors, batch_of, example):
    models, method = actors(example | {"c/teacher": [WRONG, WRONG]}, rewriter=saying("begin")), hint()
    groups = method.collect(batch_of("a b c d"), models, rng())
    assert models.log[2] == "teacher x2: c/teacher b/teacher"
    assert models.log[4] == "rewrite <hint> 512 greedy: b/write_hint/teacher/0"
    assert [group.uid for group in groups if group.prompt.kind == "hint"] == ["b/hint"]
    # Its plain group is trained, and decides about the buffer.
    assert "c/plain" in {sample.uid for sample in method.credit(groups)}
    assert "c/plain" in {group.uid for group in plain_student_groups(groups)}


def test_nothing_hard_nothing_asked(actors, batch_of):
    models = actors({"a/plain": [RIGHT] * 4})
    groups = hint().collect(batch_of("a"), models, rng())
    assert models.log == ["student x4: a/plain", "student waited for"]
    assert [group.uid for group in groups] == ["a/plain"] and models.counts == NONE


def test_a_bad_hint_is_redrawn_once_then_skipped(actors, batch_of, example):
    def rewriter(prompt, sample):
        return rewrite("" if prompt.uid.startswith("c") or not sample else "begin")

    models = actors(example, rewriter=rewriter)
    groups = hint(hint_max_tokens=64).collect(batch_of("a b c d"), models, rng())
    assert models.log[4:6] == [
        "rewrite <hint> 64 greedy: c/write_hint/teacher/1 b/write_hint/teacher/0",
        "rewrite <hint> 64 sampled: c/write_hint/teacher/1 b/write_hint/teacher/0",
    ]
    assert models.log[6] == "student x4: b/hint" and groups[-1].uid == "b/hint"
    assert models.counts == NONE | {"hint/no_hint": 3, "hint/redrawn": 2, "hint/accepted": 1}
    assert "64" not in models.rewritten[0].messages[0]["content"]  # the limit is checked, not asked for


def test_the_budget_of_a_reply_reaches_the_teacher(actors, batch_of, example):
    models = actors(example, rewriter=saying("begin"))
    hint(rewrite_tokens=4096).collect(batch_of("a b c d"), models, rng())
    assert models.log[4] == "rewrite <hint> 512 in 4096 greedy: c/write_hint/teacher/1 b/write_hint/teacher/0"


def test_every_refused_hint_is_counted_by_its_reason(actors, batch_of, example):
    """The answer is that of the trace: 42 for c, 3 for b."""
    models = actors(example, rewriter=saying("think of 42"))
    hint().collect(batch_of("a b c d"), models, rng())
    assert models.counts == NONE | {"hint/gives_answer": 2, "hint/redrawn": 1, "hint/accepted": 1}
    assert models.log[-2] == "student x4: b/hint"


def test_a_hint_that_leaves_no_room_is_counted(actors, batch_of, example):
    models = actors(example, rewriter=saying("begin"), too_long=("c/hint",))
    hint().collect(batch_of("a b c d"), models, rng())
    assert models.log[-2] == "student x4: b/hint"
    assert models.counts == NONE | {"hint/accepted": 2, "hint/over_window": 1}


@pytest.mark.clause("C084")
def test_a_hinted_rollout_is_trained_where_it_was_sampled(actors, batch_of, example):
    """After the prompt with the hint, with the log-probabilities that its tokens had there."""
    method = hint()
    groups = method.collect(batch_of("a b c d"), actors(example, rewriter=saying("begin")), rng())
    for rollout in groups[-1].rollouts:
        rollout.prompt_ids = [5, 6, 7, 8]  # the plain prompt has [5, 6]
        rollout.rollout_logprobs = [-3.0, -4.0]
    samples = [sample for sample in method.credit(groups) if sample.uid == "b/hint"]
    assert [sample.token_ids for sample in samples] == [[5, 6, 7, 8, 10 + i, 2] for i in range(4)]
    assert [sample.rollout_logprobs for sample in samples] == [[0.0] * 4 + [-3.0, -4.0]] * 4
    assert {(sample.old_logprobs, sample.weights) for sample in samples} == {(None, None)}


@pytest.mark.clause("C062")
def test_credit_and_metrics_by_hand(actors, batch_of, example):
    method = hint()
    groups = method.collect(batch_of("a b c d"), actors(example, rewriter=saying("begin")), rng())
    samples = method.credit(groups)
    uids = ["a/plain", "b/plain", "c/plain", "d/plain", "c/hint", "b/hint"]
    assert [sample.uid for sample in samples] == [uid for uid in uids for _ in range(4)]
    assert all(sample.rollout.sampler == "student" for sample in samples)
    # non-trivial: b (1/4) and b/hint (3/4) with squares 3/4 each, d (2/4) with 1: sigma^2 = 2.5 / 12
    sigma = math.sqrt(2.5 / 12)
    last = samples[-4:]
    assert [s.token_ids for s in last] == [[5, 6, 10 + i, 2] for i in range(4)]
    assert [s.advantages[-1] for s in last] == pytest.approx([0.25 / sigma] * 3 + [-0.75 / sigma], rel=1e-5)
    # of the teacher's 4 rollouts 2 are right; the hint groups have 0/4 and 3/4
    assert method.metrics(groups) == {"hint/prompts": 2, "hint/accuracy": 0.375, "teacher/accuracy": 0.5}


@pytest.mark.clause("C082")
@pytest.mark.parametrize(
    ("text", "truncated", "outcome"),
    [
        ("add the tens first", False, "accepted"),
        ("add the tens first", True, "too_long"),
        ("", True, "too_long"),
        (" \n", False, "no_hint"),
        ("it is \\boxed{9}", False, "gives_answer"),  # any box
        ("the sum is 15", False, "gives_answer"),
        ("so:\n7 + 6\n= 13, add 2", False, "copies_solution"),  # whatever the white space
        ("7 + 6 = 13", False, "accepted"),  # a part of the solution
    ],
)
def test_which_rewrites_are_hints(text, truncated, outcome):
    reference = "<think>7 + 6 =  13,\nadd 2</think>\\boxed{15}"
    asked = Prompt(uid="q", question=Question(id="q", text="", answer=""), messages=(), reference=reference)
    assert hint_outcome(asked, rewrite(text, truncated=truncated), ["15"], are_right=by_rule("15")) == outcome


def by_rule(gold: str):
    question = Question(id="q", text="", answer=gold)
    return lambda values: [is_correct(value, question, "math_verify") for value in values]


@pytest.mark.parametrize(
    ("gold", "trace", "text", "outcome"),
    [
        (r"\frac{1}{2}", r"\frac{1}{2}", "Simplify; you will get 0.5 in the end.", "gives_answer"),
        ("1/2", "1/2", "The result is one half.", "gives_answer"),
        ("12", "12", "It equals twelve.", "gives_answer"),
        ("1200", "1200", "It is 1,200 in total.", "gives_answer"),
        ("15", "15", "begin with 8+7", "gives_answer"),  # nothing is left but to write it down
        ("x+1", "1+x", "look at $f(x) = 1 + x$", "gives_answer"),
        ("2", "2.0", "it is 2", "gives_answer"),  # the gold answer, where the trace spells it differently
        ("1/2", "1/2", "halve the 3 of 4 parts, not 0.25", "accepted"),
        ("15", "15", "begin with 8+6", "accepted"),
        ("1", "1", "look at one of the sides", "accepted"),
        ("30000", "30000", r"it comes to 3 \times 10^4 in the end", "gives_answer"),
        (r"2 \pi", r"2 \pi", r"Its length is 2\pi.", "gives_answer"),
        ("120", "120", "compute $5!$", "gives_answer"),
        ("8", "8", "it is 8!", "gives_answer"),
        ("15", "15", "the side is 15cm long", "gives_answer"),
        ("15", "15", "look at the 15th term", "accepted"),
        ("(1,2)", "(1,2)", "they meet at (1, 2) at last", "gives_answer"),
        (
            r"\frac{\sqrt{2}}{2}",
            r"\frac{\sqrt{2}}{2}",
            r"it is \frac{\sqrt2}{2}, or \frac{ \sqrt{2} }{2}",
            "gives_answer",
        ),
    ],
)
def test_the_answer_in_another_spelling_is_given_too(gold, trace, text, outcome):
    asked = Prompt(uid="q", question=Question(id="q", text="", answer=""), messages=(), reference="long\nsolution")
    assert hint_outcome(asked, rewrite(text), [trace], are_right=by_rule(gold)) == outcome


def test_a_hint_is_graded_against_its_own_question(actors, batch_of):
    """Both traces read the same; the gold answers differ, and the hint gives that of `a`."""
    batch = batch_of("a b")
    batch.new = [
        dataclasses.replace(question, answer=gold) for question, gold in zip(batch.new, ("1/2", "7"), strict=True)
    ]
    replies = {"a/teacher": [("trace", None, 1.0)], "b/teacher": [("trace", None, 1.0)]}
    models = actors(replies, rewriter=saying("take 0.5"))
    hint(augment_ratio=1.0, teacher_group_size=1).collect(batch, models, rng())
    assert [uid for uid in models.prompts if uid.endswith("/hint")] == ["b/hint"]
    assert models.counts == NONE | {"hint/gives_answer": 2, "hint/redrawn": 1, "hint/accepted": 1}


@pytest.mark.parametrize(
    ("gold", "trace", "text", "outcome"),
    [
        ("B", "B", "think of a dog", "gives_answer"),
        ("B", "dog", "choose option B", "gives_answer"),  # right by its option's text
        ("dog", "B", "choose option (B)", "gives_answer"),
        ("dog", "dog", "it is no cat and no fox", "accepted"),
        ("B", "B", "option A is wrong", "accepted"),
    ],
)
def test_a_multiple_choice_is_given_by_letter_and_by_option(actors, batch_of, gold, trace, text, outcome):
    batch = batch_of("a b")
    options = {"answer": gold, "answer_type": "choice", "metadata": {"choices": ["cat", "dog", "fox"]}}
    batch.new = [dataclasses.replace(question, **options) for question in batch.new]
    models = actors({"a/teacher": [("trace", trace, 1.0)]}, rewriter=saying(text))
    hint(teacher_group_size=1).collect(batch, models, rng())
    assert models.counts[f"hint/{outcome}"] == 1 + (outcome != "accepted")  # it is redrawn


def test_the_gold_answer_of_a_text_is_given_where_the_trace_words_it_otherwise(actors, batch_of):
    batch = batch_of("a b")
    batch.new = [dataclasses.replace(q, answer="New York City", answer_type="text") for q in batch.new]
    models = actors({"a/teacher": [("trace", "NYC", 1.0)]}, rewriter=saying("look at new york city"))
    hint(teacher_group_size=1).collect(batch, models, rng())
    assert models.counts["hint/gives_answer"] == 2


def test_a_trace_that_is_only_a_box_has_no_solution_to_copy():
    asked = Prompt(uid="q", question=Question(id="q", text="", answer=""), messages=(), reference="\\boxed{15}")
    assert hint_outcome(asked, rewrite("add"), ["15"], are_right=by_rule("15")) == "accepted"


@pytest.mark.clause("C082")
@pytest.mark.parametrize(
    ("answer", "hint", "given"),
    [
        ("15", "8+7=15", True),
        ("15", "(15)", True),
        ("15", "So it is 15.", True),
        ("15", "150", False),
        ("15", "115", False),
        ("15", "1.15", False),
        ("15", "15.5", False),
        ("15", "x15", False),
        ("-3", "8-3", False),
        ("-3", "x = -3", True),
        ("1/2", "add 1/2", True),
        ("1/2", "add 11/2", False),
        (r"\frac{1}{2}", r"take \frac{1}{2} of it", True),
        ("Blue", "something blue", True),
        ("blue", "a bluebird", False),
        (r"\text{ Blue }", "something blue", True),
        ("B", "(B)", True),
        ("B", "it is (b)", True),
        ("B", "the answer is B", True),
        ("B", "Answer: B.", True),
        ("B", "choose option **B**", True),
        ("B", "B comes before C", False),
        ("B", "the answer is Big", False),
        ("A", "the answer is a number", False),  # the article
        ("A", "the answer is A because", True),
        ("A", "Find the answer. A good start is", False),
        ("", "anything", False),
        ("  ", "any thing", False),
    ],
)
def test_what_gives_the_answer(answer, hint, given):
    assert gives_answer(hint, answer) is given


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hint_max_tokens": 0}, "method.hint_max_tokens must be greater than 0, got 0"),
        (
            {"rewrite_tokens": 500},
            "method.rewrite_tokens=500 is less than method.hint_max_tokens=512, which is a part of it: raise it, or "
            "lower the other",
        ),
        ({"augment_ratio": 1.5}, "method.augment_ratio must be at most 1, got 1.5"),
        ({"augment_ratio": -0.1}, "method.augment_ratio must be at least 0, got -0.1"),
        ({"teacher_group_size": 0}, "method.teacher_group_size must be greater than 0, got 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(MethodError) as caught:
        build({"name": "x", "class": "hint"} | options)
    assert str(caught.value) == message
