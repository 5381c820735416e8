"""From the configuration to the questions of a run: read or generate, check, filter, and take the pool."""

from __future__ import annotations

import importlib
import itertools
import logging
import random
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.config.data import SOURCES, DataConfig, paths_of
from harness.data import index
from harness.data.folders import is_saved
from harness.data.images import MediaError
from harness.data.rows import BadRow, Rows, Stream, checked_questions, too_many_bad
from harness.data.stored import Chosen, StoredQuestions, Writer, content_hash
from harness.errors import UserError
from harness.types import Question

logger = logging.getLogger(__name__)

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
    depends: Callable[[], str] | None = None,
) -> LoadedQuestions:
    """Training questions in the order of the source, before any shuffling.

    Rows whose gold answer the grader cannot use, or whose images or video cannot be shown, are bad rows like malformed
    ones. Questions that `measure` finds longer than `max_prompt_tokens` are dropped. The pool is drawn from what is
    left. `measure` is called by several threads at once for questions with media; `measure_texts` measures many without
    media at once.

    With `depends`, a digest of all that measures and golds depend on, files are read once: the next call maps their
    index (`harness.data.index`), unless `config.recheck`.

    Raises UserError for unusable files or options, too many bad rows, no questions left, or a pool that is too large.
    """
    checks = _Checks(gold_errors, measure, measure_texts or (lambda questions: [measure(q) for q in questions]))
    parts = [_part(stream, config, checks, depends) for stream in _streams(config)]
    kept: list[np.ndarray] = []
    counts: list[int] = []
    num_before = 0
    for part in parts:
        fitting = np.flatnonzero(part.num_tokens <= max_prompt_tokens)
        if not len(fitting):
            raise UserError(
                f"all {len(part.questions)} questions of {part.origin} have prompts of more than "
                f"rollout.max_prompt_tokens={max_prompt_tokens} tokens: raise it or use shorter questions"
            )
        kept.append(fitting + num_before)
        counts.append(len(fitting))
        num_before += len(part.questions)
    chosen = np.concatenate(kept)[np.asarray(chosen_positions(counts, config), dtype=np.int64)]
    return LoadedQuestions(
        questions=_chosen(parts, chosen),
        num_rows=num_before + sum(part.num_bad for part in parts),
        num_bad=sum(part.num_bad for part in parts),
        bad=[line for part in parts for line in part.bad][:NUM_MESSAGES],
        reasons=sum((part.reasons for part in parts), Counter()),
        num_too_long=num_before - sum(counts),
        num_unused=sum(counts) - len(chosen),
        num_duplicates=num_before - len(np.unique(np.concatenate([part.content for part in parts]))),
        num_tokens=np.concatenate([part.num_tokens for part in parts])[chosen],
        notes=[note for part in parts for note in part.notes],
    )


def questions_of(config: DataConfig) -> list[Question]:
    """All questions of a source in its order, as an evaluation takes them: no grader has seen their golds.

    Raises UserError for unusable files or options, and too many bad rows.
    """
    return [question for stream in _streams(config) for question in stream.all(config.max_bad_fraction).questions]


@dataclass(frozen=True)
class _Checks:
    """What a question has to pass."""

    gold_errors: GoldErrors
    measure: Measure
    measure_texts: MeasureTexts

    def of(self, questions: Sequence[Question]) -> list[int | str]:
        """The prompt tokens of each question, or why it cannot be used."""
        found: list[int | str] = [error or 0 for error in self.gold_errors(questions)]
        right = [i for i, error in enumerate(found) if not error]
        sizes = _measure_all([questions[i] for i in right], self.measure, self.measure_texts)
        for i, size in zip(right, sizes, strict=True):
            found[i] = size
        return found


@dataclass(kw_only=True)
class _Part:
    """What one stream gives."""

    origin: str
    notes: list[str]
    questions: Sequence[Question]
    num_tokens: np.ndarray
    num_bad: int
    bad: list[str]
    reasons: Counter[str]
    content: np.ndarray
    """Hashes of what each question asks, uint64."""


def _chosen(parts: Sequence[_Part], positions: np.ndarray) -> Sequence[Question]:
    stored = [part.questions for part in parts if isinstance(part.questions, StoredQuestions)]
    if len(stored) == len(parts):
        return Chosen(stored, positions)
    every = [question for part in parts for question in part.questions]
    return [every[i] for i in positions.tolist()]


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


def _part(stream: Stream, config: DataConfig, checks: _Checks, depends: Callable[[], str] | None) -> _Part:
    """The questions of a stream with what is known about them: from its index, or read and checked."""
    if depends is None or not stream.files:
        return _in_memory(stream, config, checks)
    key = index.key_of(stream.files, stream.name, config, depends())
    if not config.recheck and (part := _indexed(stream, config, key)) is not None:
        return part
    with index.new_file(stream.place) as file:
        writer = Writer(file, stream.origin)
        try:
            bad, num_questions = _Bad(), 0
            for questions, num_tokens in _blocks(stream, checks, bad):
                writer.add(questions, num_tokens)
                num_questions += len(questions)
        finally:
            writer.close()
        bad.check(stream.origin, num_questions, config.max_bad_fraction)
        about = {"num_bad": bad.number, "bad": bad.messages(stream.origin), "reasons": dict(bad.reasons)}
        final = index.keep(file, key, about)
        return _stored(stream, config, final, about)


def _indexed(stream: Stream, config: DataConfig, key: str) -> _Part | None:
    """What an earlier launch has kept; None where there is nothing, or it is damaged."""
    found = index.find(stream.place, key)
    if found is None:
        return None
    try:
        part = _stored(stream, config, *found)
    except (ValueError, OSError, LookupError, TypeError):  # pyarrow's errors are ValueErrors
        return None
    num_rows = len(part.questions) + part.num_bad
    first = part.bad[0] if part.bad else ""
    if (refusal := too_many_bad(first, part.num_bad, num_rows, config.max_bad_fraction)) is not None:
        raise UserError(refusal)
    logger.info("%s: %d questions of the index of an earlier launch", stream.origin, len(part.questions))
    return part


def _stored(stream: Stream, config: DataConfig, file: Path, about: dict[str, Any]) -> _Part:
    questions = StoredQuestions(file, stream.origin, config, stream.table)
    return _Part(
        origin=stream.origin,
        notes=stream.notes,
        questions=questions,
        num_tokens=questions.num_tokens,
        num_bad=int(about["num_bad"]),
        bad=[str(line) for line in about["bad"]],
        reasons=Counter(about["reasons"]),
        content=questions.content,
    )


def _in_memory(stream: Stream, config: DataConfig, checks: _Checks) -> _Part:
    questions: list[Question] = []
    num_tokens: list[int] = []
    bad = _Bad()
    for block, sizes in _blocks(stream, checks, bad):
        questions += block
        num_tokens += sizes
    bad.check(stream.origin, len(questions), config.max_bad_fraction)
    return _Part(
        origin=stream.origin,
        notes=stream.notes,
        questions=questions,
        num_tokens=np.array(num_tokens),
        num_bad=bad.number,
        bad=bad.messages(stream.origin),
        reasons=bad.reasons,
        content=np.array([content_hash(question) for question in questions], np.uint64),
    )


class _Bad:
    """Bad rows: all are counted, the first ones kept in words."""

    def __init__(self) -> None:
        self.number = 0
        self.reasons: Counter[str] = Counter()
        self._first: list[tuple[int, str]] = []

    def add(self, number: int, reason: str) -> None:
        self.number += 1
        self.reasons[_kind(reason)] += 1
        self._first = sorted([*self._first, (number, reason)])[:NUM_MESSAGES]

    def messages(self, origin: str) -> list[str]:
        return [f"{origin}:{number}: {reason}" for number, reason in self._first]

    def check(self, origin: str, num_questions: int, max_bad_fraction: float) -> None:
        """Raise UserError for too many of them, and where no question is left."""
        first = self.messages(origin)[0] if self.number else ""
        refusal = too_many_bad(first, self.number, num_questions + self.number, max_bad_fraction)
        if refusal is not None:
            raise UserError(refusal)
        if not num_questions:
            raise UserError(f"{origin} has no questions: add rows or raise data.num_questions")


def _blocks(stream: Stream, checks: _Checks, bad: _Bad) -> Iterator[tuple[list[Question], list[int]]]:
    """The usable questions of a stream with their prompt tokens, a block of rows at a time."""
    while block := list(itertools.islice(stream.rows, BLOCK_ROWS)):
        asked = [(number, row) for number, row in block if isinstance(row, Question)]
        for number, row in block:
            if isinstance(row, BadRow):
                bad.add(number, str(row))
        questions, sizes = [], []
        found = checks.of([question for _, question in asked])
        for (number, question), size in zip(asked, found, strict=True):
            if isinstance(size, str):
                bad.add(number, size)
            else:
                questions.append(question)
                sizes.append(size)
        yield questions, sizes


def _kind(reason: str) -> str:
    """A reason without what is one row's alone: values in quotes but for names of columns, numbers, places."""
    plain = re.sub(r"(?<=answer )'[^']*'|(?<=' )'[^']*'|(?<=' )\"[^\"]*\"", "...", reason)
    return re.sub(r"(image|video) \S*[/\\]\S*", r"\1 ...", re.sub(r"\d+", "N", plain))


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
