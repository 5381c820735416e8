"""Several samples a question: pass@k, avg@k and maj@k, and how far samples and runs spread.

Scores are those of single responses, in [0, 1]. `pass@k` is the unbiased estimator of Chen et al. (arXiv 2107.03374):
the mean of the best score over all choices of k of the n samples. It holds for marks between 0 and 1, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from harness.evaluation.benchmarks.recipe import Aggregate
from harness.types import Question

Same = Callable[[Sequence[tuple[str | None, str | None]]], list[bool]]
"""Whether the two answers of each pair are the same."""
COLUMNS = ("benchmark", "num_samples", "num_questions", "avg", "run_sd", "question_sd")
DECIMALS = 4


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """A question with the answers of its samples (None without one) and their scores, in order."""

    question: Question
    answers: Sequence[str | None]
    scores: Sequence[float]


def expected_best(scores: Sequence[float], k: int) -> float:
    """The mean, over all choices of `k` of the scores, of the best of them.

    Example: of [1, 0, 0, 0] with k = 2 it is 1/2: three of the six pairs have the right one.
    """
    n = len(scores)
    assert 1 <= k <= n
    total = math.comb(n, k)
    return sum(score * math.comb(i, k - 1) for i, score in enumerate(sorted(scores))) / total


def majority(groups: Sequence[int | None], scores: Sequence[float]) -> float:
    """The score of the answer that most samples give; `groups` has equal numbers for equal answers, None for none.

    Of several answers with as many votes, the mean. 0 where no sample has an answer.
    """
    votes = [group for group in groups if group is not None]
    if not votes:
        return 0.0
    most = max(map(votes.count, set(votes)))
    winners = sorted(group for group in set(votes) if votes.count(group) == most)
    marks = [fmean(s for g, s in zip(groups, scores, strict=True) if g == winner) for winner in winners]
    return fmean(marks)


def answer_groups(sampled: Sequence[Sampled], same: Same) -> list[list[int | None]]:
    """For each question, the number of each sample's answer: equal answers have one number."""
    left = [list(dict.fromkeys(filter(None, one.answers))) for one in sampled]
    found: list[dict[str, int]] = [{} for _ in sampled]
    number = 0
    while any(left):
        heads = [(i, texts[0]) for i, texts in enumerate(left) if texts]
        pairs = [(head, other) for i, head in heads for other in left[i][1:]]
        equal = iter(same(pairs))
        for i, head in heads:
            mine = [other for other in left[i][1:] if next(equal)]
            found[i] |= dict.fromkeys([head, *mine], number)
            left[i] = [other for other in left[i][1:] if other not in mine]
        number += 1
    return [[numbers.get(answer or "") for answer in one.answers] for numbers, one in zip(found, sampled, strict=True)]


def sample_row(name: str, sampled: Sequence[Sampled], aggregate: Aggregate, same: Same) -> dict[str, Any]:
    """What is known of a benchmark from its samples, in percent.

    - `avg`: the mean of the runs' scores; run i has the i-th sample of each question.
    - `run_sd`: standard deviation of the runs' scores; `question_sd`: of a question's samples, mean over questions.
    - `pass@k`, and `maj@k` as the mean over consecutive blocks of k samples, for k = 1, 2, 4 ... and all.
    """
    num = len(sampled[0].scores)
    runs = [100 * aggregate([(one.question, one.scores[k]) for one in sampled]).mean for k in range(num)]
    groups = answer_groups(sampled, same)
    row: dict[str, Any] = {
        "benchmark": name,
        "num_samples": num,
        "num_questions": len(sampled),
        "avg": fmean(runs),
        "run_sd": stdev(runs),
        "question_sd": 100 * fmean(stdev(one.scores) for one in sampled),
    }
    for k in sizes(num):
        row[f"pass@{k}"] = 100 * aggregate([(one.question, expected_best(one.scores, k)) for one in sampled]).mean
    for k in sizes(num):
        row[f"maj@{k}"] = (
            100
            * aggregate(
                [(one.question, _majority_of_blocks(g, one.scores, k)) for one, g in zip(sampled, groups, strict=True)]
            ).mean
        )
    return {key: round(value, DECIMALS) if isinstance(value, float) else value for key, value in row.items()}


def sizes(num: int) -> list[int]:
    """1, 2, 4 and so on below `num`, then `num`."""
    return [*(1 << i for i in range(num.bit_length()) if 1 << i < num), num]


def _majority_of_blocks(groups: Sequence[int | None], scores: Sequence[float], k: int) -> float:
    starts = range(0, len(scores) - k + 1, k)
    return fmean(majority(groups[start : start + k], scores[start : start + k]) for start in starts)
