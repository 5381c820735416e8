"""Evaluate the live student: run a suite through the rollout engine and write its scores and every response."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import EvalConfig
from harness.evaluation.isolation import preserved_state, quiet_lm_eval, quiet_lmms_eval
from harness.evaluation.protocol import protocol_hash, protocol_settings
from harness.evaluation.student import Response, Student
from harness.evaluation.suites import Benchmark, load_suite
from harness.rollout.base import RolloutEngine

if TYPE_CHECKING:
    from harness.rewards.workers import Grader

Library = Callable[[Sequence[Benchmark], Student], dict[str, float]]
"""Runs benchmarks on the student, which keeps the responses. Returns the mean score in [0, 1] of each."""

SCORE_COLUMNS = (
    "benchmark", "family", "score", "stderr", "n", "num_truncated", "num_unparsable", "protocol",
)  # fmt: skip
DECIMALS = 4


def evaluate(
    config: EvalConfig, engine: RolloutEngine, grader: Grader, *, out_dir: Path, model_name: str
) -> list[dict[str, Any]]:
    """Score the engine's model on `config.suite`. Returns the rows of `scores.csv`.

    Writes under `out_dir`, each file whole or not at all, `scores.csv` last:

    - `scores.csv`: benchmark, family, score (mean reward * 100), stderr (of the mean of n yes-or-no answers:
      sqrt(p (1 - p) / n) * 100, over questions, not over runs), n, num_truncated, num_unparsable, protocol.
    - `rows.jsonl`: every response with its prompt (pictures and clip by name), answer, gold answer, score and how it
      was scored.
    - `protocol.json`: the settings behind the `protocol` hash, and the model's name, which is not part of the hash.

    Raises UserError for an unknown suite. Leaves the process's random generators and environment as they were.
    """
    benchmarks = load_suite(config)
    student = Student(engine, grader, config, benchmarks)
    means: dict[str, float] = {}
    with preserved_state():
        for library in dict.fromkeys(LIBRARIES[b.family] for b in benchmarks):
            means |= library([b for b in benchmarks if LIBRARIES[b.family] is library], student)
    responses = [student.responses[uid] for uid in student.questions]
    protocol = protocol_hash(config, grader.config.grader)
    scores = [
        _score_row(b, means[b.name], [r for r in responses if r.benchmark == b.name], protocol) for b in benchmarks
    ]
    settings = protocol_settings(config, grader.config.grader)
    described = {"protocol": protocol, "model": model_name, "settings": settings}
    out_dir.mkdir(parents=True, exist_ok=True)
    _write(out_dir / "rows.jsonl", "".join(json.dumps(_response_row(r)) + "\n" for r in responses))
    _write(out_dir / "protocol.json", json.dumps(described, indent=2) + "\n")
    _write(out_dir / "scores.csv", _csv_text(scores))
    return scores


# A library is imported where it has a benchmark: each takes seconds to load, and changes the process.


def _lm_eval(benchmarks: Sequence[Benchmark], student: Student) -> dict[str, float]:
    from harness.evaluation.lm_eval_adapter import run_benchmarks

    with quiet_lm_eval():
        return run_benchmarks(benchmarks, student)


def _lmms_eval(benchmarks: Sequence[Benchmark], student: Student) -> dict[str, float]:
    with quiet_lmms_eval():
        from harness.evaluation.lmms_eval_adapter import run_benchmarks

        return run_benchmarks(benchmarks, student)


LIBRARIES: dict[str, Library] = {"LLM": _lm_eval, "VLM": _lmms_eval, "Video": _lmms_eval}
"""By the family of a benchmark."""


def _score_row(benchmark: Benchmark, mean: float, responses: Sequence[Response], protocol: str) -> dict[str, Any]:
    rollouts = [response.rollout for response in responses]
    n = len(rollouts)
    values = (
        benchmark.name,
        benchmark.family,
        round(100 * mean, DECIMALS),
        round(100 * (mean * (1 - mean) / n) ** 0.5, DECIMALS),
        n,
        sum(r.finish_reason == "length" for r in rollouts),
        sum(r.verdict == "unparsable" for r in rollouts),
        protocol,
    )
    return dict(zip(SCORE_COLUMNS, values, strict=True))


def _response_row(response: Response) -> dict[str, Any]:
    prompt, rollout = response.prompt, response.rollout
    question = prompt.question
    return {
        "benchmark": response.benchmark,
        "uid": prompt.uid,
        "question_id": question.id,
        "messages": list(prompt.messages),
        "images": [image.name for image in question.images],
        "video": None if question.video is None else question.video.name,
        "response": rollout.text,
        "num_tokens": len(rollout.completion_ids),
        "finish_reason": rollout.finish_reason,
        "answer": rollout.answer,
        "gold": question.answer,
        "score": rollout.reward,
        "verdict": rollout.verdict,
        "how": "rule",
    }


def _csv_text(rows: Sequence[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, SCORE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _write(path: Path, text: str) -> None:
    """Write through a temporary file, so that a reader never meets half a file."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
