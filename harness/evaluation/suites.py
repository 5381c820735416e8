"""The registry of suites: which questions make which benchmark columns, and how each column is scored."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from harness.config.evaluation import BENCHMARKS, GENERATED, EvalConfig, benchmarks_of
from harness.config.names import check_name
from harness.data.rows import checked_questions
from harness.errors import UserError, did_you_mean
from harness.evaluation.benchmarks.columns import Column, Family, Scoring, columns
from harness.evaluation.benchmarks.described import described_benchmark, is_description
from harness.evaluation.benchmarks.recipe import Aggregate, Mark, Recipe, Scorer, by_grade, row_mean
from harness.evaluation.benchmarks.rows import NoGold, Row, load_rows
from harness.rewards.rules import Grade
from harness.types import OwnBenchmark, Question


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One column of a results table. `family` is what macro averages are formed over: LLM, VLM or Video."""

    name: str
    family: str
    questions: tuple[Question, ...]
    positions: tuple[int, ...] = ()
    """Positions of the questions in the complete benchmark, where they are a part of it; empty: all."""
    library: Literal["lm_eval", "lmms_eval"] = "lm_eval"
    dataset: str = "generated"
    scoring: Scoring = "det"
    scorer: Scorer = by_grade
    judge: str | None = None
    aggregate: Aggregate = row_mean
    is_own: bool = False
    """Of others, and held to more: nobody has looked at its questions."""
    partial: str | None = None
    """What the data lack of the complete benchmark, in words; None where it is all there."""

    def uids(self) -> dict[str, Question]:
        """The uid of a question's prompt, `eval/<benchmark>/<position>`, decides its random draws."""
        positions = self.positions or range(len(self.questions))
        return {f"eval/{self.name}/{i}": question for i, question in zip(positions, self.questions, strict=True)}


@dataclass(frozen=True, kw_only=True)
class Suite:
    """The benchmarks that can be run, and why the others cannot, in a line each by their names."""

    families: dict[str, str]
    """The family of each benchmark, in the order of the table."""
    benchmarks: tuple[Benchmark, ...]
    strict: bool = False
    """What one benchmark lacks is an error, not a hole."""
    holes: dict[str, str] = field(default_factory=dict)


def mini_tasks(config: EvalConfig) -> Suite:
    """Held-out questions of the generated tasks, one a task of `config.mini_tasks` and level of `config.levels`.

    Never a question of training: `held_out` and `train` are disjoint splits, of all tasks together. Raises UserError
    for tasks or levels that do not exist or repeat.
    """
    from harness.data.arithmetic import LEVELS
    from harness.data.synthetic import TASKS, make_questions

    tasks, levels = config.mini_tasks, config.levels
    if unknown := [task for task in tasks if task not in TASKS]:
        near = did_you_mean(unknown[0], TASKS)
        raise UserError(f"eval.mini_tasks={tasks}: there is no task '{unknown[0]}'.{near}")
    if not tasks or len(set(tasks)) < len(tasks):
        raise UserError(f"eval.mini_tasks must be some of {', '.join(TASKS)}, each once, got {tasks}")
    if not levels or len(set(levels)) < len(levels) or not set(levels) <= set(LEVELS):
        raise UserError(f"eval.levels must be some of {', '.join(map(str, LEVELS))}, each once, got {levels}")
    limits, positions = config.media.limits(), spread(config.num_questions, config.limit)

    def made(task: str, level: int) -> Benchmark:
        every = make_questions(
            [task], [level], config.num_questions, seed=config.seed, split="held_out", limits=limits
        )  # fmt: skip
        return Benchmark(
            name=f"{task}_l{level}",
            family=TASKS[task].family,
            library="lm_eval" if TASKS[task].family == "LLM" else "lmms_eval",
            questions=tuple(every[i] for i in positions),
            positions=tuple(positions),
        )

    benchmarks = tuple(made(task, level) for task in tasks for level in levels)
    return Suite(benchmarks=benchmarks, families={b.name: b.family for b in benchmarks}, strict=True)


def listed_suite(config: EvalConfig) -> Suite:
    """Columns of the paper's tables, and benchmarks of others. A column whose data are not there is a hole."""
    names = benchmarks_of(config)
    if unknown := [name for name in config.columns if name not in names]:
        raise UserError(f"eval.columns: {config.suite} has no '{unknown[0]}'.{did_you_mean(unknown[0], names)}")
    if config.data_root is not None and not Path(config.data_root).expanduser().is_dir():
        raise UserError(f"eval.data_root={config.data_root} is no folder")
    benchmarks: list[Benchmark] = []
    families: dict[str, str] = {}
    holes = {}
    for name in (name for name in names if not config.columns or name in config.columns):
        if (column := columns().get(name)) is None:
            benchmarks.append(_own_benchmark(name, config, taken=[*columns(), *families]))
            families[benchmarks[-1].name] = benchmarks[-1].family
            continue
        families[name] = column.family
        try:
            benchmarks.append(_benchmark(column, config))
        except UserError as error:
            holes[name] = str(error)
    if not benchmarks and not config.tasks:
        raise UserError(next(iter(holes.values())))
    return Suite(benchmarks=tuple(benchmarks), holes=holes, families=families)


def _own_benchmark(entry: str, config: EvalConfig, taken: Collection[str]) -> Benchmark:
    """What others give by a name of `eval.benchmarks`. Raises UserError for what it lacks: it is no hole."""
    is_file, option = is_description(entry), f"eval.benchmarks={entry}"
    own = described_benchmark(entry) if is_file else BENCHMARKS.call(entry)
    if not isinstance(own, OwnBenchmark):
        raise UserError(f"{option} gave a {type(own).__name__}: it has to give a harness.types.OwnBenchmark")
    check_name(f"name of {option}", own.name)
    if own.name in taken:
        raise UserError(f"{option} is named {own.name}, as another benchmark is: choose another name")
    if own.family not in get_args(Family):
        raise UserError(f"{option} is of the family {own.family!r}.{did_you_mean(str(own.family), get_args(Family))}")
    questions = checked_questions(option, own.questions)
    if not questions:
        raise UserError(f"{option} has no questions")
    positions = spread(len(questions), config.limit)
    chosen = (replace(questions[i], limits=config.media.limits()) for i in positions)
    return Benchmark(
        name=own.name,
        family=own.family,
        questions=tuple(chosen),
        positions=tuple(positions),
        library="lm_eval" if own.family == "LLM" else "lmms_eval",
        dataset=Path(entry).name if is_file else BENCHMARKS.entry(entry) or entry,
        scoring="exact_judge" if own.judged else "det",
        scorer=by_grade if own.mark is None else _by_mark(own.mark, entry),
        is_own=True,
        judge="shared" if own.judged else None,
    )


def refuse_golds(suite: Suite, gold_errors: Callable[[Sequence[Question]], list[str | None]]) -> None:
    """Raises UserError where the grader cannot use a gold answer of a benchmark of others, which would score 0."""
    for benchmark in suite.benchmarks:
        if benchmark.is_own and benchmark.scorer is by_grade:
            for question, error in zip(benchmark.questions, gold_errors(benchmark.questions), strict=True):
                if error is not None:
                    raise UserError(f"{benchmark.dataset}: question {question.id}: {error}: give another answer")


def _by_mark(mark: Callable[[Question, str | None], float], entry: str) -> Scorer:
    def scorer(question: Question, grade: Grade) -> Mark:
        if grade.answer is None:
            return Mark(score=0.0, outcome="unparsed")
        try:
            score = float(mark(question, grade.answer))
        except Exception as error:  # whatever a function of others does
            raise BENCHMARKS.raised(entry, error) from error
        if not 0.0 <= score <= 1.0:
            raise UserError(f"{entry}: the mark of question {question.id} is {score:g}: marks lie in [0, 1]")
        return Mark(score=score, outcome="match" if score == 1.0 else "mismatch")

    return scorer


def _benchmark(column: Column, config: EvalConfig) -> Benchmark:
    from harness.evaluation.benchmarks.registry import recipe

    chosen, limits = recipe(column.name), config.media.limits()
    if column.scoring == "bench_judge" and config.judge.url is None and config.stage != "generate":
        raise UserError(f"{column.name}: every row is judged: set eval.judge.url, or eval.stage=generate for now")
    questions, num_rows, num_without_gold = [], 0, 0
    for row in load_rows(column, config.options, config.data_root):
        num_rows += chosen.of_column(row)
        try:
            questions += [replace(question, limits=limits) for question in _questions_of(row, chosen)]
        except NoGold:
            num_without_gold += 1
    if not questions:
        reason = f": {num_without_gold} rows have no gold answer" if num_without_gold else ""
        raise UserError(f"{column.name}: {column.dataset} has no question{reason}")
    questions = repeated(questions, chosen.repeats(config.options))
    positions = spread(len(questions), config.limit)
    return Benchmark(
        name=column.name,
        family=column.family,
        questions=tuple(questions[i] for i in positions),
        positions=tuple(positions),
        library=column.library,
        dataset=column.dataset,
        scoring=column.scoring,
        scorer=chosen.scorer,
        judge=chosen.judge,
        aggregate=chosen.aggregate(config.options),
        partial=_partial(column, num_rows, num_without_gold),
    )


def _partial(column: Column, num_rows: int, num_without_gold: int) -> str | None:
    lacks = []
    if num_rows < column.num_rows:
        lacks.append(f"{num_rows} of {column.num_rows} rows of {column.dataset} are here")
    if num_without_gold:
        lacks.append(f"left out without a gold answer: {num_without_gold}")
    return "; ".join(lacks) or None


def _questions_of(row: Row, chosen: Recipe) -> list[Question]:
    try:
        return chosen.questions(row)
    except UserError:
        raise
    except Exception as error:  # whatever cells of another form lead to
        problem = f"{type(error).__name__}: {error}".split("\n")[0]
        raise UserError(
            f"{row.column.name}: row {row.id} of {row.column.dataset} cannot be read ({problem}): "
            "is it another version of the data set?"
        ) from error


def repeated(questions: Sequence[Question], times: int) -> list[Question]:
    """Every question so many times, with an id for each."""
    if times == 1:
        return list(questions)
    return [replace(question, id=f"{question.id}/{k}") for question in questions for k in range(times)]


def spread(num: int, limit: int | None) -> list[int]:
    """`limit` positions of `num`, evenly spread: the first rows of a benchmark are often of one subject.

    Example: 4 of 10: 0, 2, 5, 7.
    """
    if limit is None or limit >= num:
        return list(range(num))
    return [i * num // limit for i in range(limit)]


def load_suite(config: EvalConfig) -> Suite:
    """The benchmarks of `config.suite`. Raises UserError when there is no such suite, or nothing in it can be run."""
    if benchmarks_of(config):
        return listed_suite(config)
    return mini_tasks(config) if config.suite == GENERATED else Suite(families={}, benchmarks=())
