from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.images import ImageFile
from harness.data.sampler import Batch, DataExhausted, QuestionSampler
from harness.data.video import VideoFile
from harness.errors import UserError
from harness.types import MediaLimits, Question, QuestionBatch

Action = int | None
"""None: the next batch; a number: `more` of it."""


def make_questions(num_questions: int) -> list[Question]:
    return [Question(id=str(i), text=f"q{i}?", answer=str(i)) for i in range(num_questions)]


def make_sampler(
    num_questions: int, batch_size: int, *, epochs: int = 1, shuffle: bool = True, seed: int = 0
) -> QuestionSampler:
    return QuestionSampler(
        make_questions(num_questions), batch_size=batch_size, epochs=epochs, shuffle=shuffle, seed=seed
    )


def ids(questions: list[Question]) -> list[str]:
    return [q.id for q in questions]


def act(sampler: QuestionSampler, action: Action) -> list[str] | None:
    """The ids that an action gives; None once the data end."""
    if action is not None:
        return ids(sampler.more(action))
    try:
        return ids(sampler.next_batch())
    except DataExhausted:
        return None


sizes = st.integers(1, 12).flatmap(lambda b: st.tuples(st.integers(b, 40), st.just(b)))
epochs = st.integers(1, 3)
seeds = st.integers(-3, 2**70)
actions = st.lists(st.none() | st.integers(0, 9), max_size=25)
quick = settings(max_examples=60, deadline=None)


def test_without_shuffling_batches_follow_the_data() -> None:
    sampler = make_sampler(7, 3, epochs=2, shuffle=False)
    batches = [ids(sampler.next_batch()) for _ in range(4)]
    assert batches == [["0", "1", "2"], ["3", "4", "5"], ["0", "1", "2"], ["3", "4", "5"]]


@pytest.mark.clause("C004")
@given(sizes, epochs, seeds)
@quick
def test_an_epoch_holds_every_question_once_but_the_dropped_tail(
    size: tuple[int, int], num_epochs: int, seed: int
) -> None:
    num_questions, batch_size = size
    sampler = make_sampler(num_questions, batch_size, epochs=num_epochs, seed=seed)
    steps = num_questions // batch_size
    assert sampler.num_steps == sampler.num_steps_left == steps * num_epochs
    for epoch in range(num_epochs):
        seen = [id for _ in range(steps) for id in ids(sampler.next_batch())]
        assert len(seen) == len(set(seen)) == steps * batch_size
        assert sampler.state_dict()["epoch"] == epoch
        assert sampler.num_steps_left == steps * (num_epochs - 1 - epoch)
        tail = ids(sampler.more(num_questions)) if epoch == num_epochs - 1 else []
        if tail:
            assert sorted(seen + tail) == sorted(str(i) for i in range(num_questions))
    with pytest.raises(DataExhausted, match=rf"after epoch {num_epochs}: raise data.epochs"):
        sampler.next_batch()


@given(sizes, epochs, seeds, actions)
@quick
def test_no_question_twice_in_an_epoch_whatever_is_taken(
    size: tuple[int, int], num_epochs: int, seed: int, taken: list[Action]
) -> None:
    num_questions, batch_size = size
    sampler = make_sampler(num_questions, batch_size, epochs=num_epochs, seed=seed)
    seen: dict[int, list[str]] = {}
    for action in taken:
        left, steps_left = num_questions - sampler.state_dict()["position"], sampler.num_steps_left
        drawn = act(sampler, action)
        if drawn is None:
            assert steps_left == 0
            continue
        assert len(drawn) == (batch_size if action is None else min(action, left))
        if action is None:
            assert sampler.num_steps_left == steps_left - 1
        epoch = seen.setdefault(sampler.state_dict()["epoch"], [])
        epoch += drawn
        assert len(set(epoch)) == len(epoch)


@given(sizes, epochs, seeds, actions, actions)
@quick
def test_resuming_anywhere_goes_on_as_if_unbroken(
    size: tuple[int, int], num_epochs: int, seed: int, before: list[Action], after: list[Action]
) -> None:
    unbroken = make_sampler(*size, epochs=num_epochs, seed=seed)
    for action in before:
        act(unbroken, action)
    resumed = make_sampler(*size, epochs=num_epochs, seed=seed)
    resumed.load_state_dict(json.loads(json.dumps(unbroken.state_dict())))
    assert [act(resumed, action) for action in after] == [act(unbroken, action) for action in after]
    assert resumed.state_dict() == unbroken.state_dict()


def test_order_depends_on_seed_and_epoch_only() -> None:
    def epoch_orders(seed: int, batch_size: int) -> list[list[str]]:
        sampler = make_sampler(24, batch_size, epochs=2, seed=seed)
        steps = 24 // batch_size
        return [[id for _ in range(steps) for id in ids(sampler.next_batch())] for _ in range(2)]

    first, second = epoch_orders(0, 4)
    assert first != second
    assert epoch_orders(0, 8) == [first, second]
    assert epoch_orders(1, 4)[0] != first


def test_more_shrinks_the_rest_of_its_epoch_only() -> None:
    # 10 questions, batches of 3: 3 + more(2) leaves 5, one more batch; the next epoch has 3 batches again
    sampler = make_sampler(10, 3, epochs=2)
    first = ids(sampler.next_batch())
    assert sampler.num_steps_left == 5
    first += ids(sampler.more(2))
    assert sampler.num_steps_left == 4
    first += ids(sampler.next_batch()) + ids(sampler.more(9))
    assert sorted(first) == sorted(str(i) for i in range(10))
    assert sampler.more(1) == []
    assert [len(sampler.next_batch()) for _ in range(3)] == [3, 3, 3]
    assert sampler.num_steps == 6


def test_fewer_questions_than_a_batch_are_refused() -> None:
    with pytest.raises(UserError, match=r"3 questions do not fill one batch of 4: lower data.batch_size"):
        make_sampler(3, 4)


CHANGES: dict[str, Callable[[], QuestionSampler]] = {
    "fewer": lambda: make_sampler(7, 2),
    "seed": lambda: make_sampler(8, 2, seed=1),
    "shuffle": lambda: make_sampler(8, 2, shuffle=False),
    "order": lambda: QuestionSampler(make_questions(8)[::-1], batch_size=2, epochs=1, shuffle=True, seed=0),
    "answers": lambda: QuestionSampler(
        [Question(id=q.id, text=q.text, answer="0") for q in make_questions(8)],
        batch_size=2,
        epochs=1,
        shuffle=True,
        seed=0,
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_cursor_of_other_data_is_refused(change: str) -> None:
    state = make_sampler(8, 2).state_dict()
    with pytest.raises(UserError, match="other questions or another order"):
        CHANGES[change]().load_state_dict(state)


def test_a_cursor_survives_more_epochs_and_another_batch_size() -> None:
    sampler = make_sampler(8, 2)
    sampler.next_batch()
    longer = make_sampler(8, 4, epochs=3)
    longer.load_state_dict(sampler.state_dict())
    assert longer.num_steps_left == 1 + 2 * 2
    assert ids(longer.more(6)) == ids(sampler.more(6))


def test_batch_takes_more_from_the_run_and_never_raises() -> None:
    sampler = make_sampler(5, 2)
    batch: QuestionBatch = Batch(
        new=sampler.next_batch(), replayed=(), step=0, num_steps=sampler.num_steps, sampler=sampler
    )
    assert (batch.step, batch.num_steps) == (0, 2)
    taken = [*batch.new, *batch.more(2), *batch.more(2)]
    assert sorted(q.id for q in taken) == ["0", "1", "2", "3", "4"]
    assert batch.more(1) == []
    assert sampler.num_steps_left == 0


@pytest.mark.parametrize(
    "change",
    [
        {"images": (ImageFile("b.png"),)},
        {"images": (ImageFile("a.png"), ImageFile("a.png"))},
        {"video": VideoFile("a.mp4")},
        {"limits": MediaLimits(max_pixels=256)},
    ],
)
def test_what_is_shown_is_part_of_the_fingerprint(change):
    question = Question(id="1", text="q?", answer="1", images=(ImageFile("a.png"),))
    before, same, after = (
        QuestionSampler([q], batch_size=1, epochs=1, shuffle=False, seed=0)
        for q in (question, replace(question), replace(question, **change))
    )
    same.load_state_dict(before.state_dict())
    with pytest.raises(UserError, match="other questions"):
        after.load_state_dict(before.state_dict())
