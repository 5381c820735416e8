"""`zppo audit`: tables of hand-made run folders, their numbers derived by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.records.rollouts import ROLLOUT_SCHEMA
from reports.audit import audit_command, ranges

NO_CANDIDATES = "The run has no candidate prompts (bcq, ncq)."
NO_BUFFER = "The run has no buffer events: it keeps no replay buffer, or no question was hard enough to enter it."


GRADUATION = (
    "Graduation by accuracy at admission; completed = graduated + evicted; "
    "by chance = expected of a policy that does not learn"
)
GRADUATION_HEADER = (
    "entry accuracy %  admitted  graduated  by chance  evicted  in buffer  graduated/admitted %  graduated/completed %"
)


def replies(uid: str, *results: tuple[float | None, str | None], sampler: str = "student") -> list[dict[str, Any]]:
    """A group's rows: (reward, match) each; the kind is the last part of the uid."""
    kind = uid.split("/")[-1]
    return [{"uid": uid, "kind": kind, "sampler": sampler, "reward": r, "match": m} for r, m in results]


def event(name: str, question: str, entry_accuracy: float, visits: int) -> dict[str, Any]:
    accuracy = None if name == "evict" else entry_accuracy
    return {"step": 1, "event": name, "question_id": question, "accuracy": accuracy} | {
        "entry_accuracy": entry_accuracy,
        "visits": visits,
    }


@pytest.fixture
def make_run(tmp_path: Path):
    """Writes `study/zppo/tiny_xs/seed0` with one list of rows a step."""

    def make(*steps: list[dict[str, Any]], events: list[dict[str, Any]] | None = None) -> Path:
        folder = tmp_path / "study" / "zppo" / "tiny_xs" / "seed0"
        (folder / "rollouts").mkdir(parents=True)
        (folder / "run.json").write_text("{}")
        for number, rows in enumerate(steps, start=1):
            table = pa.Table.from_pylist(rows, schema=ROLLOUT_SCHEMA)
            pq.write_table(table, folder / "rollouts" / f"step-{number:06d}.parquet")
        if events is not None:
            (folder / "buffer.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
        return folder

    return make


def test_match_table_counts_the_students_replies_to_candidate_prompts(make_run):
    first = [
        *replies("q1/plain", (1.0, None), (0.0, None)),
        *replies("q1/bcq", (1.0, "positive"), (1.0, "positive"), (0.0, "negative"), (0.0, "other")),
        *replies("q1/bcq", (1.0, "positive"), sampler="teacher"),
        *replies("q3/hint", (1.0, None), (0.0, None), (0.0, None), (0.0, None)),
    ]
    second = [  # the uid comes again: another step, another prompt
        *replies("q1/bcq", (1.0, "other"), (0.0, "negative"), (0.5, "negative"), (0.0, "negative")),
        *replies("q2/ncq", (0.0, "negative"), (0.0, "other"), (None, "other")),  # the last is ungraded
        *replies("q3/hint", (1.0, None)),
        *replies("q3/prefix", (1.0, None), (0.0, None), (0.0, None), (None, None)),
    ]
    folder = make_run(first, second)
    # bcq: 3 of 8 right (0.5 is not); right 2 0 1 of 3; wrong 0 4 1 of 5; all 2 4 2 of 8. ncq: none of 2 is right.
    # hint: 2 prompts, 2 of 5 right; prefix: 1 of 3.
    assert audit_command(folder).splitlines() == [
        f"{folder}, steps with rollouts: 1-2",
        "",
        "Candidate-match audit: whose answer the student's replies give, % of the replies",
        "kind  prompts  rollouts  accuracy %  right: pos/neg/other  wrong: pos/neg/other  all: pos/neg/other",
        "bcq         2         8        37.5         66.7/0.0/33.3         0.0/80.0/20.0      25.0/50.0/25.0",
        "ncq         1         2         0.0                     -         0.0/50.0/50.0       0.0/50.0/50.0",
        "",
        "hint: 2 prompts, 5 rollouts, accuracy 40.0 %",
        "prefix: 1 prompts, 3 rollouts, accuracy 33.3 %",
        "",
        NO_BUFFER,
    ]


def test_buffer_tables(make_run):
    events = [
        event("admit", "a", 0.0, 0),
        event("admit", "b", 0.125, 0),
        event("admit", "c", 0.0, 0),
        event("admit", "d", 0.0, 0),
        event("evict", "b", 0.125, 0),
        event("graduate", "d", 0.0, 1),
        event("revisit", "a", 0.0, 1),
        event("graduate", "a", 0.0, 2),
        event("admit", "a", 0.25, 0),  # after graduation: a new entry in a bin of its own
        event("admit", "e", 0.375, 0),
        event("evict", "a", 0.25, 4),
    ]
    folder = make_run([], events=events)
    with (folder / "buffer.jsonl").open("a") as file:
        file.write('{"step": 2, "event": "adm')  # the run is writing right now
    # 0 %: a, c, d admitted, a and d graduated, c inside: 2/3 and 2/2. All: 2 of 6 admitted, 2 of 4 completed.
    # Visits: 0 b evicted, 1 d and 2 a graduated, 4 a's second entry evicted; inside c and e.
    assert audit_command(folder).splitlines()[2:] == [
        NO_CANDIDATES,
        "",
        GRADUATION,
        GRADUATION_HEADER,
        "0                        3          2          -        0          1"
        "                  66.7                  100.0",
        "12.5                     1          0          -        1          0"
        "                   0.0                    0.0",
        "25                       1          0          -        1          0"
        "                   0.0                    0.0",
        "37.5                     1          0          -        0          1"
        "                   0.0                      -",
        "all                      6          2          -        2          2"
        "                  33.3                   50.0",
        "",
        "Outcome by visits (re-samples until the entry completed)",
        "visits     entries  graduated  evicted  graduated so far, % of completed",
        "0                1          0        1                               0.0",
        "1                1          1        0                              25.0",
        "2                1          1        0                              50.0",
        "3                0          0        0                              50.0",
        "4                1          0        1                              50.0",
        "in buffer        2",
    ]


def test_a_buffer_whose_entries_are_all_inside(make_run):
    text = audit_command(make_run([], events=[event("admit", "a", 1 / 3, 0), event("revisit", "a", 1 / 3, 1)]))
    assert text.splitlines()[4:] == [
        GRADUATION,
        GRADUATION_HEADER,
        "33.33                    1          0          -        0          1"
        "                   0.0                      -",
        "all                      1          0          -        0          1"
        "                   0.0                      -",
        "",
        "Outcome by visits (re-samples until the entry completed)",
        "visits     entries  graduated  evicted  graduated so far, % of completed",
        "in buffer        1",
    ]


def test_what_chance_graduates_stands_next_to_what_graduated(make_run):
    events = [
        event("admit", "a", 0.0, 0),
        event("admit", "b", 1 / 3, 0),
        event("graduate", "b", 1 / 3, 1),
        event("graduate", "a", 0.0, 2),
    ]
    folder = make_run([], events=events)
    rows = [
        {"step": 1, "buffer/graduated_by_chance@0": 0.125},
        {"step": 2, "buffer/graduated_by_chance": 0.875, "buffer/graduated_by_chance@0": 0.375}
        | {"buffer/graduated_by_chance@0.333333": 0.5, "buffer/graduated_by_chance@visits_1": 0.875},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "buffer/grad'  # it is writing right now
    (folder / "metrics.jsonl").write_text(text)
    cells = [line.split()[:4] for line in audit_command(folder).splitlines()[6:9]]
    assert cells == [["0", "1", "1", "0.4"], ["33.33", "1", "1", "0.5"], ["all", "2", "2", "0.9"]]


def test_a_run_without_candidates_and_buffer_says_so(make_run):
    folder = make_run(replies("q1/plain", (1.0, None)), events=[])
    assert audit_command(str(folder)) == f"{folder}, steps with rollouts: 1\n\n{NO_CANDIDATES}\n\n{NO_BUFFER}"


def test_only_the_counted_columns_are_needed(make_run):
    folder = make_run()
    row = replies("q1/bcq", (1.0, "positive"))
    pq.write_table(pa.Table.from_pylist(row), folder / "rollouts" / "step-000007.parquet")
    (folder / "rollouts" / "step-000008.tmp").write_text("a step that is being written")
    (folder / "rollouts" / "step-000007 (copy).parquet").write_text("")
    assert audit_command(folder).splitlines()[:5] == [
        f"{folder}, steps with rollouts: 7",
        "",
        "Candidate-match audit: whose answer the student's replies give, % of the replies",
        "kind  prompts  rollouts  accuracy %  right: pos/neg/other  wrong: pos/neg/other  all: pos/neg/other",
        "bcq         1         1       100.0         100.0/0.0/0.0                     -       100.0/0.0/0.0",
    ]


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as error:
        audit_command(folder)
    return str(error.value)


def test_folders_that_are_no_run_are_refused(make_run, tmp_path):
    folder = make_run()
    study = tmp_path / "study"
    other = study / "base" / "tiny_s" / "seed1"
    other.mkdir(parents=True)
    (other / "run.json").write_text("{}")
    missing = tmp_path / "nothing"
    assert refusal(missing) == f"no run folder {missing}: name one, such as outputs/quickstart/zppo/tiny_s/seed0"
    assert refusal(study) == f"{study} is not the folder of a run: name one of the runs inside: {other}, {folder}"
    for above in (study / "base", study / "base" / "tiny_s"):
        assert refusal(above) == f"{above} is not the folder of a run: name one of the runs inside: {other}"
    inner = folder / "rollouts"
    assert refusal(inner) == f"{inner} is not the folder of a run: it has no run.json"
    assert refusal(folder) == f"{folder} has no rollouts: the run made none, as a base run, or they were removed"
    assert refusal(other) == f"{other} has no rollouts: the run made none, as a base run, or they were removed"


def test_files_of_an_earlier_version_and_broken_ones_are_refused(make_run):
    folder = make_run()
    file = folder / "rollouts" / "step-000001.parquet"
    pq.write_table(pa.table({"uid": ["q"], "kind": ["plain"], "sampler": ["student"], "reward": [1.0]}), file)
    assert refusal(folder) == f"{file} has no column 'match': an earlier version wrote it, repeat the run"
    file.write_bytes(b"not parquet at all")
    answer = refusal(folder)
    assert answer.startswith(f"{file} cannot be read: Parquet magic bytes not found") and "\n" not in answer
    assert answer.endswith("put a good copy in its place, or remove it to leave its step out")


def test_ranges():
    assert [ranges(steps) for steps in ([3], [1, 2], [1, 2, 3, 7, 9, 10])] == ["3", "1-2", "1-3, 7, 9-10"]


def test_replies_to_bcqs_by_the_place_of_the_right_trace(make_run):
    """First: 2 of 3 right, all follow a candidate; second: 1 of 4, of which one is ungraded and left out."""
    rows = [
        *({**row, "positive_position": 0} for row in replies("q1/bcq", (1.0, "positive"), (1.0, "positive"))),
        *({**row, "positive_position": 0} for row in replies("q2/bcq", (0.0, "negative"))),
        *({**row, "positive_position": 1} for row in replies("q3/bcq", (1.0, "positive"), (0.0, "other"))),
        *({**row, "positive_position": 1} for row in replies("q4/bcq", (0.0, "negative"), (None, "other"))),
        *replies("q1/ncq", (0.0, "negative")),
    ]
    lines = audit_command(make_run(rows)).splitlines()
    start = lines.index("BCQ by the place of the right trace")
    assert lines[start + 1 : start + 5] == [
        "right trace  rollouts  accuracy %  all: pos/neg/other",
        "first               3        66.7       66.7/33.3/0.0",
        "second              3        33.3      33.3/33.3/33.3",
        "",
    ]
