"""From the configuration to the questions of a run: read or generate, check, filter, and take the pool."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from harness.config.data import SOURCES, DataConfig
from harness.data.images import MediaError
from harness.data.rows import Rows, checked_questions
from harness.errors import UserError
from harness.types import Question

GoldErrors = Callable[[Sequence[Question]], list[str | None]]
"""Why the grader cannot use a question's gold answer, or None; in the order of the questions."""

Measure = Callable[[Question], int]
"""How many tokens a question's prompt has. Raises MediaError where its images or video cannot be shown."""

NUM_THREADS = 4
"""Threads that decode the media of questions; decoding lets go of Python's lock."""
MAX_PENDING = 32
"""Questions whose media are waited for at once."""
NUM_MESSAGES = 5
"""Bad rows that are kept in words; all are counted."""
LOADERS = {
    "synthetic": "harness.data.synthetic:load",
    "reasoning_gym": "harness.data.reasoning:load",
    "jsonl": "harness.data.files:load_jsonl",
    "parquet": "harness.data.files:load_parquet",
    "hub": "harness.data.hub:load_hub",
}
"""Imported where they are used: a run needs one of them, and reasoning-gym takes a second to load."""


@dataclass(frozen=True, kw_only=True)
class LoadedQuestions:
    """The questions of a run, and what was left out on the way to them."""

    questions: list[Question]
    num_bad: int
    bad: list[str]
    """The first few of the bad rows, `origin:row: reason`."""
    num_too_long: int
    """Dropped: their prompt has more tokens than a run allows."""
    num_unused: int
    """Usable questions that `data.pool_size` leaves out."""


def load_questions(
    config: DataConfig, *, gold_errors: GoldErrors, measure: Measure, max_prompt_tokens: int
) -> LoadedQuestions:
    """Training questions in the order of the source, before any shuffling.

    Rows whose gold answer the grader cannot use, or whose images or video cannot be shown, are bad rows like malformed
    ones. Questions that `measure` finds longer than `max_prompt_tokens` are dropped. The pool is drawn from what is
    left. `measure` is called by several threads at once for questions with media.

    Raises UserError for unusable files or options, too many bad rows, no questions left, or a pool that is too large.
    """
    rows = _rows(config)
    _drop_bad(rows, gold_errors(rows.questions))
    rows.check(config.max_bad_fraction)
    if not rows.questions:
        raise UserError(f"{rows.origin} has no questions: add rows or raise data.num_questions")
    assert len({q.id for q in rows.questions}) == len(rows.questions), f"{rows.origin} gives the same id twice"
    sizes = _measure_all(rows.questions, measure)
    _drop_bad(rows, [size if isinstance(size, str) else None for size in sizes])
    rows.check(config.max_bad_fraction)
    usable = [size for size in sizes if isinstance(size, int)]
    kept = [q for q, size in zip(rows.questions, usable, strict=True) if size <= max_prompt_tokens]
    if not kept:
        raise UserError(
            f"all {len(rows.questions)} questions of {rows.origin} have prompts of more than "
            f"rollout.max_prompt_tokens={max_prompt_tokens} tokens: raise it or use shorter questions"
        )
    pool = _pool(kept, config)
    return LoadedQuestions(
        questions=pool,
        num_bad=len(rows.bad),
        bad=rows.messages()[:NUM_MESSAGES],
        num_too_long=len(rows.questions) - len(kept),
        num_unused=len(kept) - len(pool),
    )


def _rows(config: DataConfig) -> Rows:
    """What the source gives. One of others gives questions; ours say which rows gave none, too."""
    option = f"data.source={config.source}"
    given = SOURCES.call(config.source, config, ours=LOADERS)
    if isinstance(given, Rows):
        return given
    if not isinstance(given, Iterable):
        raise UserError(f"{option} gave a {type(given).__name__}: a source gives harness.types.Question")
    try:
        questions = checked_questions(option, given)
    except UserError:
        raise
    except Exception as error:  # of a generator, half way
        raise SOURCES.raised(config.source, error) from error
    if not questions:
        raise UserError(f"{option} gave no question")
    return Rows(origin=option, questions=questions, numbers=list(range(1, len(questions) + 1)))


def _measure_all(questions: Sequence[Question], measure: Measure) -> list[int | str]:
    """The prompt tokens of each question, or why its media cannot be shown."""

    def outcome(question: Question) -> int | str:
        try:
            return measure(question)
        except MediaError as error:
            return str(error)  # not the error itself: its traceback would keep the decoded picture

    with_media = [i for i, q in enumerate(questions) if q.images or q.video is not None]
    sizes: list[int | str] = [0 if q.images or q.video is not None else outcome(q) for q in questions]
    if not with_media:
        return sizes
    pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="media")
    pending: deque[tuple[int, Future[int | str]]] = deque()
    try:
        for index in with_media:
            if len(pending) == MAX_PENDING:
                first, future = pending.popleft()
                sizes[first] = future.result()
            pending.append((index, pool.submit(outcome, questions[index])))
        for index, future in pending:
            sizes[index] = future.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return sizes


def _drop_bad(rows: Rows, errors: Sequence[str | None]) -> None:
    """Make bad rows of the questions that have an error."""
    usable = []
    for number, question, error in zip(rows.numbers, rows.questions, errors, strict=True):
        if error is None:
            usable.append((number, question))
        else:
            rows.bad[number] = error
    rows.numbers = [number for number, _ in usable]
    rows.questions = [question for _, question in usable]


def _pool(questions: list[Question], config: DataConfig) -> list[Question]:
    if config.pool_size is None:
        return questions
    if not 1 <= config.pool_size <= len(questions):
        raise UserError(
            f"data.pool_size={config.pool_size} but the data have {len(questions)} usable questions: "
            f"choose 1 to {len(questions)}, or null for all"
        )
    chosen = random.Random(f"pool/{config.seed}").sample(range(len(questions)), config.pool_size)
    return [questions[i] for i in sorted(chosen)]
