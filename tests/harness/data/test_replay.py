"""The prompt replay buffer against a plain reference, and its rules one by one."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.replay import PromptReplayBuffer
from harness.types import Prompt, Question, Rollout, RolloutGroup


def group(question_id: str, accuracy: float) -> RolloutGroup:
    question = Question(id=question_id, text=question_id, answer="1", messages=({"role": "user", "content": "hi"},))
    num_right = round(accuracy * 8)
    rollouts = [
        Rollout(
            sampler="student", index=i, prompt_ids=[1], completion_ids=[2], rollout_logprobs=[0.0], text="",
            finish_reason="stop", reward=float(i < num_right),
        )
        for i in range(8)
    ]  # fmt: skip
    prompt = Prompt(uid=f"{question_id}/plain", question=question, messages=())
    return RolloutGroup(uid=prompt.uid, prompt=prompt, rollouts=rollouts)


def ungraded(question_id: str, verdicts: str) -> RolloutGroup:
    """A group of 8, `?` for a rollout without a verdict, else its reward."""
    made = group(question_id, 0.0)
    for rollout, verdict in zip(made.rollouts, verdicts, strict=True):
        rollout.reward, rollout.verdict = float(verdict == "1"), "ungraded" if verdict == "?" else "wrong"
    return made


def names(events) -> list[tuple[str, str]]:
    return [(event.event, event.question_id) for event in events]


@pytest.mark.clause("C023", "C024")
def test_life_of_a_question():
    buffer = PromptReplayBuffer(capacity=2, tau=0.5)
    # 3/8 is hard, 4/8 = tau is not.
    events = buffer.update([group("a", 0.375), group("b", 0.5)])
    assert names(events) == [("admit", "a")]
    assert (events[0].entry_accuracy, events[0].visits) == (0.375, 0)

    events = buffer.update([group("a", 0.125), group("c", 0.0), group("d", 0.25)])
    assert names(events) == [("revisit", "a"), ("admit", "c"), ("admit", "d"), ("evict", "a")]
    assert (events[0].accuracy, events[0].entry_accuracy, events[0].visits) == (0.125, 0.375, 1)
    assert (events[3].accuracy, events[3].visits) == (None, 1)

    events = buffer.update([group("c", 1.0), group("a", 0.0)])
    assert names(events) == [("graduate", "c"), ("admit", "a")]
    assert events[1].entry_accuracy == 0.0 and events[1].visits == 0  # starts anew after the eviction
    assert buffer.totals == {
        ("admit", 0.375, 0): 1,  # a
        ("admit", 0.0, 0): 2,  # c, and a again
        ("admit", 0.25, 0): 1,  # d
        ("revisit", 0.375, 1): 1,  # a
        ("evict", 0.375, 1): 1,  # a
        ("graduate", 0.0, 1): 1,  # c, the first time it was met again
    }
    assert buffer.occupancy == {0.25: 1, 0.0: 1}  # d and a, by their accuracy at admission


@pytest.mark.clause("C003")
def test_draw_leaves_out_the_new_questions_and_floors():
    buffer = PromptReplayBuffer(capacity=10, tau=0.5)
    buffer.update([group(name, 0.0) for name in "abcd"])
    new = [group("a", 0.0).prompt.question]
    drawn = buffer.draw(num_new=11, ratio=0.25, exclude=new, rng=np.random.default_rng(0))  # floor(2.75) = 2
    assert len(drawn) == 2 and "a" not in {entry.question.id for entry in drawn}
    drawn = buffer.draw(num_new=100, ratio=0.25, exclude=new, rng=np.random.default_rng(0))
    assert sorted(entry.question.id for entry in drawn) == ["b", "c", "d"]
    assert PromptReplayBuffer(capacity=1, tau=0.5).draw(
        num_new=4, ratio=0.25, exclude=[], rng=np.random.default_rng(0)
    ) == []  # fmt: skip


@pytest.mark.clause("C026")
def test_draws_are_uniform():
    buffer = PromptReplayBuffer(capacity=4, tau=0.5)
    buffer.update([group(name, 0.0) for name in "abcd"])
    counts = dict.fromkeys("abcd", 0)
    for seed in range(2000):
        rng = np.random.default_rng(seed)
        counts[buffer.draw(num_new=4, ratio=0.25, exclude=[], rng=rng)[0].question.id] += 1
    # 2000 draws of one in four: mean 500, standard deviation 19.4; five of them is 97.
    assert all(abs(count - 500) < 97 for count in counts.values()), counts


@pytest.mark.clause("C023", "C024", "C025")
@settings(max_examples=60, deadline=None)
@given(
    capacity=st.integers(1, 4),
    steps=st.lists(
        st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 8)), max_size=5, unique_by=lambda pair: pair[0]),
        max_size=8,
    ),
)
def test_contents_equal_a_plain_reference(capacity, steps):
    buffer = PromptReplayBuffer(capacity=capacity, tau=0.5)
    queue: list[str] = []
    for step in steps:
        buffer.update([group(name, right / 8) for name, right in step])
        for name, right in step:
            if right >= 4:
                queue = [other for other in queue if other != name]
            elif name not in queue:
                queue.append(name)
        queue = queue[-capacity:]
        entries = buffer.state_dict()["entries"]
        assert [entry["question"] for entry in entries] == queue
        inside = Counter(entry["entry_accuracy"] for entry in entries)
        for (event, entry_accuracy, _), number in buffer.totals.items():
            inside[entry_accuracy] -= {"admit": 1, "graduate": -1, "evict": -1, "revisit": 0}[event] * number
        assert not any(inside.values())  # at each bin: admitted - graduated - evicted = inside


@pytest.mark.clause("C020")
def test_questions_are_kept_and_no_response():
    buffer = PromptReplayBuffer(capacity=3, tau=0.5)
    seen = group("a", 0.25)
    for rollout in seen.rollouts:
        rollout.text, rollout.answer = "a response", "a response"
    buffer.update([seen])
    (drawn,) = buffer.draw(num_new=4, ratio=0.25, exclude=[], rng=np.random.default_rng(0))
    assert drawn.question is seen.prompt.question
    assert set(vars(drawn)) == {"question", "visits", "entry_accuracy"}
    assert "a response" not in repr(vars(buffer)) + json.dumps(buffer.state_dict())


def test_state_survives_json():
    buffer = PromptReplayBuffer(capacity=3, tau=0.5)
    buffer.update([group(name, 0.25) for name in "abc"])
    buffer.update([group("a", 0.0)])
    copy = PromptReplayBuffer(capacity=3, tau=0.5)
    questions = {name: group(name, 0.0).prompt.question for name in "abc"}
    copy.load_state_dict(json.loads(json.dumps(buffer.state_dict())), questions)
    assert copy.state_dict() == buffer.state_dict()
    assert copy.totals == buffer.totals == {("admit", 0.25, 0): 3, ("revisit", 0.25, 1): 1}
    draws = [b.draw(num_new=8, ratio=0.25, exclude=[], rng=np.random.default_rng(3)) for b in (buffer, copy)]
    assert draws[0] == draws[1]
    assert names(copy.update([group("b", 1.0)])) == [("graduate", "b")]
    assert copy.totals["graduate", 0.25, 1] == 1 and copy.occupancy == {0.25: 2}


@pytest.mark.clause("C024")
def test_visits_are_counted_until_the_question_leaves():
    buffer = PromptReplayBuffer(capacity=1, tau=0.5)
    for accuracy in (0.125, 0.0, 0.25, 0.375, 0.5):
        buffer.update([group("a", accuracy)])
    assert buffer.totals == {
        ("admit", 0.125, 0): 1,
        ("revisit", 0.125, 1): 1,
        ("revisit", 0.125, 2): 1,
        ("revisit", 0.125, 3): 1,
        ("graduate", 0.125, 4): 1,
    }
    assert len(buffer) == 0 and buffer.occupancy == {}


def test_a_group_that_could_not_be_graded_leaves_its_question_as_it_is():
    buffer = PromptReplayBuffer(capacity=9, tau=0.5)
    assert names(buffer.update([group("a", 0.25), ungraded("b", "????????"), ungraded("c", "0???????")])) == [
        ("admit", "a")
    ]
    before = buffer.state_dict()
    assert buffer.update([ungraded("a", "1???????"), ungraded("a", "????????")]) == []
    assert buffer.state_dict() == before
    # 1 of 3 graded is below tau, 1 of 2 is not; the ungraded are in no denominator.
    events = buffer.update([ungraded("d", "100?????"), ungraded("a", "10??????")])
    assert [(e.event, e.accuracy, e.entry_accuracy, e.visits) for e in events] == [
        ("admit", 1 / 3, 1 / 3, 0), ("graduate", 0.5, 0.25, 1),
    ]  # fmt: skip
