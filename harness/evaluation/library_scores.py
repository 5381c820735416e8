"""A library's results as rows of our tables: one for each task or group, metric and filter, with its card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from harness.config.schema import EvalConfig
from harness.evaluation.asking import Asker
from harness.evaluation.protocol import DISTRIBUTIONS, Setup
from harness.evaluation.store import Sample

SHARES = frozenset({"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "anls"})
"""Metrics whose values lie between 0 and 1: they are shown in percent, as every score is. Others stay as they are."""
LOWER = "lower is better"
"""What follows the library in the family of a metric that falls as a student gets better."""
NO_NUMBERS = ("alias", "name", "sample_len", "sample_count", "samples")
MACHINE = ("dataset_kwargs", "metadata", "config_source")
"""Parts of a task's configuration that say where something lies."""


@dataclass(frozen=True, kw_only=True)
class LibraryScore:
    """A row of the table. `rows` are its responses, in the form of `rows.jsonl`."""

    name: str
    family: str
    score: float
    stderr: float | None
    num_questions: int
    card: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def num_truncated(self) -> int:
        return sum(row["finish_reason"] == "length" for row in self.rows)


def library_scores(
    library: str, results: Mapping[str, Any], asker: Asker, config: EvalConfig, setup: Setup
) -> list[LibraryScore]:
    """Rows of everything that has a number: the tasks, then their groups.

    `results` are those of the library's `simple_evaluate`, `asker` has what the student was asked and answered.
    """
    by_task: dict[str, list[Sample]] = {}
    for sample in asker.samples.values():
        by_task.setdefault(sample.benchmark, []).append(sample)
    found = []
    for task, values in results["results"].items():
        logged = results.get("samples", {}).get(task)
        card = _card(library, task, results, asker, config, setup)
        number = len({sample["doc_id"] for sample in logged}) if logged else _group_size(task, results)
        for key, value in values.items():
            metric, _, chosen = key.partition(",")
            if key in NO_NUMBERS or metric.endswith(("_stderr", "_stderr_clt", "_stderr_clustered")) or not chosen:
                continue
            if not isinstance(value, int | float) or isinstance(value, bool):
                continue
            factor = 100.0 if metric in SHARES and 0.0 <= value <= 1.0 else 1.0
            stderr = values.get(f"{metric}_stderr,{chosen}")
            name = f"{library}:{task}/{metric}" + ("" if chosen == "none" else f"/{chosen}")
            better = results.get("higher_is_better", {}).get(task, {}).get(metric)
            rows = [] if not logged or better is False else _rows(name, metric, chosen, logged, by_task, library, task)
            found.append(
                LibraryScore(
                    name=name,
                    family=f"{library}, {LOWER}" if better is False else library,
                    score=factor * float(value),
                    stderr=factor * float(stderr) if isinstance(stderr, int | float) else None,
                    num_questions=number,
                    card=card | {"benchmark": name, "metric": metric, "filter": chosen},
                    rows=rows,
                )
            )
    return found


def _group_size(group: str, results: Mapping[str, Any]) -> int:
    """Questions of all tasks of a group."""
    sizes = {name: len({sample["doc_id"] for sample in logged}) for name, logged in results.get("samples", {}).items()}
    return sum(sizes[name] for name in _leaves(group, results) if name in sizes)


def _leaves(group: str, results: Mapping[str, Any]) -> set[str]:
    children = results.get("group_subtasks", {}).get(group) or []
    return {group} if not children else {leaf for child in children for leaf in _leaves(child, results)}


def _card(
    library: str, task: str, results: Mapping[str, Any], asker: Asker, config: EvalConfig, setup: Setup
) -> dict[str, Any]:
    """All but the weights that decides a task's scores. A group's has its tasks'."""
    distribution = DISTRIBUTIONS[library]
    leaves = sorted(_leaves(task, results))
    return {
        "task": f"{library}:{task}",
        "tasks": {name: _task_card(name, results, asker.asked.get(f"{library}:{name}")) for name in leaves},
        "apply_chat_template": config.apply_chat_template if library == "lm_eval" else True,
        "seed": config.seed,
        **asdict(setup),
        "versions": {distribution: metadata.version(distribution)},
    }


def _task_card(task: str, results: Mapping[str, Any], asked: Any) -> dict[str, Any]:
    config = {k: v for k, v in (results["configs"].get(task) or {}).items() if k not in MACHINE}
    logged = results.get("samples", {}).get(task) or []
    golds = [[sample["doc_id"], str(sample["target"])] for sample in logged]
    return {
        "version": str(results["versions"].get(task)),
        "num_fewshot": results["n-shot"].get(task),
        "config": _hash(config),
        "prompts": _hash(asked),
        "golds": _hash(golds),
        "num_questions": len({sample["doc_id"] for sample in logged}),
    }


def _first_text(arguments: Any) -> str:
    """The text of a sample's first request: libraries log a list of requests, or the parts of one."""
    while not isinstance(arguments, str) and isinstance(arguments, Sequence) and arguments:
        arguments = arguments[0]
    return arguments if isinstance(arguments, str) else ""


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=lambda item: getattr(item, "__qualname__", type(item).__name__))
    return hashlib.sha256(text.encode()).hexdigest()


def _rows(
    name: str,
    metric: str,
    chosen: str,
    logged: Sequence[Mapping[str, Any]],
    by_task: Mapping[str, Sequence[Sample]],
    library: str,
    task: str,
) -> list[dict[str, Any]]:
    """The responses that a metric is the mean of: those that it has a number for."""
    answers: dict[str, list[Sample]] = {}
    for sample in by_task.get(f"{library}:{task}", ()):
        answers.setdefault(sample.question_id, []).append(sample)
    return list(_row_of(name, metric, chosen, logged, answers))


def _row_of(
    name: str,
    metric: str,
    chosen: str,
    logged: Sequence[Mapping[str, Any]],
    answers: Mapping[str, Sequence[Sample]],
) -> Iterator[dict[str, Any]]:
    for sample in logged:
        value = sample.get(metric)
        value = value.get("score") if isinstance(value, Mapping) else value
        # lmms-eval does not say which filter a sample has gone through
        if sample.get("filter", chosen) != chosen or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        given = answers.get(str(sample["doc_id"]), [])
        said = [
            answer for request in sample["resps"] for answer in ([request] if isinstance(request, str) else request)
        ]
        yield {
            "benchmark": name,
            "uid": f"eval/{name}/{sample['doc_id']}",
            "question_id": str(sample["doc_id"]),
            "messages": [{"role": "user", "content": _first_text(sample["arguments"])}],
            "images": [],
            "video": None,
            "response": said[0] if len(said) == 1 and isinstance(said[0], str) else json.dumps(said),
            "num_tokens": sum(one.num_tokens for one in given),
            "finish_reason": "length" if any(one.finish_reason == "length" for one in given) else "stop",
            "answer": str(sample["filtered_resps"]),
            "gold": str(sample["target"]),
            "score": float(value),
            "verdict": "correct" if value == 1 else "wrong",
            "outcome": "match" if value == 1 else "mismatch",
            "how": library_of(name),
        }


def library_of(name: str) -> str:
    return name.partition(":")[0]
