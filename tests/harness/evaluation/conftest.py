"""A rollout engine that says what a test wrote, and the grader of the project."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from harness.config.schema import EvalConfig
from harness.evaluation.store import SampleStore
from harness.evaluation.student import Respondent
from harness.evaluation.suites import Benchmark
from harness.rewards.workers import Grader
from harness.rollout.base import Sampling
from harness.types import Prompt, Rollout, RolloutGroup, Sampler

Script = Callable[[Prompt], tuple[str, str]]


class ScriptedEngine:
    """Replies `script(prompt)` = (text, finish reason), one token a word, the last prompt's group first."""

    sampler: Sampler = "student"
    context_window = 4096

    def __init__(self, script: Script) -> None:
        self.script = script
        self.calls: list[tuple[list[Prompt], Sampling]] = []

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[RolloutGroup]:
        self.calls.append((list(prompts), sampling))
        for prompt in reversed(prompts):
            text, finish_reason = self.script(prompt)
            ids = list(range(len(text.split())))
            rollout = Rollout(
                sampler="student",
                index=0,
                prompt_ids=[1],
                completion_ids=ids,
                rollout_logprobs=[-1.0] * len(ids),
                text=text,
                finish_reason=finish_reason,  # type: ignore[arg-type]
            )
            yield RolloutGroup(uid=prompt.uid, prompt=prompt, rollouts=[rollout])

    def load_weights(self, named_tensors: Any) -> None:
        raise AssertionError("evaluation never changes weights")

    def close(self) -> None: ...


def four_kinds(prompt: Prompt) -> tuple[str, str]:
    """By position: right, wrong, cut off before the box, and then right on level 1 but without a box on level 2."""
    _, benchmark, position = prompt.uid.split("/")
    if position == "1":
        return "<think> no </think> \\boxed{7000}", "stop"
    if position == "2":
        return "<think> so 12 + 9 =", "length"
    if position == "3" and benchmark.endswith("_l2"):
        return "it is " + prompt.question.answer, "stop"
    return f"<think> ok </think> \\boxed{{{prompt.question.answer}}}", "stop"


@pytest.fixture
def make_engine() -> Callable[..., ScriptedEngine]:
    return lambda script=four_kinds: ScriptedEngine(script)


@pytest.fixture
def two_levels() -> EvalConfig:
    return EvalConfig(
        suite="mini", mini_tasks=["arithmetic"], levels=[1, 2], num_questions=4, temperature=0.0, max_response_tokens=48
    )


@pytest.fixture
def all_tasks(two_levels: EvalConfig) -> EvalConfig:
    return replace(two_levels, mini_tasks=["bar_clip", "arithmetic", "bar_chart", "bar_cards"])


@pytest.fixture
def student_of(tmp_path: Path) -> Iterator[Callable[..., Respondent]]:
    """Students with a store each."""
    with ExitStack() as stack:
        num = count()

        def make(engine: Any, grader: Grader, config: EvalConfig, benchmarks: Sequence[Benchmark]) -> Respondent:
            store = stack.enter_context(SampleStore(tmp_path / f"store-{next(num)}.jsonl"))
            return Respondent(engine, grader, config, benchmarks, store=store, identity="scripted")

        yield make
