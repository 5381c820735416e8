"""What a study can see, before it has run: the smallest lead that its seeds and questions find, by formula."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.config.evaluation import GENERATED, EvalConfig, benchmarks_of
from harness.data.synthetic import TASKS
from harness.errors import UserError
from harness.evaluation.benchmarks.columns import columns
from harness.preflight.plan.cells import Plan
from harness.preflight.plan.counting import Assumptions
from reports.inference.power import detectable, planned_alpha, standard_error
from reports.inference.spread import run_spread
from reports.runs.answers import read_answers
from reports.runs.collect import find_runs


@dataclass(frozen=True)
class Detectable:
    """Leads in percentage points that one table of the study finds with probability 0.8; NaN with one seed."""

    student: str
    suite: str
    family: str
    num_seeds: int
    num_labels: int
    """Labels of the table, the baseline among them."""
    num_questions: tuple[int, ...]
    """Of each benchmark."""
    alone: tuple[float, float]
    """On the largest and on the smallest benchmark, where it is the only comparison."""
    corrected: tuple[float, float]
    """The same at Holm's first step over all labels and benchmarks."""
    macro: float
    """Of the macro average, at its first step."""


def detectable_leads(plans: Sequence[Plan], assumed: Assumptions) -> list[Detectable]:
    """One for each student, suite and family of a study that compares labels. Benchmarks of others are not counted.

    A row has as few seeds as the trained label with the fewest; a model that is not trained has one run.
    """
    groups: dict[tuple[str, str], list[Plan]] = {}
    for plan in plans:
        if plan.config.eval.suite is not None:
            groups.setdefault((plan.config.student.name, plan.config.eval.suite), []).append(plan)
    found = []
    for (student, suite), group in groups.items():
        families: dict[str, list[int]] = {}
        for family, number in _benchmarks(group[0].config.eval):
            families.setdefault(family, []).append(number)
        num_labels = len({plan.label for plan in group})
        trained = [plan.num_seeds for plan in group if plan.count is not None]
        if num_labels > 1 and trained:
            num_seeds = min(trained)
            found += [
                _detectable(student, suite, family, num_seeds, num_labels, tuple(numbers), assumed)
                for family, numbers in families.items()
            ]
    return found


def with_spread(assumed: Assumptions, study: str) -> Assumptions:
    """The assumptions with the spread of an earlier study's runs. Raises UserError where it has none."""
    try:
        answers, _ = read_answers(find_runs(Path(study)))
    except ValueError as error:
        raise UserError(f"--spread: {error}") from error
    spread = run_spread(answers.values())
    if spread is None:
        raise UserError(f"--spread {study}: no label has two runs with rows: state --run-sd, or name another study")
    return replace(assumed, run_sd=round(spread.run_sd, 3), response_sd=round(spread.response_sd, 3))


def _detectable(
    student: str,
    suite: str,
    family: str,
    num_seeds: int,
    num_labels: int,
    num_questions: tuple[int, ...],
    assumed: Assumptions,
) -> Detectable:
    def lead(number: float, alpha: float) -> float:
        return detectable(*standard_error(num_seeds, number, assumed.run_sd, assumed.response_sd), alpha)

    num_benchmarks = len(num_questions)
    sizes = (max(num_questions), min(num_questions))
    alone = [lead(number, planned_alpha(1, 1)) for number in sizes]
    corrected = [lead(number, planned_alpha(num_labels - 1, num_benchmarks)) for number in sizes]
    # The mean of B benchmarks is as noisy as one with B^2 / (1/N_1 + ...) questions.
    as_one = num_benchmarks**2 / sum(1 / number for number in num_questions)
    macro = lead(as_one, planned_alpha(num_labels - 1, num_benchmarks, macro=True))
    return Detectable(
        student=student,
        suite=suite,
        family=family,
        num_seeds=num_seeds,
        num_labels=num_labels,
        num_questions=num_questions,
        alone=(alone[0], alone[1]),
        corrected=(corrected[0], corrected[1]),
        macro=macro,
    )


def _benchmarks(config: EvalConfig) -> Iterator[tuple[str, int]]:
    """Family and number of questions of each benchmark whose number is known."""
    names = benchmarks_of(config)
    if not names and config.suite == GENERATED:
        for task in config.mini_tasks:
            for _ in config.levels:
                yield TASKS[task].family, min(config.num_questions, config.limit or config.num_questions)
    for name in names:
        column = columns().get(name)
        if column is not None and (not config.columns or name in config.columns):
            yield column.family, min(column.num_rows, config.limit or column.num_rows)
