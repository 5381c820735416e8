r"""The candidate-match audit: strings are compared after lower case, white space and `\text{}`; values are not."""

import pytest

from harness.rewards.match import CANDIDATE_KINDS, candidate_match, match_counts, normal_answer
from harness.types import Prompt, Question, Rollout, RolloutGroup


def prompt(kind="bcq", positive=None, negatives=()):
    question = Question(id="q", text="", answer="")
    return Prompt(
        uid=f"q/{kind}", question=question, messages=(), kind=kind, positive_answer=positive, negative_answers=negatives
    )


def rollout(answer, reward=0.0):
    return Rollout(
        sampler="student", index=0, prompt_ids=[1], completion_ids=[2], rollout_logprobs=[0.0], text="",
        finish_reason="stop", answer=answer, reward=reward,
    )  # fmt: skip


@pytest.mark.clause("C119")
@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("42", "42"),
        ("  A \t Blue\nWhale ", "a blue whale"),
        (r"\text{Blue}", "blue"),
        (r"\text { Blue }  whale", "blue whale"),
        (r"5\text{ cm}^2", "5 cm^2"),
        (r"\text{a}\text{b}", "ab"),
        (r"\textbf{Blue}", r"\textbf{blue}"),  # another command
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        ("", ""),
    ],
)
def test_normal_answers(answer, normal):
    assert normal_answer(answer) == normal


@pytest.mark.clause("C119")
@pytest.mark.parametrize(
    ("answer", "match"),
    [
        ("3", "positive"),
        (r"\text{ 3 }", "positive"),
        ("7", "negative"),
        ("Blue  Whale", "negative"),
        ("8", "other"),
        ("3.0", "other"),  # the same value in another notation is another string
        ("", "other"),
        (None, "other"),
    ],
)
@pytest.mark.parametrize("kind", ["bcq", "ncq"])
def test_every_class(kind, answer, match):
    asked = prompt(kind, positive="3", negatives=("7", r"\text{blue whale}"))
    assert candidate_match(rollout(answer), asked) == match


def test_the_right_traces_answer_goes_first():
    """The two traces of a BCQ may have one string: which was right, the grader knew from elsewhere."""
    assert candidate_match(rollout("3"), prompt(positive="3", negatives=("3",))) == "positive"


def test_without_a_right_trace_there_is_no_positive():
    assert candidate_match(rollout("3"), prompt("ncq", negatives=("7",))) == "other"
    assert candidate_match(rollout("7"), prompt("ncq", negatives=("7",))) == "negative"
    assert candidate_match(rollout(None), prompt("ncq")) == "other"


@pytest.mark.parametrize("kind", ["plain", "hint", "prefix", "extra", "compress", "write_hint"])
def test_prompts_without_candidates_have_no_match(kind):
    assert candidate_match(rollout("3"), prompt(kind, positive="3", negatives=("3",))) is None
    assert kind not in CANDIDATE_KINDS


@pytest.mark.clause("C119")
def test_counts_by_kind_verdict_and_match():
    def group(asked, *replies):
        rollouts = [rollout(answer, reward) for answer, reward in replies]
        return RolloutGroup(uid=asked.uid, prompt=asked, rollouts=rollouts)

    bcq, ncq = prompt("bcq", "3", ("7",)), prompt("ncq", None, ("7", "8"))
    groups = [
        group(prompt("plain", "3", ("7",)), ("3", 1.0)),
        group(bcq, ("3", 1.0), ("3", 1.0), ("3.0", 1.0), ("7", 0.0), (None, 0.0)),
        group(bcq, ("3", 1.0), ("7", 1.0), ("3", 0.0)),
        group(ncq, ("8", 0.0), ("9", 0.0), ("3", 1.0)),
    ]
    assert match_counts(groups) == {
        "bcq/right_positive": 3.0,
        "bcq/right_other": 1.0,
        "bcq/right_negative": 1.0,
        "bcq/wrong_negative": 1.0,
        "bcq/wrong_other": 1.0,
        "bcq/wrong_positive": 1.0,
        "ncq/wrong_negative": 1.0,
        "ncq/wrong_other": 1.0,
        "ncq/right_other": 1.0,
    }
    assert match_counts(groups[:1]) == {}
