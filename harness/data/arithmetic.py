r"""Chains of additions: the embedded source of text questions, its split, and the traces the tiny family is trained on.

Level k asks for k additions, of which at least k - 1 carry: `Compute 37+8+5.` with the trace
`<think>37+8=45+5=50</think>\boxed{50}`. The first term has two digits, every addend one (1 to 9). A quarter of all
questions is held out, by a hash of the question's text, so that training and evaluation can never overlap.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Literal, get_args

from harness.errors import UserError
from harness.types import Question

Split = Literal["train", "held_out"]
Terms = tuple[int, ...]
Step = tuple[int, int]
"""An addend and the value that is written after adding it."""

LEVELS = (1, 2, 3, 4)
FIRST = range(10, 100)
ADDENDS = range(1, 10)
HELD_OUT = 4
"""One question in this many is held out."""


def make_questions(levels: Sequence[int], num_questions: int, *, seed: int, split: Split) -> list[Question]:
    """`num_questions` distinct questions of one split, the levels taking turns; the same for the same arguments.

    Raises UserError for unknown levels or splits, and where a level has fewer questions than its share.
    """
    levels = list(dict.fromkeys(levels))
    if not levels or not set(levels) <= set(LEVELS):
        raise UserError(f"arithmetic levels must be some of 1, 2, 3, 4, got {levels}")
    if split not in get_args(Split):
        raise UserError(f"arithmetic split must be train or held_out, got {split!r}")
    shares = {level: len(range(i, num_questions, len(levels))) for i, level in enumerate(levels)}
    drawn = {level: iter(_draw(level, share, seed, split)) for level, share in shares.items()}
    return [next(drawn[levels[i % len(levels)]]) for i in range(num_questions)]


def text_of(terms: Terms) -> str:
    """The wording of a question."""
    return f"Compute {_chain(terms)}."


def question(terms: Terms) -> Question:
    """The question that asks for the sum of `terms`."""
    level = len(terms) - 1
    return Question(
        id=f"arithmetic/L{level}/{_chain(terms)}",
        text=text_of(terms),
        answer=str(sum(terms)),
        source="arithmetic",
        metadata={"level": level},
    )


def split_of(text: str) -> Split:
    """The split a question's text belongs to; the same in every process and Python version."""
    digest = hashlib.sha256(text.encode()).digest()
    return "held_out" if digest[0] % HELD_OUT == 0 else "train"


def qualifies(terms: Terms) -> bool:
    """A chain of k additions is a question of level k if at least k - 1 of them carry."""
    return sum(carries(before, addend) for before, addend in steps_before(terms)) >= len(terms) - 2


def carries(value: int, addend: int) -> bool:
    """Adding the one-digit `addend` changes the tens of `value`: a hard step."""
    return value % 10 + addend >= 10


def steps_before(terms: Terms) -> Iterator[Step]:
    """(running value before the step, addend) of every addition, each done right."""
    return zip(itertools.accumulate(terms), terms[1:], strict=False)


def draw_terms(rng: random.Random, level: int, split: Split) -> Terms:
    """A random chain of this level and split."""
    while True:
        terms = (rng.choice(FIRST), *(rng.choice(ADDENDS) for _ in range(level)))
        if qualifies(terms) and split_of(text_of(terms)) == split:
            return terms


@cache
def count_questions(level: int) -> Counter[Split]:
    """How many questions a level has, by split."""
    chains = itertools.product(FIRST, *[ADDENDS] * level)
    return Counter(split_of(text_of(terms)) for terms in chains if qualifies(terms))


def clean_steps(terms: Terms) -> list[Step]:
    """Every addition done right."""
    return [(addend, value + addend) for value, addend in steps_before(terms)]


def render_steps(first: int, steps: Sequence[Step]) -> str:
    """`37+8=45+5=50`: the running value goes on after each equals sign."""
    return str(first) + "".join(f"+{addend}={value}" for addend, value in steps)


def render_trace(first: int, steps: Sequence[Step]) -> str:
    """A reply whose boxed answer is the last running value."""
    return f"<think>{render_steps(first, steps)}</think>\\boxed{{{steps[-1][1]}}}"


def clean_trace(terms: Terms) -> str:
    """The right reply to the question of `terms`."""
    return render_trace(terms[0], clean_steps(terms))


def _draw(level: int, num_questions: int, seed: int, split: Split) -> Iterator[Question]:
    # Counting a level takes up to seconds. A split holds more than 1 chain in 20: smaller requests need no count.
    num_chains = len(FIRST) * len(ADDENDS) ** level
    if num_questions * 20 > num_chains and num_questions > (available := count_questions(level)[split]):
        raise UserError(
            f"arithmetic level {level} has {available} {split} questions, {num_questions} asked for: ask for fewer "
            "(data.num_questions or eval.num_questions), or for more levels"
        )
    rng = random.Random(f"arithmetic/{level}/{split}/{seed}")
    seen: set[Terms] = set()
    while len(seen) < num_questions:
        terms = draw_terms(rng, level, split)
        if terms in seen:
            continue
        seen.add(terms)
        drawn = question(terms)
        assert split_of(drawn.text) == split
        yield drawn


def _chain(terms: Terms) -> str:
    return "+".join(map(str, terms))
