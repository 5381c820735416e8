"""The prompt replay buffer (arXiv 2606.18216, Sec. 3.3): hard questions, first in first out, never a response.

It belongs to the harness, not to a method: it reads the plain student groups of a step, whatever the method trains on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from harness.data.chance import FrozenPolicy
from harness.types import Question, ReplayedQuestion, RolloutGroup

EventName = Literal["admit", "revisit", "graduate", "evict"]


@dataclass(frozen=True, kw_only=True)
class BufferEvent:
    """What happened to one question after a step. `accuracy` is None for an eviction: it was not sampled."""

    event: EventName
    question_id: str
    accuracy: float | None
    entry_accuracy: float
    visits: int


@dataclass(kw_only=True)
class _Entry:
    question: Question
    entry_accuracy: float
    visits: int = 0
    accuracies: float = 0.0
    """Sum of the accuracies at admission and at each visit since."""


class PromptReplayBuffer:
    """Questions whose plain group was below `tau`, at most `capacity` of them.

    A question that is met again and still hard keeps its place in the queue; one that is admitted after it graduated
    or was evicted starts anew.
    """

    def __init__(self, *, capacity: int, tau: float) -> None:
        self.capacity = capacity
        self.tau = tau
        self._entries: dict[str, _Entry] = {}  # insertion order is the queue
        self.totals: Counter[tuple[EventName, float, int]] = Counter()
        """Events since the start, by (event, entry accuracy, visits)."""
        self.chances: dict[tuple[float, int], float] = {}
        """Graduations of a frozen policy to be expected since the start, by (entry accuracy, visits)."""
        self._frozen = FrozenPolicy()

    def __len__(self) -> int:
        return len(self._entries)

    def draw(
        self, *, num_new: int, ratio: float, exclude: Sequence[Question], rng: np.random.Generator
    ) -> list[ReplayedQuestion]:
        """floor(ratio * num_new) questions, uniformly without replacement, none of `exclude`; or all it has."""
        excluded = {question.id for question in exclude}
        pool = [entry for key, entry in self._entries.items() if key not in excluded]
        num_draws = min(math.floor(ratio * num_new + 1e-9), len(pool))  # 0.29 * 100 is 28.999999999999996
        picks: list[int] = rng.choice(len(pool), size=num_draws, replace=False).tolist() if num_draws else []
        return [
            ReplayedQuestion(question=e.question, visits=e.visits, entry_accuracy=e.entry_accuracy)
            for e in (pool[i] for i in picks)
        ]

    @property
    def occupancy(self) -> Counter[float]:
        """Questions inside, by their accuracy at admission."""
        return Counter(entry.entry_accuracy for entry in self._entries.values())

    def update(self, groups: Sequence[RolloutGroup]) -> list[BufferEvent]:
        """Admit the hard questions of plain student groups, graduate the easy ones, then evict down to capacity.

        A group whose accuracy is not known (NaN) says nothing about its question: it stays as it is, without an event.
        """
        events = []
        for group in groups:
            if not group.replayed and not math.isnan(group.accuracy):
                self._frozen.see(group.accuracy, _size(group))
        for group in groups:
            question, accuracy = group.prompt.question, group.accuracy
            entry = self._entries.get(question.id)
            if accuracy < self.tau and entry is None:
                entry = self._entries[question.id] = _Entry(
                    question=question, entry_accuracy=accuracy, accuracies=accuracy
                )
                events.append(_event("admit", entry, accuracy))
            elif accuracy < self.tau and entry is not None:
                self._visit(entry, group)
                events.append(_event("revisit", entry, accuracy))
            elif accuracy >= self.tau and entry is not None:
                self._visit(entry, group)
                del self._entries[question.id]
                events.append(_event("graduate", entry, accuracy))
        while len(self._entries) > self.capacity:
            oldest = next(iter(self._entries))
            events.append(_event("evict", self._entries.pop(oldest), None))
        self.totals.update((event.event, event.entry_accuracy, event.visits) for event in events)
        return events

    def _visit(self, entry: _Entry, group: RolloutGroup) -> None:
        """Count a visit, and the chance that a frozen policy graduates the entry at it."""
        num_groups = entry.visits + 1
        chance = self._frozen.chance(
            entry.accuracies / num_groups, num_groups=num_groups, group_size=_size(group), tau=self.tau
        )
        entry.visits, entry.accuracies = num_groups, entry.accuracies + group.accuracy
        key = (entry.entry_accuracy, entry.visits)
        self.chances[key] = self.chances.get(key, 0.0) + chance

    def state_dict(self) -> dict[str, Any]:
        """JSON values only. Of a question its id: its media are references into the run's data."""
        return {
            "entries": [
                {
                    "question": name,
                    "entry_accuracy": entry.entry_accuracy,
                    "visits": entry.visits,
                    "accuracies": entry.accuracies,
                }
                for name, entry in self._entries.items()
            ],
            "totals": [[*key, number] for key, number in self.totals.items()],
            "chances": [[*key, chance] for key, chance in self.chances.items()],
            "seen": [list(pair) for pair in self._frozen.seen()],
        }

    def load_state_dict(self, state: dict[str, Any], questions: Mapping[str, Question]) -> None:
        """Go on from a saved state; `questions` are those of the run by id.

        Earlier versions kept no chances: the accuracies of visits that they did not keep count as the one at admission.
        """
        self._entries = {
            row["question"]: _Entry(
                question=questions[row["question"]],
                entry_accuracy=row["entry_accuracy"],
                visits=row["visits"],
                accuracies=row.get("accuracies", row["entry_accuracy"] * (row["visits"] + 1)),
            )
            for row in state["entries"]
        }
        self.chances = {(entry, visits): chance for entry, visits, chance in state.get("chances", ())}
        self._frozen = FrozenPolicy((accuracy, number) for accuracy, number in state.get("seen", ()))
        self.totals = Counter({(event, entry, visits): number for event, entry, visits, number in state["totals"]})


def _size(group: RolloutGroup) -> int:
    """Rollouts that the group's accuracy is the mean of."""
    return sum(rollout.sampler == "student" and rollout.is_graded for rollout in group.rollouts)


def _event(name: EventName, entry: _Entry, accuracy: float | None) -> BufferEvent:
    return BufferEvent(
        event=name,
        question_id=entry.question.id,
        accuracy=accuracy,
        entry_accuracy=entry.entry_accuracy,
        visits=entry.visits,
    )
