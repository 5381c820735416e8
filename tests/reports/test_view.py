"""`zppo view`: what is printed of hand-made run folders, whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.records.rollouts import ROLLOUT_SCHEMA
from reports.view import view_command


def row(uid: str, index: int, text: str, reward: float, **changes: Any) -> dict[str, Any]:
    """A rollout of the student to question q of `q/kind`."""
    question, kind = uid.split("/")[:2]
    return {
        "step": 1, "uid": uid, "kind": kind, "sampler": "student", "question_id": question, "replayed": False,
        "index": index, "prompt_text": f"<user>\nCompute {question}.\n", "response_text": text,
        "num_prompt_tokens": 5, "num_response_tokens": 7, "num_prefix_tokens": 0, "finish_reason": "stop",
        "answer": None, "gold": "4", "reward": reward, "training_reward": None,
        "verdict": "correct" if reward else "wrong", "positive_answer": None, "negative_answers": [], "match": None,
        "trained": True, "advantage": 1.0 if reward else -1.0,
    } | changes  # fmt: skip


@pytest.fixture
def make_run(tmp_path: Path):
    def make(*steps: list[dict[str, Any]]) -> Path:
        folder = tmp_path / "run"
        (folder / "rollouts").mkdir(parents=True)
        (folder / "run.json").write_text("{}")
        for number, rows in enumerate(steps, start=1):
            table = pa.Table.from_pylist([r | {"step": number} for r in rows], schema=ROLLOUT_SCHEMA)
            pq.write_table(table, folder / "rollouts" / f"step-{number:06d}.parquet")
        return folder

    return make


def test_the_first_groups_of_the_last_step(make_run):
    candidates = {"positive_answer": "4", "negative_answers": ["3", "5"]}
    folder = make_run(
        [row("2+2/plain", 0, "only in step 1", 0.0)],
        [
            row("2+2/plain", 0, "2+2=4\n\\boxed{4}", 1.0, advantage=0.70710678),
            row("2+2/plain", 1, "2+2=", 0.0, verdict="unparsable", finish_reason="length", training_reward=0.25),
            row("2+2/bcq", 0, "\\boxed{5}", 0.0, match="negative", replayed=True, **candidates),
            row("1+3/prefix", 0, "1+3=4", 1.0, num_prefix_tokens=3, advantage=None),
            row("7-3/plain", 0, "4", 1.0),
        ],
    )
    assert view_command(str(folder)).splitlines() == [
        "step 2  uid 2+2/plain  kind plain  sampler student  not replayed  accuracy 1/2  gold 4",
        "  prompt: 5 tokens",
        "    <user>",
        "    Compute 2+2.",
        "",
        "  response 0: reward 1, correct, advantage +0.707, stop, 7 tokens",
        "    2+2=4",
        "    \\boxed{4}",
        "  response 1: reward 0, unparsable, training reward 0.25, advantage -1.000, length, 7 tokens",
        "    2+2=",
        "",
        "step 2  uid 2+2/bcq  kind bcq  sampler student  replayed  accuracy 0/1  gold 4",
        "  candidates: right 4; wrong 3, 5",
        "  prompt: 5 tokens",
        "    <user>",
        "    Compute 2+2.",
        "",
        "  response 0: reward 0, wrong, advantage -1.000, stop, 7 tokens, match negative",
        "    \\boxed{5}",
        "",
        "step 2  uid 1+3/prefix  kind prefix  sampler student  not replayed  accuracy 1/1  gold 4",
        "  prompt: 5 tokens",
        "    <user>",
        "    Compute 1+3.",
        "",
        "  response 0: reward 1, correct, trained without advantage, stop, 7 tokens (3 given)",
        "    1+3=4",
        "",
        "3 of 4 groups; --num 4 shows all",
    ]


def headers(text: str) -> list[str]:
    """Uids of the groups that are shown, and the last line."""
    return [line.split("  ")[1] for line in text.splitlines() if line.startswith("step ")] + text.splitlines()[-1:]


def test_step_kind_question_and_number_choose_groups(make_run):
    rows = [row(f"{question}/{kind}", 0, "", 0.0) for kind in ("plain", "ncq") for question in ("a", "b")]
    folder = make_run(rows, rows[:1])
    assert headers(view_command(folder, step=1, num_groups=4))[4] == "4 of 4 groups"
    assert headers(view_command(folder, step=1, kind="ncq")) == ["uid a/ncq", "uid b/ncq", "2 of 2 groups"]
    assert headers(view_command(folder, step=1, question="b")) == ["uid b/plain", "uid b/ncq", "2 of 2 groups"]
    assert headers(view_command(folder, step=1, question="b", num_groups=1)) == [
        "uid b/plain",
        "1 of 2 groups; --num 2 shows all",
    ]
    assert headers(view_command(folder, step=1, kind="ncq", question="b")) == ["uid b/ncq", "1 of 1 groups"]


def test_a_rewrite_that_was_redrawn_is_one_group(make_run):
    teacher = {"sampler": "teacher", "trained": False, "advantage": None, "gold": "", "prompt_text": "Rewrite."}
    folder = make_run(
        [
            row("q/plain", 0, "", 0.0),
            row("q/compress/student/0", 0, "no summary", 0.0, **teacher),
            row("q/compress/student/1", 0, "another trace", 1.0, **teacher),
            row("q/compress/student/0", 1, "<summary>4</summary>", 1.0, **teacher),  # redrawn after all were asked
        ]
    )
    assert view_command(folder, kind="compress", num_groups=1).splitlines() == [
        "step 1  uid q/compress/student/0  kind compress  sampler teacher  answer kept 1/2",
        "  prompt: 5 tokens",
        "    Rewrite.",
        "  response 0: reward 0, wrong, not trained, stop, 7 tokens",
        "    no summary",
        "  response 1: reward 1, correct, not trained, stop, 7 tokens",
        "    <summary>4</summary>",
        "",
        "1 of 2 groups; --num 2 shows all",
    ]


def test_a_teachers_response_in_a_group_is_named_and_is_not_its_accuracy(make_run):
    rows = [row("q/plain", 0, "3", 0.0), row("q/plain", 1, "4", 1.0, sampler="teacher")]
    lines = view_command(make_run(rows)).splitlines()
    assert lines[0] == "step 1  uid q/plain  kind plain  sampler student+teacher  not replayed  accuracy 0/1  gold 4"
    assert [line for line in lines if line.startswith("  response")] == [
        "  response 0 (student): reward 0, wrong, advantage -1.000, stop, 7 tokens",
        "  response 1 (teacher): reward 1, correct, advantage +1.000, stop, 7 tokens",
    ]


def test_the_teachers_own_group_has_its_accuracy(make_run):
    rows = [row("q/plain", i, "4", float(i > 0), sampler="teacher") for i in range(4)]
    assert "sampler teacher  not replayed  accuracy 3/4" in view_command(make_run(rows))


def test_hostile_text_cannot_steer_the_terminal_or_pass_for_a_header(make_run):
    text = "\x1b[31mred\x1b]0;title\x07 [bold]x[/bold]\r\x9b2J\x08\tno\u202ebidi\u2028step 9"
    text += "\nstep 9  uid q\\n \u00e9\u6f22\U0001f600"
    folder = make_run(
        [
            row(
                "q\x1b/bcq", 0, text, 0.0, prompt_text="a\x00b", gold="4\n5", positive_answer=None,
                negative_answers=["\x1b[2J"], match="other",
            )
        ]
    )  # fmt: skip
    assert view_command(folder).split("\n") == [
        "step 1  uid q\\x1b/bcq  kind bcq  sampler student  not replayed  accuracy 0/1  gold 4\\n5",
        "  candidates: right unknown; wrong \\x1b[2J",
        "  prompt: 5 tokens",
        "    a\\x00b",
        "  response 0: reward 0, wrong, advantage -1.000, stop, 7 tokens, match other",
        "    \\x1b[31mred\\x1b]0;title\\x07 [bold]x[/bold]\\r\\x9b2J\\x08\\tno\\u202ebidi\\u2028step 9",
        "    step 9  uid q\\n \u00e9\u6f22\U0001f600",
        "",
        "1 of 1 groups",
    ]


def refusal(folder: Path, **choice: Any) -> str:
    with pytest.raises(ValueError) as error:
        view_command(folder, **choice)
    return str(error.value)


def test_what_is_not_there_is_refused_with_what_is(make_run, tmp_path):
    first = [row("a/plain", 0, "", 0.0), row("a/ncq", 0, "", 0.0)]
    second = [row(f"{q}/plain", 0, "", 0.0) for q in ("a", "b\x1b", "c", "d", "e")] + [row("a/hint", 0, "", 0.0)]
    folder = make_run(first, second, [])
    assert refusal(folder, step=9) == f"step 9 has no rollouts in {folder}; steps that have: 1-3"
    assert refusal(folder) == "step 3 has no groups; steps that have: 1-2"
    assert refusal(folder, step=2, kind="ncq") == "step 2 has no groups of kind 'ncq'; steps that have: 1"
    assert refusal(folder, step=1, question="c") == "step 1 has no groups of question 'c'; steps that have: 2"
    assert refusal(folder, step=1, kind="bcq") == "step 1 has no groups of kind 'bcq'; kinds: plain, ncq"
    assert refusal(folder, step=2, question="\x1b") == (
        "step 2 has no groups of question '\\x1b'; questions: a, b\\x1b, c, 2 more"
    )
    assert refusal(folder, step=1, question="z") == "step 1 has no groups of question 'z'; questions: a"
    assert refusal(folder, step=2, kind="bcq", question="c") == (
        "step 2 has no groups of kind 'bcq', question 'c'; kinds of this question: plain"
    )
    assert refusal(folder, num_groups=0) == "--num must be at least 1, got 0"
    missing = tmp_path / "nothing"
    assert refusal(missing) == f"no run folder {missing}: name one, such as outputs/quickstart/zppo/tiny_s/seed0"


def test_files_of_an_earlier_version_are_refused(make_run):
    folder = make_run([row("q/plain", 0, "", 0.0)])
    file = folder / "rollouts" / "step-000001.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["match"]), file)
    assert refusal(folder) == f"{file} has no column 'match': an earlier version wrote it, repeat the run"
