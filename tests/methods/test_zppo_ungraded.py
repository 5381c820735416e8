"""What no prompt may call wrong: an answer at its limit of time, and one that nobody could grade."""

from __future__ import annotations

import math

import numpy as np
import pytest

from methods.zppo import ZPPO, ZPPOConfig

RIGHT = ("yes", "42", 1.0)


def wrong(text: str, answer: str) -> tuple[str, str, float]:
    return (text, answer, 0.0)


@pytest.fixture
def models(actors):
    """`a` is easy; `b` has 1/4, one of its wrong answers a timeout; `c` one graded rollout; `d` timeouts alone; `e` 0/3
    with one ungraded."""
    replies = {name: [wrong(f"{name[0]}{i}", str(i)) for i in range(4)] for name in ("c/plain", "d/plain", "e/plain")}
    replies |= {
        "a/plain": [RIGHT] * 4,
        "b/plain": [wrong("b0", "0"), RIGHT, wrong("b2", "2"), wrong("b3", "3")],
        **{f"{name}/teacher": [RIGHT, wrong(f"t{name}", "9")] for name in "bcde"},
    }
    verdicts = {
        "b/plain": {2: "timeout"},
        "c/plain": {1: "ungraded", 2: "ungraded", 3: "ungraded"},
        "d/plain": dict.fromkeys(range(4), "timeout"),
        "e/plain": {0: "ungraded"},
        "b/teacher": {1: "ungraded"},
    }
    return actors(replies, verdicts=verdicts)


def zppo(**options) -> ZPPO:
    return ZPPO(ZPPOConfig(**({"group_size": 4, "teacher_group_size": 2, "augment_ratio": 1.0} | options)))


def test_no_prompt_lists_or_shows_them(models, batch_of):
    method = zppo()
    groups = method.collect(batch_of("a b c d e"), models, np.random.default_rng(0))
    assert "teacher x2: b/teacher d/teacher e/teacher" in models.log
    assert sorted(g.uid for g in groups if g.prompt.kind != "plain") == ["b/bcq", "b/ncq", "e/bcq", "e/ncq"]
    texts = {uid: prompt.messages[-1]["content"] for uid, prompt in models.prompts.items()}
    assert "\\boxed{0}, \\boxed{3}." in texts["b/ncq"] and "\\boxed{1}, \\boxed{2}, \\boxed{3}." in texts["e/ncq"]
    shown = {uid: [name for name in ("b0", "b2", "b3", "e0", "e1", "e2", "e3") if f"[{name}]" in texts[uid]]
             for uid in ("b/ncq", "e/ncq")}  # fmt: skip
    assert shown == {"b/ncq": ["b0", "b3"], "e/ncq": ["e1", "e2", "e3"]}
    assert not any(f"[{name}]" in texts[uid] for uid in ("b/bcq", "e/bcq") for name in ("b2", "e0"))
    # a is easy; b, d and e are hard, but d has nothing that may be shown as wrong; c is neither hard nor easy.
    found = method.metrics(groups)
    assert [found[f"precap/{name}_frac"] for name in ("easy", "bcq", "ncq")] == [0.2, 0.4, 0.4]
    assert found["teacher/accuracy"] == 3 / 5  # b 1 of 1, d and e 1 of 2 each


@pytest.mark.parametrize("seed", range(5))
def test_the_controls_show_none_either(models, batch_of, seed):
    method = zppo(bcq_positive="wrong", ncq_source="foreign")
    method.collect(batch_of("a b c d e"), models, np.random.default_rng(seed))
    traces = {prompt.reference for prompt in models.rewritten}
    assert traces and not traces & {"b2", "tb", "e0", "d0", "d1", "d2", "d3", "c0", "c1"}


def test_a_timeout_is_trained_as_wrong_and_an_ungraded_one_not(models, batch_of):
    method = zppo(advantage_normalization="none", replay=False)
    groups = method.collect(batch_of("b e"), models, np.random.default_rng(0))
    plain = [sample for sample in method.credit(groups) if sample.uid.endswith("/plain")]
    assert [sample.advantages[-1] for sample in plain] == [-0.25, 0.75, -0.25, -0.25, 0.0, 0.0, 0.0, 0.0]
    assert [sample.denominator for sample in plain] == [2.0] * 8
    assert not any(math.isnan(value) for sample in plain for value in sample.advantages)
