"""Algorithm 1 against a plain restatement, over several visits, and in the words to the teacher."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.types import Rewrite
from methods.zppo import ZPPO, ZPPOConfig


def right(text: str = "yes") -> tuple[str, str, float]:
    return (text, "42", 1.0)


def wrong(text: str = "no", answer: str | None = None) -> tuple[str, str | None, float]:
    return (text, answer, 0.0)


def zppo(**options) -> ZPPO:
    return ZPPO(ZPPOConfig(**({"group_size": 4, "teacher_group_size": 2} | options)))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def failing(fragment: str):
    """A rewriter that answers differently where the reference contains the fragment."""

    def rewriter(prompt, sample):
        same = fragment not in prompt.reference
        return Rewrite(uid=prompt.uid, text=f"[{prompt.reference}]", answer=None, same_answer=same, truncated=False)

    return rewriter


@pytest.fixture
def example():
    """`b` has 1/4 and is solved by the teacher once, `c` 0/4 and never."""
    return {
        "a/plain": [right()] * 4,
        "b/plain": [wrong("b0", "7"), right("b1"), wrong("b2", "8"), wrong("b3", "7")],
        "c/plain": [wrong("c0"), wrong("c1", "9"), wrong("c2"), wrong("c3")],
        "b/teacher": [wrong("tb0", "6"), right("tb1")],
        "c/teacher": [wrong("tc0"), wrong("tc1")],
    }


@pytest.mark.clause("C008", "C009", "C010", "C011", "C012", "C013")
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.booleans()), min_size=1, max_size=10),
    st.integers(0, 3),
    st.sampled_from([0.1, 0.25, 0.5, 1.0]),
    st.sampled_from([(True, True), (True, False), (False, True)]),
    st.integers(0, 1000),
)
def test_caps_and_order_follow_the_algorithm(actors, batch_of, questions, num_replayed, ratio, kinds, seed):
    """`questions`: right student rollouts of 4, right teacher rollouts of 2, whether its rewrites fail."""
    names = [f"q{i:02d}" for i in range(len(questions))]
    num_new = max(1, len(names) - num_replayed)
    replies = {}
    for name, (num_right, num_solved, fails) in zip(names, questions, strict=True):
        trace = f"{name} {'broken' if fails else 'fine'}"
        replies[f"{name}/plain"] = [right()] * num_right + [wrong(trace)] * (4 - num_right)
        replies[f"{name}/teacher"] = [right(f"{name} fine")] * num_solved + [wrong()] * (2 - num_solved)
    models = actors(replies, rewriter=failing("broken"))
    batch = batch_of(" ".join(names[:num_new]), " ".join(names[num_new:]))
    groups = zppo(augment_ratio=ratio, bcq=kinds[0], ncq=kinds[1]).collect(batch, models, rng(seed))

    cap = int(ratio * num_new + 1e-9)
    hard = [i for i, (num_right, _, _) in enumerate(questions) if num_right < 2]
    shuffled = [hard[i] for i in rng(seed).permutation(len(hard))]
    ranked = sorted(shuffled, key=lambda i: questions[i][0])
    admitted = []
    for i in ranked:
        mine = ["bcq"] * (kinds[0] and questions[i][1] > 0) + ["ncq"] * kinds[1]
        if mine and len(admitted) < cap:
            admitted.append([(i, kind) for kind in mine])
    usable = [(i, kind) for mine in admitted for i, kind in mine if not questions[i][2]]
    expected = [f"{names[i]}/{kind}" for i, kind in usable[:cap]]

    assert [group.uid for group in groups if group.prompt.kind != "plain"] == expected
    assert [g.uid for g in groups if g.uid.endswith("/teacher")] == [f"{names[i]}/teacher" for i in hard if kinds[0]]


@pytest.mark.clause("C006")
def test_the_teacher_is_asked_anew_at_every_visit(actors, batch_of, example):
    """Of b as a new question, then as a replayed one; the second prompt shows what the teacher answers then."""
    method, first = zppo(augment_ratio=1.0), actors(example)
    method.collect(batch_of("a b c"), first, rng())
    second = actors(example | {"b/teacher": [wrong("tb2"), right("tb3")]})
    method.collect(batch_of("a", "b"), second, rng())
    assert first.log[1] == "teacher x2: b/teacher c/teacher" and second.log[1] == "teacher x2: b/teacher"
    assert "[tb3]" in second.prompts["b/bcq"].messages[-1]["content"]


@pytest.mark.clause("C029")
def test_right_and_wrong_traces_are_compressed_in_the_same_words(actors, batch_of, example):
    models = actors(example)
    zppo(augment_ratio=1.0).collect(batch_of("a b c"), models, rng())
    asked = {prompt.uid: prompt.messages[0]["content"] for prompt in models.rewritten}
    assert {"b/compress/teacher/1", "b/compress/student/2"} <= asked.keys()
    assert {len(prompt.messages) for prompt in models.rewritten} == {1}
    assert len({text.partition("<response>")[0] for text in asked.values()}) == 1
