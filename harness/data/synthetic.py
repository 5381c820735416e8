"""The generated tasks by name, and mixtures of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

from harness.config.data import DataConfig
from harness.data import arithmetic, bars
from harness.data.arithmetic import LEVELS, Split, Terms
from harness.data.rows import Rows
from harness.errors import UserError, did_you_mean
from harness.types import MediaLimits, Question

MAX_TRIES = 200
"""Draws in a row that bring nothing new, after which a level counts as used up."""


AS_PROCESSED = MediaLimits()


@dataclass(frozen=True)
class Task:
    """How a chain of additions is asked. `family` is that of its benchmarks: LLM, VLM or Video."""

    family: str
    draw_terms: Callable[[random.Random, int, Split], Terms]
    question: Callable[[random.Random, Terms, MediaLimits], Question]


def _in_text(rng: random.Random, terms: Terms, limits: MediaLimits) -> Question:
    return arithmetic.question(terms)


TASKS = {
    "arithmetic": Task("LLM", arithmetic.draw_terms, _in_text),
    "bar_chart": Task("VLM", bars.draw_bars, bars.chart_question),
    "bar_cards": Task("VLM", bars.draw_bars, bars.cards_question),
    "bar_clip": Task("Video", bars.draw_bars, bars.clip_question),
}


def draw(
    task: str, rng: random.Random, level: int, split: Split, limits: MediaLimits = AS_PROCESSED
) -> tuple[Question, Terms]:
    """A random question of a task and the chain that it is made from."""
    terms = TASKS[task].draw_terms(rng, level, split)
    return TASKS[task].question(rng, terms, limits), terms


def load(config: DataConfig) -> Rows:
    """`data.num_questions` questions of `data.tasks` and `data.levels` to train on. Raises as `make_questions`."""
    questions = make_questions(
        config.tasks, config.levels, config.num_questions,
        seed=config.seed, split="train", limits=config.media.limits(),
    )  # fmt: skip
    return Rows(origin="+".join(config.tasks), questions=questions, numbers=list(range(1, len(questions) + 1)))


def make_questions(
    tasks: Sequence[str],
    levels: Sequence[int],
    num_questions: int,
    *,
    seed: int,
    split: Split,
    limits: MediaLimits = AS_PROCESSED,
) -> list[Question]:
    """`num_questions` distinct questions of one split, the tasks taking turns, in each the levels taking turns.

    The same for the same arguments. Raises UserError for unknown tasks, levels or splits, and where a task and level
    have fewer questions than their share.
    """
    tasks = list(dict.fromkeys(tasks))
    if not tasks or not set(tasks) <= set(TASKS):
        unknown = next((task for task in tasks if task not in TASKS), "none")
        raise UserError(f"there is no generated task '{unknown}'.{did_you_mean(unknown, TASKS)}")
    shares = {task: len(range(i, num_questions, len(tasks))) for i, task in enumerate(tasks)}
    made = {task: iter(_of_task(task, levels, share, seed, split, limits)) for task, share in shares.items()}
    return [next(made[tasks[i % len(tasks)]]) for i in range(num_questions)]


def _of_task(
    task: str, levels: Sequence[int], num_questions: int, seed: int, split: Split, limits: MediaLimits
) -> list[Question]:
    if task == "arithmetic":  # counts a level where it may run out, which a task with many looks never does
        return arithmetic.make_questions(levels, num_questions, seed=seed, split=split)
    levels = list(dict.fromkeys(levels))
    if not levels or not set(levels) <= set(LEVELS):
        raise UserError(f"{task} levels must be some of 1, 2, 3, 4, got {levels}")
    if split not in get_args(Split):
        raise UserError(f"{task} split must be train or held_out, got {split!r}")
    rngs = {level: random.Random(f"{task}/{level}/{split}/{seed}") for level in levels}
    questions: dict[str, Question] = {}
    for i in range(num_questions):
        level = levels[i % len(levels)]
        for _ in range(MAX_TRIES):
            question, _terms = draw(task, rngs[level], level, split, limits)
            if question.id not in questions:
                break
        else:
            raise UserError(
                f"{task} level {level} has no more {split} questions after {i}: ask for fewer "
                "(data.num_questions or eval.num_questions), or for more levels"
            )
        questions[question.id] = question
    return list(questions.values())
