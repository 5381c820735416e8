"""`zppo data check OPTIONS`: what a run would train on, before anything is trained. Reads no weights, writes no run."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.commands.options import add_overrides, show
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.config.schema import RunConfig
    from harness.data.sources import LoadedQuestions
    from harness.models.chat import Chat
    from harness.types import Question

NUM_SHOWN = 5
NUM_REASONS = 10
LONGEST_SHOWN = 1500
"""Characters of a prompt that are shown: its beginning and its end."""
MOST_BAD = 1 - 1e-12
"""Bad rows are counted here, and refused in the end."""
_PADS = re.compile(r"(<\|\w+_pad\|>)(?:\1)+")


def add_check(parser: argparse.ArgumentParser) -> None:
    add_overrides(parser, "key=value, as for zppo train: data=jsonl data.path=FILE student=...")


def check(args: argparse.Namespace) -> int:
    """Print the report. 2 where a run would refuse the rows. Raises UserError for options that no run takes."""
    from harness.config.compose import compose
    from harness.config.schema import from_hydra
    from harness.models.chat import Chat
    from harness.models.loading import load_tokenizer

    config = from_hydra(compose(args.overrides, config_dir=args.config_dir))
    with ExitStack() as stack:
        chat = Chat(load_tokenizer(config.student), config.student)
        loaded, refusal = _load(config, chat, stack)
        for line in _report(config, chat, loaded):
            show(line)
    if refusal is not None:
        raise UserError(refusal)
    return 0


def _load(config: RunConfig, chat: Chat, stack: ExitStack) -> tuple[LoadedQuestions, str | None]:
    """The questions as a run has them, and why it would refuse them."""
    from harness.data.rows import too_many_bad
    from harness.data.sources import load_questions
    from harness.models.identity import prompt_identity
    from harness.rewards.workers import Grader
    from methods.base import plain_prompt

    grader = stack.enter_context(Grader(config.reward))
    loaded = load_questions(
        replace(config.data, max_bad_fraction=MOST_BAD),
        gold_errors=grader.gold_errors,
        measure=lambda question: chat.num_tokens_of(plain_prompt(question)),
        measure_texts=lambda questions: chat.num_tokens_of_texts([plain_prompt(q) for q in questions]),
        max_prompt_tokens=config.rollout.max_prompt_tokens,
        depends=lambda: prompt_identity(chat, config.reward.grader),
    )
    first = loaded.bad[0] if loaded.bad else ""
    refusal = too_many_bad(first, loaded.num_bad, loaded.num_rows, config.data.max_bad_fraction)
    if refusal is None and len(loaded.questions) < config.data.batch_size:
        refusal = (
            f"{len(loaded.questions)} questions do not fill one batch of {config.data.batch_size}: "
            "lower data.batch_size or take more questions"
        )
    return loaded, refusal


def _report(config: RunConfig, chat: Chat, loaded: LoadedQuestions) -> Iterator[str]:
    import numpy as np

    questions, limit = loaded.questions, config.rollout.max_prompt_tokens
    yield f"rows read: {loaded.num_rows}"
    yield f"kept: {len(questions)}"
    yield f"bad: {loaded.num_bad} (data.max_bad_fraction={config.data.max_bad_fraction:g})"
    for reason, number in loaded.reasons.most_common(NUM_REASONS):
        yield f"  {number}: {reason}"
    for message in loaded.bad:
        yield f"  such as {message}"
    yield f"too long: {loaded.num_too_long} (prompts of more than {limit} tokens, rollout.max_prompt_tokens)"
    yield f"not used: {loaded.num_unused} (data.pool_size, data.weights)"
    yield f"duplicates: {loaded.num_duplicates} rows repeat the question of another row"
    yield from (f"splits: {note}" for note in loaded.notes)
    sizes = np.percentile(loaded.num_tokens, [0, 50, 95, 100]).astype(int)
    yield f"prompt tokens: shortest {sizes[0]}, median {sizes[1]}, 95 % up to {sizes[2]}, longest {sizes[3]}"
    yield f"media: {_media(questions)}"
    for name, counts in (("sources", Counter(q.source for q in questions)),
                         ("answer types", Counter(q.answer_type for q in questions))):  # fmt: skip
        yield f"{name}: " + ", ".join(f"{key} {number}" for key, number in counts.most_common(NUM_REASONS))
    if config.data.reward:
        yield f"graded by: {config.data.reward}"
    yield from _overlap(config, questions)
    step = max(1, len(questions) // NUM_SHOWN)
    for number, position in enumerate(range(0, len(questions), step)[:NUM_SHOWN], 1):
        yield from _shown(number, questions[position], chat)


def _media(questions: Sequence[Question]) -> str:
    pictures = Counter(len(question.images) for question in questions if question.images)
    num_clips = sum(question.video is not None for question in questions)
    each = ", ".join(f"{number} with {num}" for num, number in sorted(pictures.items()))
    return f"{sum(pictures.values())} questions have pictures{f' ({each})' if each else ''}, {num_clips} a video"


def _shown(number: int, question: Question, chat: Chat) -> Iterator[str]:
    from methods.base import plain_prompt

    text = _PADS.sub(r"\1...", chat.decode_prompt(chat.pack(plain_prompt(question)).ids))
    if len(text) > LONGEST_SHOWN:
        half = LONGEST_SHOWN // 2
        text = f"{text[:half]}\n[... {len(text) - LONGEST_SHOWN} characters ...]\n{text[-half:]}"
    yield f"--- prompt {number} of {NUM_SHOWN}, question {question.id}"
    yield text
    yield f"--- gold ({question.answer_type}): {' or '.join(question.golds)}"


def _overlap(config: RunConfig, questions: Sequence[Question]) -> Iterator[str]:
    """Questions that a benchmark of the suite asks as well, of those whose data are on this machine."""
    from harness.builders.corpus.hashes import MIN_TEXT_CHARS, normal_question
    from harness.evaluation.suites import load_suite
    from harness.preflight.doctor import offline

    if config.eval.suite is None:
        yield "overlap with evaluation: no suite is chosen (eval=paper31, eval=mini, ...)"
        return

    def key(question: Question) -> str | None:
        normal = normal_question(question.text)
        has_media = bool(question.images) or question.video is not None
        return None if has_media and len(normal) < MIN_TEXT_CHARS else normal

    try:
        with offline(unless=False):
            suite = load_suite(config.eval)
    except UserError as error:
        yield f"overlap with {config.eval.suite}: not looked for ({error})"
        return
    own = {found for question in questions if (found := key(question))}
    counts = {b.name: sum(key(question) in own for question in b.questions) for b in suite.benchmarks}
    said = ", ".join(f"{number} questions of {name}" for name, number in counts.items() if number) or "none"
    yield f"overlap with {config.eval.suite}: {said} ({len(counts)} benchmarks looked at)"
    if suite.holes:
        yield f"  not on this machine: {', '.join(suite.holes)}"
