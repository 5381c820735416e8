"""Questions from reasoning-gym: any of its data sets by name, generated offline.

Reasoning-gym makes entry i of a data set from the random seed `seed + i`, so data sets of neighbouring seeds share
almost all of their entries. The first seed is therefore drawn from (data.seed, split). The two splits draw from
ranges that do not meet, below 2**32, which is as far as some data sets go. Small data sets give the same question for
many seeds, so held-out questions are also compared with the training questions by their text.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from harness.config.data import DataConfig
from harness.data.rows import Rows
from harness.errors import UserError, did_you_mean
from harness.types import Question

Split = Literal["train", "held_out"]

HELD_OUT_SEEDS = 2**31
NUM_FIRST_SEEDS = 2**30
MAX_DRAWS = 10
"""Entries that may be drawn for one held-out question that occurs nowhere else."""

FULL_SCORE = 1.0 - 1e-9
"""Scorers compute; the grader rounds in the same way."""

HASH_ORDERED = frozenset(
    {"isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder"}
)
"""Data sets of 0.1.25 that iterate over sets of strings: their questions change with PYTHONHASHSEED."""


def load(config: DataConfig, split: Split = "train") -> Rows:
    """`data.num_questions` entries of `data.dataset`. `metadata` has what scoring needs: dataset, entry and config.

    Entries without a gold answer, or whose gold answer does not score 1 once they are stored as JSON, are bad rows.

    Raises UserError for an unknown data set, an unknown or unusable option, and too few distinct held-out questions.
    """
    rows = Rows(origin=f"reasoning_gym/{config.dataset}")
    if split == "held_out":
        training = load(config).questions
        rows.questions = held_out_questions(config, training=training, num_questions=config.num_questions)
        rows.numbers = list(range(1, len(rows.questions) + 1))
        return rows
    for number, drawn in _draw(config, "train", config.num_questions):
        if isinstance(drawn, str):
            rows.bad[number] = drawn
        else:
            rows.questions.append(drawn)
            rows.numbers.append(number)
    return rows


def held_out_questions(config: DataConfig, *, training: Iterable[Question], num_questions: int) -> list[Question]:
    """`num_questions` distinct questions of which none occurs in `training`, whatever its seed.

    Raises UserError like `load`, and where the data set has too few further questions.
    """
    seen = {_key(question) for question in training}
    held_out: list[Question] = []
    for _, drawn in _draw(config, "held_out", MAX_DRAWS * num_questions):
        if len(held_out) == num_questions:
            break
        if isinstance(drawn, Question) and _key(drawn) not in seen:
            seen.add(_key(drawn))
            held_out.append(drawn)
    if len(held_out) < num_questions:
        raise UserError(
            f"data.dataset={config.dataset} gave {len(held_out)} questions outside the training data, {num_questions} "
            "asked for: ask for fewer, train on fewer (data.num_questions), or widen it with data.dataset_config"
        )
    return held_out


def first_seed(seed: int, split: Split) -> int:
    """The seed of a split's first entry; the ranges of the splits never meet."""
    first = random.Random(f"reasoning_gym/{split}/{seed}").randrange(NUM_FIRST_SEEDS)
    return first + HELD_OUT_SEEDS * (split == "held_out")


def _draw(config: DataConfig, split: Split, size: int) -> Iterator[tuple[int, Question | str]]:
    """(number from 1, the question or why there is none) of up to `size` entries."""
    name = str(config.dataset)
    dataset = _create(name, config.dataset_config, seed=first_seed(config.seed, split), size=size)
    for index in range(size):
        try:
            entry = _as_json(dataset[index])
            gold_error = _gold_error(dataset, entry)
        except Exception as error:
            raise _refused(name, error) from error
        yield index + 1, gold_error or _question(config, f"{name}/{split}/{config.seed}/{index}", entry)


def _question(config: DataConfig, id: str, entry: dict[str, Any]) -> Question:
    metadata = {"dataset": config.dataset, "entry": entry, "config": _as_json(config.dataset_config)}
    return Question(
        id=id,
        text=entry["question"].strip(),
        answer=entry["answer"],
        answer_type="reasoning_gym",
        source=f"reasoning_gym/{config.dataset}",
        metadata=metadata,
    )


def _create(name: str, options: dict[str, Any], *, seed: int, size: int) -> Any:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        raise UserError(f"data.dataset={name} is no reasoning-gym data set.{did_you_mean(name, DATASETS)}")
    if name in HASH_ORDERED and os.environ.get("PYTHONHASHSEED", "random") == "random":
        raise UserError(f"data.dataset={name} differs from process to process: start the run with PYTHONHASHSEED=0")
    _, config_class = DATASETS[name]
    known = {f.name for f in dataclasses.fields(config_class)} - {"seed", "size"}
    for option in options:
        if option in ("seed", "size"):
            key = {"seed": "data.seed", "size": "data.num_questions"}[option]
            raise UserError(f"data.dataset_config.{option} is not for use here: set {key}")
        if option not in known:
            raise UserError(f"data.dataset_config.{option} is no option of {name}. Known: {', '.join(sorted(known))}.")
    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=size, **options)
    except Exception as error:
        raise _refused(name, error) from error


def _refused(name: str, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"reasoning-gym cannot make {name} with these data.dataset_config: {reason}")


def _gold_error(dataset: Any, entry: dict[str, Any]) -> str | None:
    if not isinstance(entry["answer"], str) or not entry["answer"].strip():
        return "no gold answer"
    score = float(dataset.score_answer(entry["answer"], entry))
    if score >= FULL_SCORE:
        return None
    return f"the gold answer scores {score:g} instead of 1 once the entry is stored as JSON"


def _as_json(value: Any) -> Any:
    """The value as it comes back from JSON: tuples are lists, what JSON does not know is a list or text."""
    return json.loads(json.dumps(value, default=_plain))


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return value.tolist()
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _key(question: Question) -> str:
    return " ".join(question.text.split())
