r"""What the tiny family is pre-trained on: prompts worded exactly as the methods word them, with replies.

Additions in text, as bars in pictures and as bars in the frames of a clip; the replies are the same chains. Students
answer plain questions, BCQs, NCQs and questions with a hint. Plain and NCQ replies have errors, so the form of an NCQ
does not switch the bad habits off. The reply to a BCQ is one of its candidates: the right one, or, where both are
wrong, any, so that candidates have to be read. A hint is followed whether it is right or wrong. The teacher solves
plain questions without errors, copies responses, right or wrong, into summaries and turns them into hints. Training
questions only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from harness.builders.tiny.slips import Slips, corrupt_step, make_slips, odd_trace
from harness.data.arithmetic import LEVELS, Step, Terms, clean_steps, clean_trace, render_trace
from harness.data.synthetic import draw
from harness.types import Question
from methods.prompts import bcq_text, compress_text, hint_text, ncq_text, plain_text, response_text, write_hint_text

GROUP = 8
REDRAWS = 20
BOTH_WRONG = 0.25
"""Share of the BCQs that have two wrong candidates."""
TOLD_OFFSETS = (-2, -1, 0, 1, 2)


@dataclass(frozen=True)
class Example:
    """A user turn and the reply to it. `question` says what is shown with the text; None for text by itself."""

    turn: str
    reply: str
    question: Question | None = None


TASKS = {"arithmetic": 0.4, "bar_chart": 0.2, "bar_cards": 0.1, "bar_clip": 0.3}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Shares of prompt kinds, tasks and levels, and the errors in traces (None: clean traces)."""

    kinds: dict[str, float]
    tasks: dict[str, float] = field(default_factory=lambda: TASKS)
    levels: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)
    slips: Slips | None = field(default=None, repr=False)


def student_kinds(hint: float) -> dict[str, float]:
    """The shares of a student's prompts. The smaller a student, the more its plain skill suffers from many hints."""
    rest = 1 - hint
    return {"plain": 0.55 * rest, "bcq": 0.33 * rest, "ncq": 0.12 * rest, "hint": hint}


TEACHER_KINDS = {"plain": 0.55, "compress": 0.33, "write_hint": 0.12}
RECIPES = {
    "xs": Recipe(kinds=student_kinds(0.10), slips=make_slips(num_shaky=64)),
    "s": Recipe(kinds=student_kinds(0.20), slips=make_slips()),
    "m": Recipe(kinds=student_kinds(0.25), slips=make_slips(num_shaky=36)),
    "teacher": Recipe(kinds=TEACHER_KINDS, levels=(0.2, 0.25, 0.25, 0.3)),
    "hybrid": Recipe(kinds=student_kinds(0.20), slips=make_slips()),
}


def examples(recipe: Recipe, seed: int) -> Iterator[Example]:
    """Endless examples; the same for the same seed."""
    rng = random.Random(f"corpus/{seed}")
    kinds, shares = list(recipe.kinds), list(recipe.kinds.values())
    tasks, task_shares = list(recipe.tasks), list(recipe.tasks.values())
    while True:
        (kind,) = rng.choices(kinds, shares)
        (level,) = rng.choices(LEVELS, recipe.levels)
        (task,) = rng.choices(tasks, task_shares)
        question, terms = draw(task, rng, level, "train")
        yield MAKERS[kind](rng, recipe, question, terms)


def plain_example(rng: random.Random, recipe: Recipe, question: Question, terms: Terms) -> Example:
    return Example(plain_text(question), sample_trace(rng, recipe.slips, terms), question)


def sample_trace(rng: random.Random, slips: Slips | None, terms: Terms) -> str:
    """A reply to the plain question, with the student's errors or clean."""
    return clean_trace(terms) if slips is None else render_trace(terms[0], slips.steps(rng, terms))


def wrong_trace(rng: random.Random, slips: Slips | None, terms: Terms) -> str:
    """A trace with another answer, or none: mostly the student's own errors, else one corrupted step."""
    right = f"\\boxed{{{sum(terms)}}}"
    for _ in range(REDRAWS if rng.random() < 0.8 else 0):
        if right not in (trace := sample_trace(rng, slips, terms)):
            return trace
    trace = render_trace(terms[0], corrupt_step(rng, terms))
    return trace if rng.random() < 0.95 else trace.partition("\\boxed")[0]


def bcq_example(rng: random.Random, recipe: Recipe, question: Question, terms: Terms) -> Example:
    """A right and a wrong candidate, answered with the right one; now and then two wrong ones, answered with either."""
    candidates = [wrong_trace(rng, recipe.slips, terms), wrong_trace(rng, recipe.slips, terms)]
    reply = rng.choice(candidates)
    if rng.random() >= BOTH_WRONG:
        candidates[0] = reply = clean_trace(terms)
    rng.shuffle(candidates)
    return Example(bcq_text(question, [summary_of(trace) for trace in candidates]), reply, question)


def ncq_example(rng: random.Random, recipe: Recipe, question: Question, terms: Terms) -> Example:
    """The reply is the student's own, drawn again while it repeats a listed answer: never cleaner than a plain one."""
    traces = [wrong_trace(rng, recipe.slips, terms) for _ in range(rng.randint(1, GROUP))]
    boxed = {trace: trace.partition("\\boxed{")[2].rstrip("}") for trace in traces}
    answers = list(dict.fromkeys(answer for trace in traces if (answer := boxed[trace])))
    reply = sample_trace(rng, recipe.slips, terms)
    for _ in range(REDRAWS):
        if reply.partition("\\boxed{")[2].rstrip("}") not in answers:
            break
        reply = sample_trace(rng, recipe.slips, terms)
    return Example(ncq_text(question, answers, [summary_of(trace) for trace in traces]), reply, question)


def hint_example(rng: random.Random, recipe: Recipe, question: Question, terms: Terms) -> Example:
    """The reply says what the hint says, right or wrong."""
    steps = told_steps(rng, terms)
    turn = hint_text(question, hint_of(terms[0], steps, as_written=True))
    return Example(turn, render_trace(terms[0], steps), question)


def told_steps(rng: random.Random, terms: Terms) -> list[Step]:
    """Additions as a hint tells them: the sum of each units digit is right or up to two off, all as often.

    Where most sums are right, a student learns to be right in sight of a hint, and not to read it.
    """
    value, steps = terms[0], []
    for addend in terms[1:]:
        value += addend + rng.choice([offset for offset in TOLD_OFFSETS if value % 10 + addend + offset >= 0])
        steps.append((addend, value))
    return steps


def compress_example(rng: random.Random, recipe: Recipe, question: Question, terms: Terms) -> Example:
    """A response of any quality and its copy; most prompts have the number of lines that the methods use."""
    steps = corrupt_step(rng, terms)
    kind = rng.random()
    if kind < 0.25:
        response = clean_trace(terms)
    elif kind < 0.6:
        response = render_trace(terms[0], WILD.steps(rng, terms))
    elif kind < 0.75:
        response = render_trace(terms[0], steps)
    else:
        response = odd_trace(rng, terms[0], steps)
    turn = compress_text(response, max_lines=5 if rng.random() < 0.8 else rng.randint(1, 9))
    return Example(turn, f"<summary>{summary_of(response)}</summary>")


def write_hint_example(rng: random.Random, recipe: Recipe, question: Question, terms: Terms) -> Example:
    """A run asks for hints of right responses only. A few with errors teach to read the additions, not the results."""
    steps = clean_steps(terms) if rng.random() < 0.85 else WILD.steps(rng, terms)
    return Example(write_hint_text(render_trace(terms[0], steps)), f"<hint>{hint_of(terms[0], steps)}</hint>")


def hint_of(first: int, steps: Sequence[Step], *, as_written: bool = False) -> str:
    """The sums of the units digits: `7+8=15 5+5=10` of 37+8=45+5=50, right or `as_written` in the steps.

    A right hint of a right trace never shows the answer. A running value is at least 10, so adding to it gives at
    least 10 more than adding to its units digit. The answer, the last value, is at least as large.
    """
    facts, value = [], first
    for addend, after in steps:
        digit = value % 10
        facts.append(f"{digit}+{addend}={digit + (after - value if as_written else addend)}")
        value = after
    return " ".join(facts)


def summary_of(response: str) -> str:
    """What the tiny teacher makes of a response: these traces are as short as a summary, so it copies them."""
    return response_text(response)


WILD = make_slips(num_shaky=90, rate_scale=0.5, seed=1)
"""Errors of no student: what a response says must not matter to the one who copies it."""

MAKERS: dict[str, Callable[[random.Random, Recipe, Question, Terms], Example]] = {
    "plain": plain_example,
    "bcq": bcq_example,
    "ncq": ncq_example,
    "hint": hint_example,
    "compress": compress_example,
    "write_hint": write_hint_example,
}
