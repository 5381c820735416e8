"""A step's time: one activity a moment, everything adds up, overlap is seen in busy."""

import pytest

from harness.process import step_clock
from harness.process.step_clock import StepClock


@pytest.fixture
def at(monkeypatch):
    """Set the time."""
    now = [100.0]
    monkeypatch.setattr(step_clock.time, "perf_counter", lambda: now[0])

    def at(second: float) -> None:
        now[0] = 100.0 + second

    return at


def test_a_moment_belongs_to_the_first_activity_under_way(at):
    """0-1 nothing; 1-4 student; 2-6 teacher; 5-9 grader; 9-11 update with the teacher at 10-11; 12 the end."""
    clock = StepClock()
    clock.start()
    for second, change, activity in [
        (1, clock.enter, "rollout"), (2, clock.enter, "teacher"), (4, clock.leave, "rollout"),
        (5, clock.enter, "grade"), (6, clock.leave, "teacher"), (9, clock.leave, "grade"),
        (9, clock.enter, "update"), (10, clock.enter, "teacher"), (11, clock.leave, "teacher"),
        (11, clock.leave, "update"),
    ]:  # fmt: skip
        at(second)
        change(activity)
    at(12)
    assert clock.finish() == {
        "time/rollout": 3, "time/teacher": 2 + 1, "time/grade": 3, "time/transfer": 0, "time/update": 1,
        "time/other": 1 + 1, "time/step": 12, "busy/rollout": 3, "busy/teacher": 4 + 1, "busy/grade": 4,
    }  # fmt: skip


def test_an_activity_ends_with_the_last_that_does_it(at):
    clock = StepClock()
    clock.enter("rollout")
    with clock.running("rollout"):
        at(2)
    at(5)
    clock.leave("rollout")
    at(6)
    row = clock.finish()
    assert (row["time/rollout"], row["time/other"]) == (5, 1)


def test_what_is_under_way_goes_on_in_the_next_step(at):
    clock = StepClock()
    clock.enter("teacher")
    at(3)
    clock.start()
    at(5)
    clock.leave("teacher")
    at(6)
    assert clock.finish()["time/teacher"] == 2 and clock.finish()["time/step"] == 3
