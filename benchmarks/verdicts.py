"""How often a verdict is false, and how often a true lead is found: `python -m benchmarks.verdicts [--quick]`.

Two labels are simulated. A question's accuracy is drawn from Beta(.5, .5), and a run's shift of all its questions from
a normal distribution; the shift is of the run's true accuracy, in points. Scores of single responses go through the
report's own inference (`reports.inference.contrast`). The first repetition of each cell is written as run folders and
read back, as `zppo report` does.

The first table has the rates of `better` and `worse` where there is no lead. Pooled McNemar is the test that the report
had before. The last table has the power at a true lead of 3 points, that of Welch's t over the same runs, and what the
formula of `zppo plan` expects. Exit code 1 where a rate is above 5 % by more than twice its Monte Carlo error, or power
is below what is asked for. A process a core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import stdtr

from reports.inference.contrast import ALPHA, BETTER, PAIRED_SHARE, WORSE, Runs, contrast, verdicts
from reports.inference.power import power, standard_error
from reports.runs.answers import read_answers
from reports.runs.collect import find_runs, long_table
from reports.significance import significance_table

QUESTIONS, SEEDS, RUN_SDS = (500, 1319, 5000), (3, 5), (0.0, 1.0, 1.5, 2.0)
LEAD, POWER_SD, POWER_SEEDS = 3.0, 1.0, 5
RESPONSE_SD = 100 * (1 / 8) ** 0.5
"""Of a response about its question's accuracy, points: E[p (1 - p)] = 1/8 under Beta(.5, .5)."""
_GRID = np.sin(np.pi * (np.arange(4000) + 0.5) / 8000) ** 2
_MOVED = np.linspace(-0.4, 0.4, 801)
_SHIFTS = np.array([np.clip(_GRID + moved, 0, 1).mean() - 0.5 for moved in _MOVED])


@dataclass(frozen=True)
class Cell:
    num_questions: int
    run_sd: float
    num_seeds: int
    lead: float = 0.0


def simulate(cell: Cell, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the runs of two labels, a row a run and a column a question; the first leads by `cell.lead` points."""
    accuracy = rng.beta(0.5, 0.5, cell.num_questions)
    sides = []
    for lead in (cell.lead, 0.0):
        shifts = (lead + rng.normal(0, cell.run_sd, cell.num_seeds)) / 100
        moved = np.interp(shifts, _SHIFTS, _MOVED)[:, None]
        sides.append((rng.random((cell.num_seeds, cell.num_questions)) < accuracy + moved).astype(float))
    return sides[0], sides[1]


def said(a_RI: np.ndarray, b_RI: np.ndarray) -> tuple[str, float, float]:
    """The report's verdict on two labels, its p, and the p of the pooled McNemar test."""
    seeds, questions = tuple(range(len(a_RI))), np.arange(a_RI.shape[1])
    found = contrast([Runs(seeds, a_RI)], [Runs(seeds, b_RI)], [questions])
    return verdicts([found], [False])[0].word, found.p, found.p_questions


def welch(a_RI: np.ndarray, b_RI: np.ndarray) -> float:
    """p of Welch's t over the runs' scores."""
    a, b = a_RI.mean(axis=1), b_RI.mean(axis=1)
    parts = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])
    df = parts.sum() ** 2 / (parts**2 / (len(a) - 1)).sum()
    return float(2 * stdtr(df, -abs(a.mean() - b.mean()) / parts.sum() ** 0.5))


def through_files(a_RI: np.ndarray, b_RI: np.ndarray, folder: Path) -> tuple[str, float]:
    """Verdict and p of the same scores once they were written as run folders and read as a report reads them."""
    for label, scores_RI in (("a", a_RI), ("b", b_RI)):
        for seed, scores in enumerate(scores_RI):
            run = folder / label / "student" / f"seed{seed}"
            suite = run / "eval" / "suite"
            suite.mkdir(parents=True)
            info = {"status": "done", "label": label, "method": label, "student": "student", "seed": seed, "cost": {}}
            (run / "run.json").write_text(json.dumps(info))
            rows = [{"benchmark": "x", "question_id": str(i), "score": s} for i, s in enumerate(scores.tolist())]
            (suite / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            text = f"benchmark,score,n,protocol\nx,{100 * scores.mean()},{len(scores)},p\n"
            (suite / "scores.csv").write_text(text)
    runs = find_runs(folder)
    table = significance_table(long_table(runs), read_answers(runs)[0], "b")
    return str(table["verdict"].iloc[0]), float(table["p"].iloc[0])


def rates(cell: Cell, num_repeats: int, seed: int) -> tuple[float, float, float]:
    """Shares of repetitions in which the report, pooled McNemar and Welch's t call a lead of one of the labels."""
    rng = np.random.default_rng(seed)
    called = np.zeros(3)
    for repeat in range(num_repeats):
        sides = simulate(cell, rng)
        word, p, pooled = said(*sides)
        called += (word in (BETTER, WORSE), pooled < ALPHA, welch(*sides) < ALPHA)
        if repeat == 0:
            with tempfile.TemporaryDirectory() as folder:
                from_files = through_files(*sides, Path(folder))
            if from_files[0] != word or not np.isclose(from_files[1], p, rtol=1e-9):
                raise AssertionError(f"{cell}: {word} {p}, from run folders {from_files}")
    return float(called[0]) / num_repeats, float(called[1]) / num_repeats, float(called[2]) / num_repeats


def family_rate(num_repeats: int, seed: int) -> float:
    """Share of tables of three labels and four benchmarks without any lead that have a false verdict.

    A run's shift is the same on all its benchmarks; 500 questions each, run SD 1.5, 3 seeds.
    """
    rng, questions, seeds = np.random.default_rng(seed), np.arange(500), (0, 1, 2)
    num_false = 0
    for _ in range(num_repeats):
        accuracies = rng.beta(0.5, 0.5, (4, 500))
        labels = []
        for _ in range(4):
            moved = np.interp(rng.normal(0, 0.015, 3), _SHIFTS, _MOVED)[:, None]
            labels.append([Runs(seeds, (rng.random((3, 500)) < one + moved).astype(float)) for one in accuracies])
        baseline, *others = labels
        found = [contrast([a], [b], [questions]) for label in others for a, b in zip(label, baseline, strict=True)]
        found += [contrast(label, baseline, [questions] * 4) for label in others]
        words = {verdict.word for verdict in verdicts(found, [False] * 12 + [True] * 3)}
        num_false += bool(words & {BETTER, WORSE})
    return num_false / num_repeats


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 repetitions a cell, not 10,000")
    args = parser.parse_args()
    started, num_repeats, failures = time.perf_counter(), 1000 if args.quick else 10_000, []
    error = (ALPHA * (1 - ALPHA) / num_repeats) ** 0.5
    cells = [Cell(*values) for values in itertools.product(QUESTIONS, RUN_SDS, SEEDS)]
    powers = [Cell(num_questions, POWER_SD, POWER_SEEDS, LEAD) for num_questions in QUESTIONS]
    with ProcessPoolExecutor() as pool:  # the dear ones first
        futures = {
            cell: pool.submit(rates, cell, num_repeats, seed)
            for seed, cell in sorted(enumerate([*cells, *powers]), key=lambda entry: -entry[1].num_questions)
        }
        family = pool.submit(family_rate, num_repeats, 100).result()
    print(
        f"{num_repeats} repetitions a cell; Monte Carlo error at 5 %: {100 * error:.2f} points\n\nFalse verdicts, %\n"
    )
    print("| questions | run SD | seeds | pooled McNemar | verdict |\n" + "| --: " * 5 + "|")
    for cell in cells:
        false, pooled, _ = futures[cell].result()
        numbers = (
            f"{cell.num_questions:,} | {cell.run_sd:g} | {cell.num_seeds} | {100 * pooled:.1f} | {100 * false:.1f}"
        )
        print(f"| {numbers} |")
        if false > ALPHA + 2 * error:
            failures.append(f"{false:.1%} false verdicts: {cell}")
    print(f"\nTables of 3 labels x 4 benchmarks with any false verdict: {100 * family:.1f} %")
    if family > ALPHA + 2 * error:
        failures.append(f"{family:.1%} of tables with a false verdict")
    print(f"\nPower, %: lead {LEAD:g} points, run SD {POWER_SD:g}, {POWER_SEEDS} seeds\n")
    print("| questions | Welch's t | verdict | ratio | formula |\n" + "| --: " * 5 + "|")
    for cell in powers:
        found, _, of_welch = futures[cell].result()
        se, df = standard_error(cell.num_seeds, cell.num_questions, cell.run_sd, RESPONSE_SD)
        expected = power(LEAD, se, df, ALPHA * (1 - PAIRED_SHARE))
        numbers = f"{100 * of_welch:.1f} | {100 * found:.1f} | {found / of_welch:.3f} | {100 * expected:.1f}"
        print(f"| {cell.num_questions:,} | {numbers} |")
        if found < 0.9 * of_welch or abs(found - expected) > 0.03 + 2 * (found * (1 - found) / num_repeats) ** 0.5:
            failures.append(f"power {found:.1%}, Welch's {of_welch:.1%}, by formula {expected:.1%}: {cell}")
    print(f"\n{time.perf_counter() - started:.0f} s")
    print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
