"""Rollouts for the page's browser: a bounded choice of questions, each with its prompts and the responses to them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reports.runs.collect import BASE, Run
from reports.runs.rollouts import read_rollouts, rollout_files

KINDS = ("plain", "bcq", "ncq", "hint", "prefix", "extra")
"""Prompts that are shown, in this order; the teacher's rewrites are not."""
PREFERRED = frozenset(KINDS[:3])
MAX_STEPS = 4
"""Steps of a run that questions are taken from: the last, the first, and evenly between."""
MAX_QUESTIONS = 8
MAX_CHARS = 4000
"""Characters of one text; a longer one keeps its first and its last half of that."""
MAX_BYTES = 5_000_000
"""Bytes of all rollouts on a page, as JSON."""
COLUMNS = (
    "uid", "kind", "sampler", "question_id", "index", "prompt_text", "response_text", "num_response_tokens",
    "finish_reason", "gold", "reward", "training_reward", "verdict", "match", "trained", "advantage",
)  # fmt: skip


@dataclass(frozen=True)
class PageText:
    """A text, or its two ends and the number of characters between them that are left out."""

    head: str
    num_left_out: int = 0
    tail: str = ""


@dataclass(frozen=True)
class PageResponse:
    """One rollout. Rewards and `advantage` are None where there is none, `match` for plain prompts."""

    text: PageText
    sampler: str
    reward: float | None
    verdict: str
    advantage: float | None = None
    trained: bool = True
    training_reward: float | None = None
    match: str | None = None
    finish_reason: str = "stop"
    num_tokens: int = 0


@dataclass(frozen=True)
class PageGroup:
    """One prompt of a question and the responses to it, the student's first."""

    kind: str
    prompt: PageText
    responses: tuple[PageResponse, ...]


@dataclass(frozen=True)
class PageQuestion:
    """A question at one step of a run."""

    run: str
    step: int
    question_id: str
    gold: str
    groups: tuple[PageGroup, ...]


@dataclass(frozen=True)
class _Choice:
    """Questions of one step that are to be read."""

    run: str
    step: int
    file: Path
    question_ids: list[str]


def collect_rollouts(
    runs: Sequence[Run], max_questions: int = MAX_QUESTIONS, max_bytes: int = MAX_BYTES
) -> tuple[list[PageQuestion], list[str]]:
    """Up to `max_questions` questions a run, in the runs' order and by step, and a line for what is not among them.

    Questions that have plain, BCQ and NCQ prompts come first. Every run's last chosen step is taken before any run's
    next one, until `max_bytes` are full. Runs whose rollouts cannot be read are named, not raised: the rest of the
    report does not need them.
    """
    remarks: list[str] = []
    by_run: list[list[_Choice]] = []
    for run, name in zip(runs, run_names(runs), strict=True):
        try:
            by_run.append(_choose(name, run, max_questions))
            if not by_run[-1] and run.info["method"] != BASE:
                remarks.append(f"{name}: no rollouts to show.")
        except ValueError as error:
            by_run.append([])
            remarks.append(f"{name}: its rollouts are not shown: {error}.")
    taken, num_bytes, full = [], 0, False
    for place, choice in _in_turns(by_run):
        if full:
            break
        try:
            questions = _read(choice)
        except ValueError as error:
            remarks.append(f"{choice.run}: step {choice.step} is not shown: {error}.")
            continue
        for question in questions:
            num_bytes += len(json.dumps(asdict(question), ensure_ascii=False).encode())
            full = full or num_bytes > max_bytes
            if not full:
                taken.append((place, question.step, question))
    num_chosen = sum(len(choice.question_ids) for choices in by_run for choice in choices)
    if full:
        remarks.append(
            f"{len(taken)} of the {num_chosen} questions chosen for the rollout browser are on this page: it holds at "
            f"most {max_bytes / 1e6:g} MB of rollouts."
        )
    return [question for *_, question in sorted(taken, key=lambda entry: entry[:2])], remarks


def run_names(runs: Sequence[Run]) -> list[str]:
    """What the page calls each run: with the study's folder in front where the runs are of several studies."""
    studies = [run.folder.parents[2] for run in runs]
    several = len(set(studies)) > 1
    return [f"{study.name}: {run.name}" if several else run.name for run, study in zip(runs, studies, strict=True)]


def cut(text: str) -> PageText:
    """The text, without its middle where it is longer than `MAX_CHARS`: the answer is at the end."""
    if len(text) <= MAX_CHARS:
        return PageText(text)
    half = MAX_CHARS // 2
    return PageText(text[:half], len(text) - 2 * half, text[-half:])


def _choose(name: str, run: Run, max_questions: int) -> list[_Choice]:
    """The run's chosen questions by step, last step first; empty where the run has no rollouts."""
    if not any((run.folder / "rollouts").glob("step-*.parquet")):
        return []
    files = rollout_files(run.folder)
    ranked = []
    for step in _spread(list(files)):
        kinds: dict[str, set[str]] = {}
        for row in read_rollouts(files[step], ("question_id", "kind"), [("kind", "in", list(KINDS))]):
            kinds.setdefault(row["question_id"], set()).add(row["kind"])
        wealth = [(-len(has & PREFERRED), -len(has)) for has in kinds.values()]
        # The place within the step comes before the step, so that the steps take turns.
        for place, index in enumerate(sorted(range(len(wealth)), key=lambda i: wealth[i])[:max_questions]):
            ranked.append((*wealth[index], place, -step, list(kinds)[index]))
    chosen: dict[int, list[str]] = {}
    for *_, minus_step, question_id in sorted(ranked)[:max_questions]:
        chosen.setdefault(-minus_step, []).append(question_id)
    return [_Choice(name, step, files[step], chosen[step]) for step in sorted(chosen, reverse=True)]


def _spread(steps: list[int]) -> list[int]:
    """Up to `MAX_STEPS` of ascending steps, the first and the last among them."""
    if len(steps) <= MAX_STEPS:
        return steps
    return [steps[round(i * (len(steps) - 1) / (MAX_STEPS - 1))] for i in range(MAX_STEPS)]


def _in_turns(by_run: list[list[_Choice]]) -> Iterator[tuple[int, _Choice]]:
    """Each run's first choice, then each run's second, and so on, with the run's place."""
    for turn in range(MAX_STEPS):
        for place, choices in enumerate(by_run):
            if turn < len(choices):
                yield place, choices[turn]


def _read(choice: _Choice) -> list[PageQuestion]:
    wanted = [("question_id", "in", choice.question_ids), ("kind", "in", list(KINDS))]
    rows = read_rollouts(choice.file, COLUMNS, wanted)
    questions = []
    for question_id in choice.question_ids:
        own = [row for row in rows if row["question_id"] == question_id]
        # The student first, so that its prompt stands first where the teacher's chat template makes another.
        own.sort(key=lambda row: (KINDS.index(row["kind"]), row["sampler"] != "student", row["uid"], row["index"]))
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in own:
            groups.setdefault((row["kind"], row["prompt_text"]), []).append(row)
        shown = tuple(map(_group, groups.values()))
        questions.append(PageQuestion(choice.run, choice.step, question_id, own[0]["gold"] or "", shown))
    return questions


def _group(rows: list[dict[str, Any]]) -> PageGroup:
    responses = tuple(
        PageResponse(
            text=cut(row["response_text"]),
            sampler=row["sampler"],
            reward=_rounded(row["reward"]),
            verdict=row["verdict"],
            advantage=_rounded(row["advantage"]),
            trained=row["trained"],
            training_reward=_rounded(row["training_reward"]),
            match=row["match"],
            finish_reason=row["finish_reason"],
            num_tokens=row["num_response_tokens"],
        )
        for row in rows
    )
    return PageGroup(rows[0]["kind"], cut(rows[0]["prompt_text"]), responses)


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 4)
