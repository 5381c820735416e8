"""`zppo audit RUN`: whose answers the replies to candidate prompts give, and what became of the buffer's entries.

Reads a run folder only, one step's rollouts at a time, and of those the columns it counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from reports.runs.damage import json_rows
from reports.runs.rollouts import has_column, read_rollouts, rollout_files

CANDIDATE_KINDS = ("bcq", "ncq")
GUIDED_KINDS = ("hint", "prefix")
MATCHES = ("positive", "negative", "other")
COLUMNS = ("uid", "kind", "sampler", "reward", "match")
POSITION = "positive_position"

Replies = Counter[tuple[str, bool, str | None]]
"""Number of graded student rollouts by kind, whether they are right, and match."""


def audit_command(run_dir: str | Path) -> str:
    """What `zppo audit` prints: the candidate-match audit, graduation by entry accuracy, and outcome by visits.

    Raises ValueError, one line, where there is no run, no rollouts, or a file of an earlier version.
    """
    run_dir = Path(run_dir)
    files = rollout_files(run_dir)
    title = f"{run_dir}, steps with rollouts: {ranges(files)}"
    events = _rows(run_dir / "buffer.jsonl")
    sections = _buffer_sections(events, _chances(run_dir / "metrics.jsonl"))
    return "\n\n".join([title, *_match_sections(files.values()), *sections])


def ranges(steps: Iterable[int]) -> str:
    """Ascending steps in short. Example: 1, 2, 3, 7 gives `1-3, 7`."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], step]
        else:
            runs.append([step])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _match_sections(files: Iterable[Path]) -> list[str]:
    """The audit table or a sentence, then a line each for the guided kinds that the run has."""
    prompts: Counter[str] = Counter()
    replies: Replies = Counter()
    positions: Replies = Counter()
    wanted = [("sampler", "=", "student"), ("kind", "in", [*CANDIDATE_KINDS, *GUIDED_KINDS])]
    for file in files:
        columns = (*COLUMNS, POSITION) if has_column(file, POSITION) else COLUMNS
        rows = read_rollouts(file, columns, wanted)
        prompts.update(kind for _, kind in {(row["uid"], row["kind"]) for row in rows})
        graded = [row for row in rows if row["reward"] is not None]
        replies.update((row["kind"], row["reward"] > 0.5, row["match"]) for row in graded)
        placed = [row for row in graded if row.get(POSITION) is not None]
        positions.update((_PLACES[row[POSITION]], row["reward"] > 0.5, row["match"]) for row in placed)
    sections = [_match_table(prompts, replies)]
    if positions:
        sections.append(_position_table(positions))
    guided = [
        f"{kind}: {prompts[kind]} prompts, {_count(replies, kind)} rollouts, "
        f"accuracy {_percent(_count(replies, kind, right=True), _count(replies, kind))} %"
        for kind in GUIDED_KINDS
        if prompts[kind]
    ]
    return [*sections, "\n".join(guided)] if guided else sections


def _match_table(prompts: Counter[str], replies: Replies) -> str:
    kinds = [kind for kind in CANDIDATE_KINDS if prompts[kind]]
    if not kinds:
        return "The run has no candidate prompts (bcq, ncq)."
    table = _table(
        "kind", "prompts", "rollouts", "accuracy %", "right: pos/neg/other", "wrong: pos/neg/other",
        "all: pos/neg/other",
    )  # fmt: skip
    for kind in kinds:
        total = _count(replies, kind)
        accuracy = _percent(_count(replies, kind, right=True), total)
        shares = [_shares(replies, kind, verdicts) for verdicts in ((True,), (False,), (True, False))]
        table.add_row(kind, str(prompts[kind]), str(total), accuracy, *shares)
    return "Candidate-match audit: whose answer the student's replies give, % of the replies\n" + _text(table)


_PLACES = ("first", "second")


def _position_table(replies: Replies) -> str:
    """Whether a student reads the candidates or one place: a row for each place of the right trace."""
    table = _table("right trace", "rollouts", "accuracy %", "all: pos/neg/other")
    for place in _PLACES:
        total = _count(replies, place)
        accuracy = _percent(_count(replies, place, right=True), total) if total else "-"
        table.add_row(place, str(total), accuracy, _shares(replies, place, (True, False)))
    return "BCQ by the place of the right trace\n" + _text(table)


def _count(replies: Replies, kind: str, *, right: bool | None = None) -> int:
    return sum(number for key, number in replies.items() if key[0] == kind and right in (None, key[1]))


def _shares(replies: Replies, kind: str, verdicts: Sequence[bool]) -> str:
    """Positive, negative and other in percent of the replies with these verdicts; `-` where there are none."""
    total = sum(_count(replies, kind, right=right) for right in verdicts)
    counts = [sum(replies[kind, right, match] for right in verdicts) for match in MATCHES]
    return "/".join(_percent(count, total) for count in counts) if total else "-"


def _rows(file: Path) -> list[dict[str, Any]]:
    """Every complete line: a run that is writing right now may have half a last one. Empty where there is no file."""
    rows, num_damaged = json_rows(file)
    if num_damaged:
        raise ValueError(f"{file}: {num_damaged} lines cannot be read: copy the file again, or remove these lines")
    return rows


def _chances(file: Path) -> dict[str, float]:
    """What a policy that does not learn would have graduated, by accuracy at admission as the metrics write it.

    Empty where the run did not record it.
    """
    prefix = "buffer/graduated_by_chance@"
    last = (_rows(file) or [{}])[-1]
    return {name.removeprefix(prefix): value for name, value in last.items() if name.startswith(prefix)}


def _buffer_sections(events: list[dict[str, Any]], chances: dict[str, float]) -> list[str]:
    if not events:
        return ["The run has no buffer events: it keeps no replay buffer, or no question was hard enough to enter it."]
    return [_graduation_table(events, chances), _fate_table(events)]


def _graduation_table(events: list[dict[str, Any]], chances: dict[str, float]) -> str:
    """A row for each accuracy at admission, and their sum. Each admission is an entry of its own.

    `by chance` is how many a policy that does not learn would have graduated.
    """
    counts = Counter((event["event"], event["entry_accuracy"]) for event in events)
    bins = sorted({entry_accuracy for _, entry_accuracy in counts})
    table = _table(
        "entry accuracy %", "admitted", "graduated", "by chance", "evicted", "in buffer", "graduated/admitted %",
        "graduated/completed %",
    )  # fmt: skip
    for name, chosen in [*((f"{100 * value:.4g}", [value]) for value in bins), ("all", bins)]:
        admitted, graduated, evicted = (
            sum(counts[event, value] for value in chosen) for event in ("admit", "graduate", "evict")
        )
        expected = f"{sum(chances.get(f'{value:g}', 0.0) for value in chosen):.1f}" if chances else "-"
        table.add_row(
            name, str(admitted), str(graduated), expected, str(evicted), str(admitted - graduated - evicted),
            _percent(graduated, admitted), _percent(graduated, graduated + evicted),
        )  # fmt: skip
    title = "Graduation by accuracy at admission; completed = graduated + evicted"
    return f"{title}; by chance = expected of a policy that does not learn\n" + _text(table)


def _fate_table(events: list[dict[str, Any]]) -> str:
    """A row for each number of visits up to the largest of a completed entry; the last row is who is still inside."""
    counts = Counter((event["event"], event["visits"]) for event in events)
    ends = {name: {visits: n for (event, visits), n in counts.items() if event == name} for name in _ENDS}
    num_completed = sum(sum(by_visits.values()) for by_visits in ends.values())
    table = _table("visits", "entries", *_ENDS.values(), "graduated so far, % of completed")
    so_far = 0
    for visits in range(max((v for by_visits in ends.values() for v in by_visits), default=-1) + 1):
        numbers = [by_visits.get(visits, 0) for by_visits in ends.values()]
        so_far += numbers[0]
        table.add_row(str(visits), str(sum(numbers)), *map(str, numbers), _percent(so_far, num_completed))
    num_inside = sum(event["event"] == "admit" for event in events) - num_completed
    table.add_row("in buffer", str(num_inside))
    return "Outcome by visits (re-samples until the entry completed)\n" + _text(table)


_ENDS = {"graduate": "graduated", "evict": "evicted"}


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    return table


def _text(table: Table) -> str:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
