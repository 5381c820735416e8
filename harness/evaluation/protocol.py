"""What a score depends on besides the model: the evaluation card of a benchmark, and one decoding for all.

Imports no torch and no evaluation library, so that a report or a scheduler can tell whether scores are comparable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from harness.config.schema import EvalConfig, RunConfig
from harness.evaluation.benchmarks.columns import options_of
from harness.evaluation.media import MediaDigests
from harness.evaluation.suites import Benchmark
from harness.rollout.base import Sampling
from harness.types import Question
from methods.options import validated
from methods.prompts import closing_of, plain_messages

TASK_VERSION = 3
"""Raised whenever the questions or the scoring of a suite change."""
NO_PART = (
    "suite", "benchmarks", "every", "columns", "limit", "data_root", "stage", "judge", "options", "mini_tasks",
    "levels", "num_questions", "tasks", "task_paths", "apply_chat_template", "num_fewshot", "allow_code",
    "num_samples",
)  # fmt: skip
"""Options that choose what is asked, and when, not how it is answered: what they change is in the fingerprints."""
DISTRIBUTIONS = {"lm_eval": "lm-eval", "lmms_eval": "lmms-eval"}
PARSERS = {
    "math_verify": ("math-verify", "latex2sympy2-extended", "sympy"),
    "mathruler": ("mathruler", "pylatexenc", "sympy"),
}
"""What reads and compares mathematical answers, by the grader."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a model with these weights computes its answers. None: not known, as of a model that somebody serves."""

    engine: str | None = None
    """What samples (`rollout.engine`)."""
    dtype: str | None = None
    """Number format in which the model computes."""
    enable_thinking: bool | None = None
    """What the chat template is given."""

    @classmethod
    def of(cls, config: RunConfig) -> Setup:
        """That of a run's student."""
        student = config.student
        dtype = None if student.urls else student.dtype
        return cls(engine=config.rollout.engine, dtype=dtype, enable_thinking=student.enable_thinking)


UNKNOWN = Setup()


def answered_by(setup: Setup, grader_name: str) -> dict[str, Any]:
    """How answers come about and are read, for the key of a stored response. The card has the same."""
    return {**asdict(setup), "grader": grader_name, "versions": _versions(PARSERS[grader_name])}


def evaluation_card(
    benchmark: Benchmark,
    config: EvalConfig,
    grader_name: str,
    setup: Setup = UNKNOWN,
    digests: MediaDigests | None = None,
) -> dict[str, Any]:
    """Everything but the weights that can change a benchmark's score, as JSON. Scores of different cards are never
    compared.

    The card has engine and dtype, decoding and media limits, the options of single benchmarks, and the closing
    instruction. It has hashes of the prompts, of what pictures and clips hold, and of the questions with their gold
    answers. It also says how the benchmark is scored and judged, and has the versions of what scores it. Numbers have
    the types of `EvalConfig`, so that 0 and 0.0 are one setting. Raises MediaError for media that cannot be read.
    """
    digests = MediaDigests() if digests is None else digests
    options = asdict(validated(EvalConfig, asdict(config), str))
    questions = [[q.id, q.text, list(q.messages), q.answer, q.metadata, *_own(q)] for q in benchmark.questions]
    prompts = [[list(plain_messages(q)), len(q.images), q.video is not None] for q in benchmark.questions]
    media = [digests.of(q) for q in benchmark.questions]
    return {
        "benchmark": benchmark.name,
        "dataset": benchmark.dataset,
        "num_questions": len(benchmark.questions),
        "questions": _hash(questions),
        "prompts": _hash(prompts),
        "media": _hash(media) if any(media) else None,
        "decoding": {key: value for key, value in options.items() if key not in NO_PART},
        "options": options_of(benchmark.name, options["options"]),
        "closing": closing_of(benchmark.questions[0]),
        "scoring": benchmark.scoring,
        **asdict(setup),
        "grader": grader_name,
        "judge": None if benchmark.judge is None else _judge(benchmark.judge, config),
        **({"num_samples": config.num_samples} if config.num_samples > 1 else {}),
        "task_version": TASK_VERSION,
        "versions": _versions([DISTRIBUTIONS[benchmark.library], *PARSERS[grader_name]]),
    }


def _own(question: Question) -> list[Any]:
    """What questions of one's own data may have besides."""
    return [list(question.other_answers), question.scorer] if question.other_answers or question.scorer else []


def _versions(distributions: Sequence[str]) -> dict[str, str]:
    return {name: metadata.version(name) for name in distributions}


def _judge(form: str, config: EvalConfig) -> dict[str, Any] | None:
    from harness.evaluation.judge.verdicts import judge_settings

    if config.judge.url is None:
        return None
    return {"form": form, "when": config.judge.when, **judge_settings(config.judge, [form])}


def card_hash(card: dict[str, Any]) -> str:
    """12 hex digits; the same in every process."""
    return _hash(card)[:12]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def eval_sampling(config: EvalConfig) -> Sampling:
    """The decoding of all questions; evaluation has its own seed, so scores do not depend on the run's."""
    return Sampling(
        num_rollouts=config.num_samples,
        seed=config.seed,
        step=0,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        presence_penalty=config.presence_penalty,
        repetition_penalty=config.repetition_penalty,
        max_new_tokens=config.max_response_tokens,
    )
