"""Tokens of a step by hand: four questions, responses of 64 tokens, prompts of 10."""

import pytest

from harness.config.compose import compose
from harness.config.deployment import build_method
from harness.config.schema import RunConfig, from_hydra
from harness.preflight.plan.counting import Assumptions, StepCount, count_step, unit_of

SETTING = ["student=qwen3_5_2b", "data.batch_size=4", "rollout.max_response_tokens=64", "rollout.max_prompt_tokens=100"]


def count(*overrides: str, **assumed: float) -> StepCount:
    config: RunConfig = from_hydra(compose([*SETTING, *overrides]))
    method = build_method(config)
    assert method is not None
    return count_step(method, config, Assumptions(**{"prompt_tokens": 10, **assumed}))


def tokens(*overrides: str, **assumed: float) -> dict[str, float]:
    found = count(*overrides, **assumed).tokens
    return {name.removeprefix("tokens/"): number for name, number in found.items() if number}


def test_ids_stand_for_as_many_tokens_as_keep_the_count_fine():
    assert [unit_of(n) for n in (48, 383, 384, 2048, 12_288)] == [1, 1, 2, 8, 64]


def test_grpo_samples_each_question_eight_times():
    """4 * 8 * 64 tokens, each prompt once; where every group is all right or all wrong, nothing is trained."""
    sampled = {"student_generated": 2048, "student_prompt": 40}
    assert tokens("method=grpo", accuracy=0.0) == sampled
    assert tokens("method=grpo", accuracy=1.0) == sampled


def test_grpo_trains_every_group_that_is_neither():
    found = tokens("method=grpo", "data.batch_size=96", accuracy=0.5)
    groups = found["student_update"] / (8 * 74)
    assert groups == int(groups) and 60 < groups < 90  # 7 of 9 counts of right rollouts are neither, of 96: 75


def test_replay_adds_a_quarter():
    assert tokens("method=grpo_replay", accuracy=0.0)["student_generated"] == 5 * 8 * 64


def test_distillation_on_the_students_rollouts():
    """All 32 sequences of 74 tokens are trained, and read by the teacher."""
    assert tokens("method=on_policy_kd", accuracy=0.0) == {
        "student_generated": 2048, "student_prompt": 40, "student_update": 32 * 74, "teacher_scored": 32 * 74,
    }  # fmt: skip


def test_distillation_on_the_teachers_right_rollouts():
    """4 * 4 rollouts of the teacher; all are right, or none."""
    assert tokens("method=off_policy_kd", teacher_accuracy=1.0) == {
        "student_generated": 2048, "student_prompt": 40, "teacher_generated": 1024, "teacher_prompt": 40,
        "student_update": 16 * 74, "teacher_scored": 16 * 74,
    }  # fmt: skip
    assert "student_update" not in tokens("method=off_policy_kd", teacher_accuracy=0.0)


def test_zppo_where_all_are_hard():
    """5 plain groups (one replayed), 5 * 4 teacher rollouts; one slot, which is a BCQ's: two summaries of 512 tokens,
    written from responses of 64, in a prompt of 10 + 2 * 512."""
    assert tokens("method=zppo", accuracy=0.0, teacher_accuracy=1.0) == {
        "student_generated": 6 * 8 * 64, "student_prompt": 5 * 10 + 10 + 1024,
        "teacher_generated": 5 * 4 * 64 + 2 * 512, "teacher_prompt": 5 * 10 + 2 * 64,
    }  # fmt: skip


def test_zppo_where_none_is_hard():
    assert tokens("method=zppo", accuracy=1.0) == {"student_generated": 5 * 8 * 64, "student_prompt": 50}


def test_a_prefix_counts_as_prompt():
    """floor(0.4 * 64) = 25 tokens are given in the one guided group, 39 are sampled."""
    found = tokens("method=prefix", accuracy=0.0, teacher_accuracy=1.0)
    assert found["student_generated"] == 5 * 8 * 64 + 8 * 39
    assert found["student_prompt"] == 50 + 10 + 25


def test_old_logprobs_that_are_recomputed():
    found = tokens("method=grpo", "update.old_logprobs=recompute", accuracy=0.5)
    assert found["student_rescored"] == found["student_update"]


def test_the_longest_sequence_has_its_candidates():
    """An NCQ shows up to 8 wrong traces of 512 tokens; here all of its group are wrong but one."""
    assert count("method=grpo").longest == 164
    long = count("method=grpo_replay_ncq", "data.batch_size=96", accuracy=0.2).longest
    assert (long - 164) % 512 == 0 and 164 + 5 * 512 < long <= 164 + 8 * 512


@pytest.mark.parametrize("method", ["hint", "grpo_teacher_response", "grpo_equal_tokens", "sft", "zppo_foreign_ncq"])
def test_every_other_method_can_be_counted(method):
    assert count(f"method={method}").tokens["tokens/student_update"] >= 0
