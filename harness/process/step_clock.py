"""Where the wall time of a step goes, with student, teacher and grader at work at the same time."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Activity = Literal["rollout", "teacher", "grade", "transfer", "update"]
ACTIVITIES: tuple[Activity, ...] = get_args(Activity)


class StepClock:
    """Gives every moment of a step to one activity, the first of `ACTIVITIES` that is under way, else to `other`.

    So the times add up to the step and show its critical path: `time/teacher` is what the step waited for the teacher
    while the student did not sample. `busy/*` (rollout, teacher, grade) also count what ran during another one. Used
    from any thread; an activity may be under way several times at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: Counter[str] = Counter()
        self.start()

    def start(self) -> None:
        """Begin a step; what is under way goes on in it."""
        with self._lock:
            self._started = self._noted = time.perf_counter()
            self._seconds: defaultdict[str, float] = defaultdict(float)

    def enter(self, activity: Activity) -> None:
        with self._lock:
            self._note()
            self._under_way[activity] += 1

    def leave(self, activity: Activity, times: int = 1) -> None:
        with self._lock:
            self._note()
            self._under_way[activity] -= times

    @contextmanager
    def running(self, activity: Activity) -> Iterator[None]:
        self.enter(activity)
        try:
            yield
        finally:
            self.leave(activity)

    def finish(self) -> dict[str, float]:
        """Seconds since `start`: `time/step`, the parts that it is the sum of, and `busy/*`."""
        with self._lock:
            self._note()
            parts = [f"time/{activity}" for activity in (*ACTIVITIES, "other")]
            busy = [f"busy/{activity}" for activity in ("rollout", "teacher", "grade")]
            row = {name: self._seconds[name] for name in (*parts, *busy)}
            return row | {"time/step": self._noted - self._started}

    def _note(self) -> None:
        """Give the time since the last change to what was under way."""
        now = time.perf_counter()
        passed, self._noted = now - self._noted, now
        active = [activity for activity in ACTIVITIES if self._under_way[activity] > 0]
        self._seconds[f"time/{active[0] if active else 'other'}"] += passed
        for activity in active:
            self._seconds[f"busy/{activity}"] += passed
