"""From the configuration to the questions of a run: read or generate, check, filter, and take the pool."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import random
import re
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from harness.config.data import SOURCES, DataConfig, paths_of
from harness.data.folders import is_saved
from harness.data.images import MediaError
from harness.data.rows import BadRow, Rows, Stream, checked_questions
from harness.errors import UserError
from harness.types import Question

GoldErrors = Callable[[Sequence[Question]], list[str | None]]
"""Why the grader cannot use a question's gold answer, or None; in the order of the questions."""

Measure = Callable[[Question], int]
"""How many tokens a question's prompt has. Raises MediaError where its images or video cannot be shown."""

MeasureTexts = Callable[[Sequence[Question]], Sequence[int]]
"""The same of many questions without media."""

BLOCK_ROWS = 4096
"""Rows that are checked together."""
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
OPENERS = {
    "jsonl": "harness.data.files:open_files",
    "parquet": "harness.data.files:open_files",
    "hub": "harness.data.hub:open_hub",
}
"""Those that read an entry of `data.path` row by row."""
SAVED = "harness.data.hub:open_saved"
"""Reads a folder that `save_to_disk` wrote, whichever of these is asked for."""


@dataclass(frozen=True, kw_only=True)
class LoadedQuestions:
    """The questions of a run, and what was left out on the way to them."""

    questions: Sequence[Question]
    num_rows: int
    num_bad: int
    bad: list[str]
    """The first few of the bad rows, `origin:row: reason`."""
    reasons: Counter[str]
    """How many rows are bad for which reason, what is theirs alone left out."""
    num_too_long: int
    """Dropped: their prompt has more tokens than a run allows."""
    num_unused: int
    """Usable questions that `data.pool_size` or `data.weights` leave out."""
    num_duplicates: int
    """Rows that repeat another's question and media."""
    num_tokens: np.ndarray
    """Prompt tokens of each of `questions`."""
    notes: list[str]
    """What a user should know about how the files are read."""


def load_questions(
    config: DataConfig,
    *,
    gold_errors: GoldErrors,
    measure: Measure,
    max_prompt_tokens: int,
    measure_texts: MeasureTexts | None = None,
) -> LoadedQuestions:
    """Training questions in the order of the source, before any shuffling.

    Rows whose gold answer the grader cannot use, or whose images or video cannot be shown, are bad rows like malformed
    ones. Questions that `measure` finds longer than `max_prompt_tokens` are dropped. The pool is drawn from what is
    left. `measure` is called by several threads at once for questions with media; `measure_texts` measures many without
    media at once.

    Raises UserError for unusable files or options, too many bad rows, no questions left, or a pool that is too large.
    """
    texts = measure_texts or (lambda questions: [measure(question) for question in questions])
    parts = [_read(stream, config, gold_errors, measure, texts) for stream in _streams(config)]
    kept: list[Question] = []
    counts, sizes = [], []
    for part in parts:
        fitting = [i for i, size in enumerate(part.num_tokens) if size <= max_prompt_tokens]
        if not fitting:
            raise UserError(
                f"all {len(part.questions)} questions of {part.origin} have prompts of more than "
                f"rollout.max_prompt_tokens={max_prompt_tokens} tokens: raise it or use shorter questions"
            )
        kept += [part.questions[i] for i in fitting]
        sizes += [part.num_tokens[i] for i in fitting]
        counts.append(len(fitting))
    chosen = chosen_positions(counts, config)
    num_read = sum(len(part.questions) for part in parts)
    return LoadedQuestions(
        questions=[kept[i] for i in chosen],
        num_rows=num_read + sum(part.num_bad for part in parts),
        num_bad=sum(part.num_bad for part in parts),
        bad=[line for part in parts for line in part.bad][:NUM_MESSAGES],
        reasons=sum((part.reasons for part in parts), Counter()),
        num_too_long=num_read - len(kept),
        num_unused=len(kept) - len(chosen),
        num_duplicates=num_read - len(np.unique(np.concatenate([part.content for part in parts]))),
        num_tokens=np.array([sizes[i] for i in chosen]),
        notes=[note for part in parts for note in part.notes],
    )


@dataclass(kw_only=True)
class _Part:
    """What one stream gives."""

    origin: str
    notes: list[str]
    questions: list[Question]
    num_tokens: list[int]
    num_bad: int
    bad: list[str]
    reasons: Counter[str]
    content: np.ndarray
    """Hashes of what each question asks, uint64."""


def _streams(config: DataConfig) -> list[Stream]:
    """One for each entry of `data.path`, or the one of a source without."""
    if config.source not in OPENERS:
        return [Stream.of(_rows(config))]
    paths = paths_of(config)
    return [_opened(config, path, name) for path, name in zip(paths, _names(paths), strict=True)]


def _opened(config: DataConfig, path: str, name: str) -> Stream:
    module, _, function = (SAVED if is_saved(path) else OPENERS[config.source]).partition(":")
    stream: Stream = getattr(importlib.import_module(module), function)(config, path, name)
    return stream


def _names(paths: Sequence[str]) -> list[str]:
    """What ids of each path begin with, empty for the file's own name: several files may be called alike."""
    own = [Path(path).name.partition(".")[0] for path in paths]
    return [f"{i}-{name}" if own.count(name) > 1 else "" for i, name in enumerate(own, 1)]


def _read(
    stream: Stream, config: DataConfig, gold_errors: GoldErrors, measure: Measure, measure_texts: MeasureTexts
) -> _Part:
    """All of a stream, checked and measured in blocks."""
    questions: list[Question] = []
    num_tokens: list[int] = []
    bad: dict[int, str] = {}
    content = array("Q")
    while block := list(itertools.islice(stream.rows, BLOCK_ROWS)):
        bad |= {number: str(row) for number, row in block if isinstance(row, BadRow)}
        asked = [(number, row) for number, row in block if isinstance(row, Question)]
        errors = gold_errors([question for _, question in asked])
        bad |= {number: error for (number, _), error in zip(asked, errors, strict=True) if error}
        asked = [pair for pair, error in zip(asked, errors, strict=True) if not error]
        sizes = _measure_all([question for _, question in asked], measure, measure_texts)
        for (number, question), size in zip(asked, sizes, strict=True):
            if isinstance(size, str):
                bad[number] = size
            else:
                questions.append(question)
                num_tokens.append(size)
                content.append(_content(question))
    rows = Rows(origin=stream.origin, questions=questions, bad=bad)
    rows.check(config.max_bad_fraction)
    if not questions:
        raise UserError(f"{stream.origin} has no questions: add rows or raise data.num_questions")
    return _Part(
        origin=stream.origin,
        notes=stream.notes,
        questions=questions,
        num_tokens=num_tokens,
        num_bad=len(bad),
        bad=rows.messages()[:NUM_MESSAGES],
        reasons=Counter(map(_kind, bad.values())),
        content=np.frombuffer(content, np.uint64) if content else np.empty(0, np.uint64),
    )


def _kind(reason: str) -> str:
    """A reason without what is one row's alone: values in quotes but for names of columns, numbers, places."""
    plain = re.sub(r"(?<=answer )'[^']*'|(?<=' )'[^']*'|(?<=' )\"[^\"]*\"", "...", reason)
    return re.sub(r"(image|video) \S*[/\\]\S*", r"\1 ...", re.sub(r"\d+", "N", plain))


def _content(question: Question) -> int:
    """A hash of what a question asks, by the names of its media."""
    names = [image.name for image in question.images] + ([question.video.name] if question.video is not None else [])
    text = json.dumps([question.text, question.messages, names])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


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
    closing, scorer = config.closing, config.reward or ""
    own = [
        replace(q, closing=closing if q.closing is None else q.closing, scorer=q.scorer or scorer) for q in questions
    ]
    return Rows(origin=option, questions=own, numbers=list(range(1, len(questions) + 1)))


def _measure_all(questions: Sequence[Question], measure: Measure, measure_texts: MeasureTexts) -> list[int | str]:
    """The prompt tokens of each question, or why its media cannot be shown."""

    def outcome(question: Question) -> int | str:
        try:
            return measure(question)
        except MediaError as error:
            return str(error)  # not the error itself: its traceback would keep the decoded picture

    with_media = [i for i, q in enumerate(questions) if q.images or q.video is not None]
    shown = set(with_media)
    plain = [i for i in range(len(questions)) if i not in shown]
    sizes: list[int | str] = [0] * len(questions)
    for i, size in zip(plain, _measure_plain([questions[i] for i in plain], outcome, measure_texts), strict=True):
        sizes[i] = size
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


def _measure_plain(
    questions: Sequence[Question], outcome: Callable[[Question], int | str], measure_texts: MeasureTexts
) -> Sequence[int | str]:
    try:
        return measure_texts(questions)
    except MediaError:  # of one of them
        return [outcome(question) for question in questions]


def chosen_positions(counts: Sequence[int], config: DataConfig) -> Sequence[int]:
    """Positions of the questions that a run uses, of sources with so many of them, one after the other.

    With `data.weights` each source gives its share, with `data.pool_size` so many are used in all: a seeded choice.
    Raises UserError where there are not enough.
    """
    total, size = sum(counts), config.pool_size
    if size is not None and not 1 <= size <= total:
        raise UserError(
            f"data.pool_size={size} but the data have {total} usable questions: choose 1 to {total}, or null for all"
        )
    if not config.weights:
        if size is None:
            return range(total)
        return sorted(random.Random(f"pool/{config.seed}").sample(range(total), size))
    chosen: list[int] = []
    for i, (num, count) in enumerate(zip(shares(config.weights, counts, size), counts, strict=True)):
        start = sum(counts[:i])
        picked = random.Random(f"mix/{i}/{config.seed}").sample(range(count), num)
        chosen += sorted(start + position for position in picked)
    return chosen


def shares(weights: Sequence[float], counts: Sequence[int], size: int | None) -> list[int]:
    """How many questions each source gives: in the ratio of the weights, `size` in all or as many as there can be.

    Example: weights 2 and 1 of 100 and 10 questions give 20 and 10. Raises UserError where a source has too few.
    """
    total = sum(weights)
    most = min(count * total / weight for count, weight in zip(counts, weights, strict=True))
    wanted = most if size is None else float(size)
    exact = [wanted * weight / total for weight in weights]
    nums = [int(share + 1e-9) for share in exact]
    if size is not None:
        rest = sorted(range(len(nums)), key=lambda i: nums[i] - exact[i])[: size - sum(nums)]
        nums = [num + (i in rest) for i, num in enumerate(nums)]
    for i, (num, count) in enumerate(zip(nums, counts, strict=True)):
        if not 1 <= num <= count:
            raise UserError(
                f"data.weights={list(weights)} take {num} of the {count} usable questions of path {i + 1}: "
                f"change them or lower data.pool_size ({int(most)} questions can be had in all)"
            )
    return nums
