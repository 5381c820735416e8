"""`zppo data check`, and a run on the same data with a scorer and a closing instruction of one's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from harness.app import main

FILES = Path(__file__).parents[2] / "fixtures" / "data"
MADE = ["student=tiny_xs", "data.batch_size=4", "eval=none"]


def copied(folder: Path, name: str) -> str:
    """A copy, since an index is written next to it."""
    shutil.copy(FILES / name, folder / name)
    return f"data.path={folder / name}"


def check(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["data", "check", *MADE, *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_what_a_run_would_train_on_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = ["data.columns.question=problem", "data.columns.answer=solution"]
    code, out, _ = check(
        capsys, "data=jsonl", copied(tmp_path, "math.jsonl"), *columns, "data.closing=End with a number."
    )
    assert code == 0
    lines = out.splitlines()
    assert lines[:3] == ["rows read: 8", "kept: 8", "bad: 0 (data.max_bad_fraction=0)"]
    assert "duplicates: 0 rows repeat the question of another row" in lines
    assert "sources: math 8" in lines and "answer types: math 8" in lines
    golds = [line for line in lines if line.startswith("--- gold")]
    assert golds == [f"--- gold (math): {gold}" for gold in ("7", "15", "1234", "16", "23")]
    assert out.count("<|im_start|>user\nTom has ") == out.count("\n\nEnd with a number.<|im_end|>") == 5


def test_rows_that_a_run_would_refuse_are_counted_and_the_exit_code_is_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data=jsonl", copied(tmp_path, "numina15.jsonl"), "data.columns.question=problem"]
    code, out, err = check(capsys, *words)
    assert code == 2 and "4 of 8 rows are bad" in err and len(err.splitlines()) == 1
    assert "rows read: 8\nkept: 4\nbad: 4 " in out
    assert "  4: 'answer' ... is a word, no mathematics: give such rows the answer type text" in out
    assert check(capsys, *words, "data.max_bad_fraction=0.5")[0] == 0


def test_questions_that_the_suite_asks_as_well_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from harness.data.synthetic import make_questions

    asked = make_questions(["arithmetic"], [2], 8, seed=0, split="held_out")
    rows = [{"question": q.text.lower() if i % 2 else q.text, "answer": q.answer} for i, q in enumerate(asked[:4])]
    rows += [{"question": f"What is {i} plus 1000000?", "answer": str(1_000_000 + i)} for i in range(4)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["eval=mini", "eval.mini_tasks=[arithmetic]", "eval.levels=[2]", "eval.num_questions=8"]
    code, out, _ = check(capsys, "data=jsonl", f"data.path={path}", *words)
    assert code == 0 and "overlap with mini: 4 questions of arithmetic_l2 (1 benchmarks looked at)" in out


def test_a_run_is_graded_by_a_scorer_of_its_own(tmp_path: Path) -> None:
    rows = [{"question": f"Say {i}.", "answer": str(i), "unit": "kg"} for i in range(4)]
    for name in ("one", "two"):
        text = "".join(json.dumps(row | {"question": f"{name}: {row['question']}"}) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    words = ["data=jsonl", f"data.path=[{tmp_path}/one.jsonl,{tmp_path}/two.jsonl]", "data.columns.extra=[unit]"]
    own = ["data.reward=tests.support.scorers:length", "data.closing=", "data.system=Be brief."]
    made = ["method=grpo", "method.group_size=2", "steps=1", "data.batch_size=8", "rollout.max_response_tokens=4"]
    assert main(["train", "student=tiny_xs", "eval=none", *words, *own, *made, f"outputs={tmp_path}"]) == 0
    run = tmp_path / "default" / "grpo" / "tiny_xs" / "seed0"
    info = json.loads((run / "run.json").read_text())
    assert (info["closing"], info["reward"]) == ("", "tests.support.scorers:length")
    sampled = pq.read_table(run / "rollouts" / "step-000001.parquet").to_pylist()
    assert {row["source"] for row in sampled} == {"one", "two"} and len(sampled) == 16
    for row in sampled:
        assert row["prompt_text"].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
        assert "<think>" not in row["prompt_text"]
        assert row["answer"] == row["response_text"].upper()
        assert row["reward"] == pytest.approx(min(len(row["response_text"]) / 10, 1.0))
    metrics = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    by_source = {
        name: [row["reward"] for row in sampled if row["source"] == name] for name in ("one", "two")
    }  # fmt: skip
    for name, rewards in by_source.items():
        assert metrics[f"rollout/accuracy@{name}"] == pytest.approx(sum(rewards) / len(rewards), abs=1e-6)
