"""The registry of suites: which questions make which benchmark columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.config import EvalConfig
from harness.errors import UserError, did_you_mean
from harness.types import Question


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One column of a results table. `family` is what macro averages are formed over: LLM, VLM or Video."""

    name: str
    family: str
    questions: tuple[Question, ...]


def mini_tasks(config: EvalConfig) -> list[Benchmark]:
    """Held-out questions of the generated tasks, one benchmark a task of `config.tasks` and level of `config.levels`.

    Never a question of training: `held_out` and `train` are disjoint splits, of all tasks together. Raises UserError
    for tasks or levels that do not exist or repeat.
    """
    from harness.data.arithmetic import LEVELS
    from harness.data.synthetic import TASKS, make_questions

    tasks, levels = config.tasks, config.levels
    if unknown := [task for task in tasks if task not in TASKS]:
        raise UserError(f"eval.tasks={tasks}: there is no task '{unknown[0]}'.{did_you_mean(unknown[0], TASKS)}")
    if not tasks or len(set(tasks)) < len(tasks):
        raise UserError(f"eval.tasks must be some of {', '.join(TASKS)}, each once, got {tasks}")
    if not levels or len(set(levels)) < len(levels) or not set(levels) <= set(LEVELS):
        raise UserError(f"eval.levels must be some of {', '.join(map(str, LEVELS))}, each once, got {levels}")
    limits = config.media.limits()
    return [
        Benchmark(
            name=f"{task}_l{level}",
            family=TASKS[task].family,
            questions=tuple(
                make_questions([task], [level], config.num_questions, seed=config.seed, split="held_out", limits=limits)
            ),
        )
        for task in tasks
        for level in levels
    ]


SUITES: dict[str, Callable[[EvalConfig], list[Benchmark]]] = {"mini": mini_tasks}


def load_suite(config: EvalConfig) -> list[Benchmark]:
    """The benchmarks of `config.suite`. Raises UserError when there is no such suite."""
    if config.suite not in SUITES:
        raise UserError(f"eval.suite={config.suite} is not known.{did_you_mean(str(config.suite), SUITES)}")
    return SUITES[config.suite](config)
