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
    """Held-out arithmetic, one benchmark a level of `config.levels`. Never a question of training: `held_out` and
    `train` are disjoint splits. Raises UserError for levels that do not exist or repeat.
    """
    from harness.data.arithmetic import LEVELS, make_questions

    levels = config.levels
    if not levels or len(set(levels)) < len(levels) or not set(levels) <= set(LEVELS):
        raise UserError(f"eval.levels must be some of {', '.join(map(str, LEVELS))}, each once, got {levels}")
    return [
        Benchmark(
            name=f"arithmetic_l{level}",
            family="LLM",
            questions=tuple(make_questions([level], config.num_questions, seed=config.seed, split="held_out")),
        )
        for level in levels
    ]


SUITES: dict[str, Callable[[EvalConfig], list[Benchmark]]] = {"mini": mini_tasks}


def load_suite(config: EvalConfig) -> list[Benchmark]:
    """The benchmarks of `config.suite`. Raises UserError when there is no such suite."""
    if config.suite not in SUITES:
        raise UserError(f"eval.suite={config.suite} is not known.{did_you_mean(str(config.suite), SUITES)}")
    return SUITES[config.suite](config)
