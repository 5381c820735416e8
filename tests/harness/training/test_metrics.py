"""The numbers of a step, derived by hand."""

import dataclasses

import pytest

from harness.data.replay import PromptReplayBuffer
from harness.training import metrics
from harness.types import Prompt, Question, Rollout, RolloutGroup, TrainingSample


def group(name, rewards, *, kind="plain", sampler="student", replayed=False, finish="stop", verdict="wrong", **options):
    question = Question(id=name, text="", answer="")
    prompt = Prompt(uid=f"{name}/{kind}", question=question, messages=(), kind=kind, **options)
    rollouts = [
        Rollout(
            sampler=sampler, index=i, prompt_ids=[1, 2], completion_ids=[3] * (i + 1), rollout_logprobs=[0.0] * (i + 1),
            text="", finish_reason=finish, reward=reward, verdict=verdict, answer=f"{name}{i}",
        )
        for i, reward in enumerate(rewards)
    ]  # fmt: skip
    return RolloutGroup(uid=prompt.uid, prompt=prompt, rollouts=rollouts, replayed=replayed)


@pytest.mark.clause("C022")
def test_group_metrics_by_hand():
    groups = [
        group("a", [1.0, 0.0]),
        group("b", [0.0, 0.0], finish="length", verdict="unparsable"),
        group("c", [1.0, 1.0], replayed=True),
        group("a", [1.0, 0.0, 0.0], kind="bcq", positive_answer="a0", negative_answers=("a1",)),
        group("b", [0.0, 0.0], kind="ncq", negative_answers=("b0", "b1")),
        group("b", [1.0, 1.0], sampler="teacher"),
        group("b", [1.0, 0.0], kind="extra"),
    ]
    assert metrics.group_metrics(groups) == {
        "group/num_plain": 3.0,
        "group/num_student": 6.0,
        "group/zero_std_frac": 0.5,  # b, c and b/ncq of a, b, c, a/bcq, b/ncq, b/extra
        "group/all_right_frac": pytest.approx(1 / 6),  # c
        "group/all_wrong_frac": pytest.approx(2 / 6),  # b and b/ncq
        "rollout/accuracy": 0.25,  # (1/2 + 0) / 2: the replayed group and the teacher's are not in it
        "rollout/truncated_frac": 0.5,
        "rollout/unparsable_frac": 0.5,
        "rollout/timeout_frac": 0.0,
        "rollout/response_tokens": 1.5,
        "rollout/entropy": 0.0,
        "replay/accuracy": 1.0,
        "bcq/right_positive": 1.0,
        "bcq/wrong_negative": 1.0,
        "bcq/wrong_other": 1.0,
        "ncq/wrong_negative": 2.0,
    }
    assert [g.uid for g in metrics.plain_student_groups(groups)] == ["a/plain", "b/plain", "c/plain"]


def test_a_teacher_response_in_a_students_group_is_not_the_students():
    """It has 9 tokens, is cut off, right and timed out; the student's two have 1 and 2, both wrong."""
    joined = group("a", [0.0, 0.0])
    theirs = group("a", [1.0], sampler="teacher", finish="length", verdict="timeout").rollouts[0]
    joined.rollouts.append(dataclasses.replace(theirs, completion_ids=[3] * 9))
    assert metrics.group_metrics([joined]) == {
        "group/num_plain": 1.0,
        "group/num_student": 1.0,
        "group/zero_std_frac": 0.0,  # but it is part of what the group is centred on
        "group/all_right_frac": 0.0,
        "group/all_wrong_frac": 0.0,
        "rollout/accuracy": 0.0,
        "rollout/truncated_frac": 0.0,
        "rollout/unparsable_frac": 0.0,
        "rollout/timeout_frac": 0.0,
        "rollout/response_tokens": 1.5,
        "rollout/entropy": 0.0,
    }


def test_the_ungraded_are_in_no_accuracy():
    """a: 1, 0 and two ungraded; b: 0, 0; c: one of two graded; d and its BCQ, replayed: 1 and an ungraded one each."""
    groups = [
        group("a", [1.0, 0.0, 0.0, 0.0]),
        group("b", [0.0, 0.0]),
        group("c", [1.0, 0.0]),
        group("d", [1.0, 0.0], replayed=True),
        group("d", [1.0, 0.0, 0.0], kind="bcq", replayed=True, positive_answer="d0", negative_answers=("d1",)),
    ]
    for i, indices in enumerate([(2, 3), (), (1,), (1,), (1,)]):
        for index in indices:
            groups[i].rollouts[index].verdict = "ungraded"
    assert metrics.group_metrics(groups) == {
        "group/num_plain": 4.0,
        "group/num_student": 5.0,
        "group/zero_std_frac": pytest.approx(1 / 3),  # b of a, b and d/bcq
        "group/all_right_frac": 0.0,
        "group/all_wrong_frac": pytest.approx(1 / 3),
        "rollout/accuracy": 0.25,  # (1/2 + 0) / 2
        "rollout/truncated_frac": 0.0,
        "rollout/unparsable_frac": 0.0,
        "rollout/timeout_frac": 0.0,
        "rollout/ungraded_frac": pytest.approx(3 / 8),
        "rollout/entropy": 0.0,  # of every sampled token, graded or not
        "rollout/response_tokens": (1 + 2 + 3 + 4 + 1 + 2 + 1 + 2) / 8,
        "bcq/right_positive": 1.0,
        "bcq/wrong_other": 1.0,
    }  # and no replay/accuracy


def test_entropy_is_over_the_sampled_tokens_of_new_plain_rollouts_of_the_student():
    """New tokens of 1, 2 and 6 nats: 3; the mean of the two rollouts' means would be 2.5. Nothing else counts."""

    def with_logprobs(made, *logprobs):
        for rollout, values in zip(made.rollouts, logprobs, strict=True):
            rollout.rollout_logprobs, rollout.completion_ids = list(values), [3] * len(values)
        return made

    new = with_logprobs(group("a", [1.0, 0.0]), (-1.0,), (-2.0, -6.0))
    theirs = with_logprobs(group("a", [1.0], sampler="teacher"), (-50.0,)).rollouts[0]
    new.rollouts.append(theirs)
    others = [
        with_logprobs(group("b", [0.0, 0.0], replayed=True), (-50.0,), (-50.0,)),
        *(
            with_logprobs(group("a", [0.0, 0.0], kind=kind), (-50.0,), (-50.0,))
            for kind in ("bcq", "ncq", "hint", "prefix", "extra")
        ),
        with_logprobs(group("a", [0.0, 0.0], sampler="teacher"), (-50.0,), (-50.0,)),
    ]
    assert metrics.group_metrics([new, *others])["rollout/entropy"] == 3.0
    given = with_logprobs(group("c", [1.0]), (0.0, 0.0, -7.0))
    given.rollouts[0].num_prefix = 2  # tokens that nobody sampled
    assert metrics.group_metrics([given])["rollout/entropy"] == 7.0
    unknown = with_logprobs(group("d", [1.0]), (float("nan"), -3.0))
    assert metrics.group_metrics([unknown])["rollout/entropy"] == 3.0
    none = with_logprobs(group("e", [1.0]), (float("nan"),))
    assert "rollout/entropy" not in metrics.group_metrics([none])


def test_without_groups_there_is_nothing_but_counts():
    assert metrics.group_metrics([]) == {
        "group/num_plain": 0.0, "group/num_student": 0.0, "group/zero_std_frac": 0.0,
        "group/all_right_frac": 0.0, "group/all_wrong_frac": 0.0,
    }  # fmt: skip


SAMPLES = [
    TrainingSample(uid="a", token_ids=[1, 2, 3], loss_mask=[0, 1, 1], advantages=[0, 2.0, 2.0]),
    TrainingSample(uid="a", token_ids=[1, 2, 3, 4], loss_mask=[0, 1, 1, 1], advantages=[0, -1.0, -1.0, -1.0]),
    TrainingSample(uid="b", token_ids=[1, 2], loss_mask=[0, 1], advantages=[0, 0.0], inert=True),
]


def test_sample_metrics_by_hand():
    assert metrics.sample_metrics(SAMPLES) == pytest.approx(
        {
            "train/num_samples": 3,
            "train/num_tokens": 6,
            "train/inert_frac": 1 / 3,
            "train/positive_advantage_frac": 1 / 3,
        }
    )
    plain = [TrainingSample(uid="a", token_ids=[1, 2], loss_mask=[0, 1])]
    assert "train/positive_advantage_frac" not in metrics.sample_metrics(plain)


def test_token_metrics_by_hand():
    # 3 + 4 tokens, prompts included; the inert sample is not scored
    assert metrics.token_metrics(SAMPLES, num_updated=6, num_rescored=5, teacher_scores=True) == {
        "tokens/student_update": 6.0,
        "tokens/student_rescored": 5.0,
        "tokens/teacher_scored": 7.0,
    }
    assert (
        metrics.token_metrics(SAMPLES, num_updated=6, num_rescored=0, teacher_scores=False)["tokens/teacher_scored"]
        == 0.0
    )


def test_a_teachers_own_prompt_is_counted_in_the_place_of_the_students():
    ids, mask = [1, 2, 7, 8, 3, 4], [0, 0, 0, 0, 1, 1]
    rollout = group("a", [1.0]).rollouts[0]  # its prompt has 2 tokens, so 7 and 8 are a given prefix
    for sample, num_tokens in [
        (TrainingSample(uid="a", token_ids=ids, loss_mask=mask, teacher_prompt_ids=[9] * 5), 7),  # 5 + 2
        (TrainingSample(uid="a", token_ids=ids, loss_mask=mask, teacher_prompt_ids=[9] * 5, rollout=rollout), 9),
        (TrainingSample(uid="a", token_ids=ids, loss_mask=mask, teacher_prompt_ids=[], rollout=rollout), 4),
        (TrainingSample(uid="a", token_ids=ids, loss_mask=mask, teacher_prompt_ids=[9], inert=True), 0),
    ]:
        row = metrics.token_metrics([sample], num_updated=0, num_rescored=0, teacher_scores=True)
        assert row["tokens/teacher_scored"] == num_tokens


def test_flops_by_hand():
    tokens = {
        "tokens/student_generated": 10.0,
        "tokens/student_prompt": 5.0,
        "tokens/teacher_generated": 2.0,
        "tokens/student_update": 7.0,
        "tokens/student_rescored": 3.0,
        "tokens/teacher_scored": 4.0,
        "rollout/accuracy": 1.0,  # whatever else the row has
    }
    expected = {
        "flops/student_generation": 2 * 100 * 15,
        "flops/student_update": 6 * 100 * 7 + 2 * 100 * 3,
        "flops/teacher_generation": 2 * 1000 * 2,
        "flops/teacher_scoring": 2 * 1000 * 4,
    }
    assert metrics.flops(tokens, student=100, teacher=1000) == expected
    again = metrics.flops(tokens, student=100, teacher=1000, gradient_checkpointing=True)
    assert again == expected | {"flops/student_update": 8 * 100 * 7 + 2 * 100 * 3}  # the update's forward twice
    assert set(metrics.flops({}, student=100, teacher=0).values()) == {0.0}


@pytest.mark.clause("C118")
def test_buffer_metrics_by_hand():
    buffer = PromptReplayBuffer(capacity=2, tau=0.5)
    assert metrics.buffer_metrics(buffer, [], 0) == dict.fromkeys(
        [
            f"buffer/{name}"
            for name in ("size", "replayed", "events", "admitted", "graduated", "graduated_by_chance", "evicted")
        ],
        0.0,
    )
    buffer.update([group("a", [1.0, 0.0, 0.0, 0.0]), group("b", [0.0] * 4)])  # admit a at 1/4, b at 0
    buffer.update([group("a", [0.0] * 4), group("b", [1.0] * 4), group("c", [0.0] * 4)])  # b graduates, c at 0
    events = buffer.update([group("d", [0.0, 1.0, 0.0, 0.0])])  # admit d at 1/4, evict a, which was met once
    # Seen at the visits of a and b: three times 0, once 1/4, once 1. Of these only 1/4 explains 1 of 4, and 0 (weight
    # 3) and 1/4 (weight 0.75^4) explain 0 of 4. At 1/4 two or more of four are right with 1 - 0.75^4 - 4 0.25 0.75^3.
    reaches = 1 - 0.31640625 - 0.421875
    chance_a, chance_b = reaches, reaches * 0.31640625 / 3.31640625
    assert metrics.buffer_metrics(buffer, events, 3) == {
        "buffer/size": 2.0,
        "buffer/size@0": 1.0,  # c
        "buffer/size@0.25": 1.0,  # d
        "buffer/replayed": 3.0,
        "buffer/events": 2.0,
        "buffer/admitted": 4.0,
        "buffer/admitted@0": 2.0,
        "buffer/admitted@0.25": 2.0,
        "buffer/graduated": 1.0,
        "buffer/graduated@0": 1.0,
        "buffer/graduated@visits_1": 1.0,
        "buffer/graduated_by_chance": pytest.approx(chance_a + chance_b),
        "buffer/graduated_by_chance@0.25": pytest.approx(chance_a),
        "buffer/graduated_by_chance@0": pytest.approx(chance_b),
        "buffer/graduated_by_chance@visits_1": pytest.approx(chance_a + chance_b),
        "buffer/evicted": 1.0,
        "buffer/evicted@0.25": 1.0,
        "buffer/evicted@visits_1": 1.0,
    }


@pytest.mark.clause("C118")
def test_buffer_metrics_count_many_visits_together():
    """Questions that graduate when they are met for the 5th, 6th and 8th time, from accuracies 1/8, 1/3 and 1/8."""
    buffer = PromptReplayBuffer(capacity=9, tau=0.5)
    for name, num_visits, entry in [
        ("a", 5, [1.0] + [0.0] * 7),
        ("b", 6, [1.0, 0.0, 0.0]),
        ("c", 8, [1.0] + [0.0] * 7),
    ]:
        buffer.update([group(name, entry)])
        for visit in range(num_visits):
            buffer.update([group(name, [float(visit == num_visits - 1)])])
    row = metrics.buffer_metrics(buffer, [], 0)
    found = {name.removeprefix("buffer/"): value for name, value in row.items() if "/graduated" in name}
    chances = {name: found.pop(name) for name in list(found) if name.startswith("graduated_by_chance")}
    of_visits = [chances[f"graduated_by_chance@visits_{visits}"] for visits in range(1, 7)]
    assert chances["graduated_by_chance"] == pytest.approx(sum(of_visits))
    assert found == {
        "graduated": 3.0,
        "graduated@0.125": 2.0,
        "graduated@0.333333": 1.0,
        "graduated@visits_5": 1.0,
        "graduated@visits_6": 2.0,
    }
