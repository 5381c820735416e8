"""`zppo view RUN`: prompts, responses and rewards of a step, as text for the terminal.

What a model or a data set wrote is shown escaped and indented: it can neither steer the terminal nor pass for a line of
this view. A backslash stays as it is, so that LaTeX can be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports.audit import ranges
from reports.runs.rollouts import read_rollouts, rollout_files
from reports.runs.text import printable

REWRITES = ("compress", "write_hint")
"""Teacher text that is no answer; its reward says whether the boxed answer was kept."""
KEYS = ("uid", "kind", "question_id")
COLUMNS = (
    "step", "uid", "kind", "sampler", "replayed", "index", "prompt_text", "response_text", "num_prompt_tokens",
    "num_response_tokens", "num_prefix_tokens", "finish_reason", "gold", "reward", "training_reward", "verdict",
    "positive_answer", "negative_answers", "match", "trained", "advantage",
)  # fmt: skip
NAMED_QUESTIONS = 3
"""Question ids that an error line names."""

Row = dict[str, Any]


def view_command(
    run_dir: str | Path,
    *,
    step: int | None = None,
    kind: str | None = None,
    question: str | None = None,
    num_groups: int = 3,
) -> str:
    """The first groups of a step (default the last) in recorded order, of a kind and of a question where one is named.

    Raises ValueError, one line with what exists, for a step, kind or question that is not there, and as
    `reports.runs.rollouts.rollout_files`.
    """
    if num_groups < 1:
        raise ValueError(f"--num must be at least 1, got {num_groups}")
    files = rollout_files(Path(run_dir))
    if step is None:
        step = max(files)
    if step not in files:
        raise ValueError(f"step {step} has no rollouts in {run_dir}; steps that have: {ranges(files)}")
    uids = _uids(files[step], kind, question)
    if not uids:
        raise ValueError(_nothing(files, step, kind, question))
    shown = uids[:num_groups]
    groups: dict[str, list[Row]] = {uid: [] for uid in shown}
    # Texts are read of the shown groups only: a step's can be hundreds of megabytes.
    for row in read_rollouts(files[step], COLUMNS, [("uid", "in", shown)]):
        groups[row["uid"]].append(row)
    more = f"; --num {len(uids)} shows all" if len(uids) > len(shown) else ""
    return "\n\n".join([*map(_group, groups.values()), f"{len(shown)} of {len(uids)} groups{more}"])


def _uids(file: Path, kind: str | None, question: str | None) -> list[str]:
    """The chosen groups of a step, in recorded order."""
    wanted = [(name, "=", value) for name, value in (("kind", kind), ("question_id", question)) if value is not None]
    return list(dict.fromkeys(row["uid"] for row in read_rollouts(file, KEYS, wanted)))


def _nothing(files: dict[int, Path], step: int, kind: str | None, question: str | None) -> str:
    """Why a step has nothing to show: where it could be found, or what the step has."""
    chosen = [f"{name} {value!r}" for name, value in (("kind", kind), ("question", question)) if value is not None]
    what = f"step {step} has no groups" + (f" of {', '.join(chosen)}" if chosen else "")
    if elsewhere := [other for other, file in files.items() if _uids(file, kind, question)]:
        return f"{what}; steps that have: {ranges(elsewhere)}"
    rows = read_rollouts(files[step], KEYS, [])
    same_question = [row for row in rows if row["question_id"] == question]
    exists = []
    if kind is not None:
        suffix = " of this question" if same_question else ""
        exists.append(f"kinds{suffix}: {', '.join(_distinct(same_question or rows, 'kind'))}")
    if question is not None and not same_question:
        names = _distinct(rows, "question_id")
        names[NAMED_QUESTIONS:] = [f"{len(names) - NAMED_QUESTIONS} more"] if len(names) > NAMED_QUESTIONS else []
        exists.append(f"questions: {', '.join(names)}")
    return "; ".join([what, *exists])


def _distinct(rows: Sequence[Row], name: str) -> list[str]:
    return list(dict.fromkeys(printable(row[name]) for row in rows))


def _group(rows: Sequence[Row]) -> str:
    """Header, prompt and responses of one group."""
    first = rows[0]
    lines = [_header(rows)]
    if first["positive_answer"] is not None or first["negative_answers"]:
        right = "unknown" if first["positive_answer"] is None else printable(first["positive_answer"])
        wrong = ", ".join(map(printable, first["negative_answers"])) or "none"
        lines.append(f"  candidates: right {right}; wrong {wrong}")
    lines += [f"  prompt: {first['num_prompt_tokens']} tokens", *_indented(first["prompt_text"])]
    several = len({row["sampler"] for row in rows}) > 1
    for row in rows:
        lines += [_response(row, named=several), *_indented(row["response_text"])]
    return "\n".join(lines)


def _header(rows: Sequence[Row]) -> str:
    first = rows[0]
    samplers = list(dict.fromkeys(row["sampler"] for row in rows))
    # As everywhere, a group's accuracy is the student's; only where it has no rollouts here the teacher's.
    counted = [row for row in rows if row["sampler"] == ("student" if "student" in samplers else samplers[0])]
    graded = [row for row in counted if row["reward"] is not None]
    right = f"{sum(row['reward'] > 0.5 for row in graded)}/{len(graded)}"
    parts = [
        f"step {first['step']}",
        f"uid {printable(first['uid'])}",
        f"kind {first['kind']}",
        f"sampler {'+'.join(samplers)}",
    ]
    if first["kind"] in REWRITES:  # the teacher sees a response only: neither gold nor replay is known here
        return "  ".join([*parts, f"answer kept {right}"])
    replayed = "replayed" if first["replayed"] else "not replayed"
    return "  ".join([*parts, replayed, f"accuracy {right}", f"gold {printable(first['gold'])}"])


def _response(row: Row, *, named: bool) -> str:
    given = f" ({row['num_prefix_tokens']} given)" if row["num_prefix_tokens"] else ""
    parts = ["no reward" if row["reward"] is None else f"reward {row['reward']:g}", row["verdict"]]
    if row["training_reward"] is not None:
        parts.append(f"training reward {row['training_reward']:g}")
    if row["advantage"] is not None:
        parts.append(f"advantage {row['advantage']:+.3f}")
    else:
        parts.append("trained without advantage" if row["trained"] else "not trained")
    parts += [row["finish_reason"], f"{row['num_response_tokens']} tokens{given}"]
    if row["match"] is not None:
        parts.append(f"match {row['match']}")
    sampler = f" ({row['sampler']})" if named else ""
    return f"  response {row['index']}{sampler}: {', '.join(parts)}"


def _indented(text: str) -> list[str]:
    # Only \n breaks a line; what else str.splitlines would break at is escaped.
    return [f"    {printable(line)}".rstrip() for line in text.split("\n")]
