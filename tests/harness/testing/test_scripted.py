"""A scripted teacher, asked by built-in methods: through the real actors, tokenizer, limits and grader."""

import pytest

from harness.testing import Case, ScriptedTeacher, right_trace, wrong_trace
from harness.types import Prompt
from methods import registry


def first_step(method: str, teacher: ScriptedTeacher, **options: object):
    return Case(registry.method_class(method), options, teacher).first()


def teachers(step) -> list:
    return [group for group in step.groups if group.rollouts[0].sampler == "teacher"]


def test_rollouts_are_the_replies_in_turn_and_graded():
    step = first_step(
        "off_policy_kd", ScriptedTeacher(rollouts=[right_trace, wrong_trace, "\\boxed{"]), teacher_group_size=4
    )
    groups = teachers(step)
    assert len(groups) == 8
    for group in groups:
        gold = group.prompt.question.answer
        assert [rollout.verdict for rollout in group.rollouts] == ["correct", "wrong", "unparsable", "correct"]
        assert [rollout.answer for rollout in group.rollouts] == [gold, f"1{gold}", None, gold]
        assert [rollout.text for rollout in group.rollouts][:2] == [
            f"<think>Add.</think>\\boxed{{{gold}}}", f"<think>Guess.</think>\\boxed{{1{gold}}}",
        ]  # fmt: skip
        assert all(rollout.finish_reason == "stop" for rollout in group.rollouts)
    assert {len(step.samples), sum(g.prompt.kind == "plain" for g in groups) * 2} == {16}  # the right ones are trained


def test_a_reply_beyond_the_limit_is_cut():
    step = first_step("off_policy_kd", ScriptedTeacher(rollouts=["9" * 40, right_trace]))
    for group in teachers(step):
        cut, _ = group.rollouts
        assert (len(cut.completion_ids), cut.finish_reason, cut.text) == (32, "length", "9" * 32)


def test_all_wrong_leaves_no_bcq_and_all_right_traces_are_positive():
    """The NCQ needs no right trace. A BCQ's positive answer is the gold one, which the summary keeps."""
    wrong = first_step("zppo", ScriptedTeacher(rollouts=[wrong_trace]))
    assert (wrong.num_prompts["bcq"], wrong.num_prompts["ncq"]) == (0, 3)
    right = first_step("zppo", ScriptedTeacher(rollouts=[right_trace]), ncq=False)
    asked = [group.prompt for group in right.groups if group.prompt.kind == "bcq"]
    assert len(asked) == 3 and all(p.positive_answer == p.question.answer for p in asked)


def test_a_rewrite_is_asked_greedily_and_once_more_by_sampling():
    """The first summary has another answer, the second is right: each of them is redrawn, and all are accepted."""

    def other(prompt: Prompt) -> str:
        return "<summary>\\boxed{-1}</summary>"

    def kept(prompt: Prompt) -> str:
        return f"<summary>{prompt.reference[prompt.reference.index('</think>') + 8 :]}</summary>"

    step = first_step("zppo", ScriptedTeacher(rewrites={"compress": [other, kept]}), bcq=False)
    asked = step.num_rewrites["compress"]
    assert step.counts["compress/redrawn"] == step.counts["compress/accepted"] == asked / 2 > 0
    assert step.num_accepted["compress"] == asked / 2
    silent = first_step("zppo", ScriptedTeacher(rewrites={"compress": ["no tags"]}), bcq=False)
    assert silent.counts["compress/accepted"] == 0 and silent.unseen(frozenset({"plain", "ncq"})) == ["compress", "ncq"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"rollouts": []}, r"for rollouts, got \[\]"),
        ({"rollouts": "right"}, "for rollouts, got 'right'"),
        ({"rewrites": {"critique": ()}}, r"for critique, got \(\)"),
        ({"rewrites": {"critique": right_trace}}, "for critique, got <function"),
    ],
)
def test_a_script_without_replies_is_refused(words, message):
    with pytest.raises(ValueError, match=f"ScriptedTeacher takes a list of one or more replies {message}"):
        ScriptedTeacher(**words)
