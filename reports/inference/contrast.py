"""One label against another, over seeds, questions and benchmarks: the only source of a verdict.

A run's score varies with its seed, and the lead of a label varies with the questions. The variance of a lead is

    V = V_runs + V_questions

- `V_runs`: of the mean over runs. Unpaired (Welch) s_a^2 / R_a + s_b^2 / R_b, paired by seed s_(a-b)^2 / R.
- `V_questions`: of the mean over questions of a lead that differs between them. It is what the questions' leads vary
  by, minus the noise that single responses bring into it, which `V_runs` holds already; at least 0.

Student's t has Satterthwaite's degrees of freedom. Runs of one seed share their data, so that their scores correlate
or are independent. Welch's test is then valid, and the paired one has more power where they correlate. Where both
labels have the same seeds, both tests are made: the paired one has `PAIRED_SHARE` of the error rate, Welch's the rest.
A paired test alone would lose a tenth to a fifth of the power of five seeds wherever they do not correlate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from reports.inference.questions import question_p

ALPHA = 0.05
PAIRED_SHARE = 0.1
"""Of the error rate, what the test paired by seed has where seeds are shared."""
BETTER, WORSE, ALIKE, ONE_RUN, NOT_COMPARED = "better", "worse", "not distinguishable", "one run", "not compared"


@dataclass(frozen=True)
class Runs:
    """The responses of one label's runs to one benchmark, all known."""

    seeds: tuple[int, ...]
    scores_RI: np.ndarray
    """0 to 1; a row a run, a column a response."""
    is_trained: bool = True
    """A model that was not trained has no seeds that it could vary with: its one run is all there is."""

    @property
    def is_enough(self) -> bool:
        return len(self.seeds) > 1 or not self.is_trained


@dataclass(frozen=True)
class Contrast:
    """By how many percentage points label a leads label b, and how sure that is.

    `lo`, `hi` (95 %, not corrected), `p`, `se` and `df` are NaN for one run. `p_questions` is about the questions of
    these runs alone; `p` is about runs and questions together, and no smaller.
    """

    delta: float
    lo: float
    hi: float
    p: float
    p_questions: float
    test: str
    se: float
    """Standard error of delta, unpaired, percentage points."""
    df: float


def contrast(a: Sequence[Runs], b: Sequence[Runs], questions: Sequence[np.ndarray]) -> Contrast:
    """The lead of a over b in the mean over benchmarks, each given by its runs and by the question of each column.

    The runs of all benchmarks are the same, in the same order.
    """
    num = len(questions)
    leads = [100 * (x.scores_RI.mean() - y.scores_RI.mean()) for x, y in zip(a, b, strict=True)]
    delta = float(np.mean(leads))
    p_questions, test = _question_level(a, b, questions)
    if not (a[0].is_enough and b[0].is_enough) or len(a[0].seeds) + len(b[0].seeds) < 3:
        return Contrast(delta, np.nan, np.nan, np.nan, p_questions, test, np.nan, np.nan)
    of_a, of_b = (100 * np.mean([side.scores_RI.mean(axis=1) for side in sides], axis=0) for sides in (a, b))
    of_questions = [
        (_question_variance(x.scores_RI, y.scores_RI, asked) / num**2, asked.max())
        for x, y, asked in zip(a, b, questions, strict=True)
    ]
    runs = [(side.var(ddof=1) / len(side), len(side) - 1) for side in (of_a, of_b) if len(side) > 1]
    p, se, df = _student(delta, [*runs, *of_questions])
    half = _half(se, df, ALPHA)
    if sorted(a[0].seeds) == sorted(b[0].seeds):  # both have several
        pairs = of_a[np.argsort(a[0].seeds)] - of_b[np.argsort(b[0].seeds)]
        paired = _student(delta, [(pairs.var(ddof=1) / len(pairs), len(pairs) - 1), *of_questions])
        p = min(1.0, p / (1 - PAIRED_SHARE), paired[0] / PAIRED_SHARE)
        half = min(_half(se, df, ALPHA * (1 - PAIRED_SHARE)), _half(*paired[1:], ALPHA * PAIRED_SHARE))
        test = f"runs, paired and not; {test}"
    else:
        test = f"runs, unpaired; {test}"
    return Contrast(delta, delta - half, delta + half, max(p, p_questions), p_questions, test, se, df)


def holm(p: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Holm's step-down correction, NaN left out: the k-th smallest of m times m - k + 1, never falling, at most 1.

    With `weights` the p are ordered by p / weight, and each is multiplied by the sum of the weights that are left over
    its own.
    """
    weights = np.ones(len(p)) if weights is None else weights
    corrected = np.full(len(p), np.nan)
    ratios = p / weights
    order = np.argsort(ratios, kind="stable")[: int((~np.isnan(p)).sum())]  # NaN is sorted last
    left = weights[order][::-1].cumsum()[::-1]
    corrected[order] = np.minimum(np.maximum.accumulate(ratios[order] * left), 1.0)
    return corrected


@dataclass(frozen=True)
class Verdict:
    """What a contrast says once all those of its table are corrected for."""

    p_holm: float
    word: str
    alpha: float
    """The share of the error rate that the contrast has before any other is called."""


def verdicts(contrasts: Sequence[Contrast | None], is_macro: Sequence[bool]) -> list[Verdict]:
    """The verdict of each contrast of one table, corrected by Holm over all its labels and benchmarks.

    The macro averages of all labels have half of the error rate, single benchmarks the other half; a table with one
    kind gives all to it. None is a cell that cannot be compared.
    """
    p = np.array([np.nan if found is None else found.p for found in contrasts])
    macro, tested = np.array(is_macro, dtype=bool), ~np.isnan(p)
    weights = np.where(macro, 1 / max(1, (macro & tested).sum()), 1 / max(1, (~macro & tested).sum()))
    alphas = ALPHA * weights / max(1, weights[tested].sum())
    return [
        Verdict(float(corrected), _word(found, corrected), float(alpha))
        for found, corrected, alpha in zip(contrasts, holm(p, weights), alphas, strict=True)
    ]


def _word(found: Contrast | None, p_holm: float) -> str:
    if found is None:
        return NOT_COMPARED
    if np.isnan(found.p):
        return ONE_RUN
    if p_holm >= ALPHA:
        return ALIKE
    return BETTER if found.delta > 0 else WORSE


def _question_level(a: Sequence[Runs], b: Sequence[Runs], questions: Sequence[np.ndarray]) -> tuple[float, str]:
    """Over several benchmarks the normal test of the mean lead, its variance that of the questions' leads."""
    if len(questions) == 1:
        return question_p(a[0].scores_RI, b[0].scores_RI, questions[0])
    lead, variance = 0.0, 0.0
    for x, y, asked in zip(a, b, questions, strict=True):
        lead += float(x.scores_RI.mean() - y.scores_RI.mean())
        variance += _spread(x.scores_RI.mean(axis=0) - y.scores_RI.mean(axis=0), asked)
    return _student(lead, [(variance, np.inf)])[0], "questions"


def _question_variance(a_RI: np.ndarray, b_RI: np.ndarray, questions_I: np.ndarray) -> float:
    """`V_questions` of one benchmark, percentage points squared."""
    leads = _spread(a_RI.mean(axis=0) - b_RI.mean(axis=0), questions_I)
    noise = 0.0
    for scores_RI in (a_RI, b_RI):
        residuals = scores_RI - scores_RI.mean(axis=1, keepdims=True) - scores_RI.mean(axis=0) + scores_RI.mean()
        num = len(scores_RI)
        if num == 1:  # all that its responses bring is a part of the questions' variance
            continue
        noise += sum(_spread(row, questions_I) for row in residuals) / (num * (num - 1))
    return 1e4 * max(0.0, leads - noise)


def _spread(values_I: np.ndarray, questions_I: np.ndarray) -> float:
    """Variance of the mean of `values_I` where questions, each with all its columns, are a sample."""
    sums = np.bincount(questions_I, values_I - values_I.mean())
    num = len(sums)
    return float(sums @ sums) / len(values_I) ** 2 * num / max(1, num - 1)


def _student(delta: float, parts: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """p, standard error and degrees of freedom from variances with their own degrees of freedom."""
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return float(delta == 0), 0.0, np.inf
    doubt = sum(part**2 / df for part, df in parts if part)
    df = variance**2 / doubt if doubt else np.inf
    se = variance**0.5
    return float(2 * stdtr(min(df, 1e9), -abs(delta) / se)), se, df


def _half(se: float, df: float, alpha: float) -> float:
    """Half of the interval's width."""
    return float(se * stdtrit(min(df, 1e9), 1 - alpha / 2))
