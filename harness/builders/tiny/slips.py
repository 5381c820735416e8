"""The wrong habits that weaken the students: at some (units digit, addend) facts they write a wrong sum.

Half of the 90 facts are shaky, each with its own offset and its own rate, and a chain goes on from the wrong value.
Some facts are wrong half of the time, so that sampling finds the right one; others almost always, so that it does not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from harness.data.arithmetic import ADDENDS, Step, Terms, render_steps

OFFSETS = (-10, -2, -1, 1, 2, 10)
RATES = (0.5, 0.8, 0.95, 0.99)


@dataclass(frozen=True)
class Slips:
    """Per shaky fact (units digit, addend): the offset of the wrong sum and how often it is written."""

    facts: dict[tuple[int, int], tuple[int, float]]

    def steps(self, rng: random.Random, terms: Terms) -> list[Step]:
        """The additions of `terms`, with errors."""
        value = terms[0]
        steps = []
        for addend in terms[1:]:
            offset, rate = self.facts.get((value % 10, addend), (0, 0.0))
            value += addend + (offset if rng.random() < rate else 0)
            steps.append((addend, value))
        return steps


def make_slips(*, num_shaky: int = 45, rate_scale: float = 1.0, seed: int = 0) -> Slips:
    """Draw the shaky facts. `rate_scale` multiplies every rate; fewer facts are a subset of more (same seed)."""
    rng = random.Random(f"slips/{seed}")
    facts = [(digit, addend) for digit in range(10) for addend in ADDENDS]
    rng.shuffle(facts)
    drawn = {fact: (rng.choice(OFFSETS), rate_scale * rng.choice(RATES)) for fact in facts}
    return Slips({fact: drawn[fact] for fact in facts[:num_shaky]})


def corrupt_step(rng: random.Random, terms: Terms) -> list[Step]:
    """One addition wrong by a small offset; the others are right, given what was written."""
    wrong, value, steps = rng.randrange(len(terms) - 1), terms[0], []
    for i, addend in enumerate(terms[1:]):
        value += addend + (rng.choice(OFFSETS) if i == wrong else 0)
        steps.append((addend, value))
    return steps


def odd_trace(rng: random.Random, first: int, steps: Sequence[Step]) -> str:
    """A trace as weak samplers write them: cut off, without a box, with another number boxed, or with typing errors."""
    body = render_steps(first, steps)
    kind = rng.choice(("cut", "boxless", "box", "typo", "typo"))
    if kind == "cut":
        return f"<think>{body[: rng.randrange(2, len(body))]}"
    if kind == "typo":
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(body))
            typed = "".join(rng.choices("0123456789+=", k=rng.randint(0, 2)))
            body = body[:at] + typed + body[at + rng.randint(0, 2) :] or "0"
    box = "" if kind == "boxless" else f"\\boxed{{{rng.randrange(200)}}}"
    return f"<think>{body}</think>{box}"
