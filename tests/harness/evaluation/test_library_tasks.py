"""Library tasks in a command: by name, resumed, refused in a line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from harness.app import main
from tests.support.library_tasks import write_own_tasks


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    write_own_tasks(folder, 6)
    absent = {
        "task": "own_absent", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "nowhere.jsonl"}},
        "test_split": "test", "output_type": "generate_until", "doc_to_text": "", "doc_to_target": "",
    }  # fmt: skip
    (folder / "absent.yaml").write_text(yaml.safe_dump(absent))
    (folder / "code.yaml").write_text(yaml.safe_dump(absent | {"task": "own_code", "unsafe_code": True}))
    (folder / "group.yaml").write_text(yaml.safe_dump({"group": "own_with_code", "task": ["own_choices", "own_code"]}))
    return folder


@pytest.fixture(scope="module")
def words(own: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """An evaluation of one task of generation and one of multiple choice, in one process."""
    outputs = tmp_path_factory.mktemp("outputs")
    given = ["eval", "model=tiny_s", f"eval.task_paths=[{own}]", f"outputs={outputs}", "eval.tasks=[lm_eval:own_sums]"]
    assert main(given) == 0
    return given


@pytest.fixture
def folder(words: list[str]) -> Path:
    (outputs,) = [word.partition("=")[2] for word in words if word.startswith("outputs=")]
    return next(Path(outputs).rglob("scores.csv")).parent


def scores(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "scores.csv").open(newline="") as lines:
        return {row["benchmark"]: row for row in csv.DictReader(lines)}


def test_every_metric_and_filter_has_a_row_with_a_card_and_its_responses(folder: Path) -> None:
    found = scores(folder)
    assert folder.name == "tasks" and set(found) == {
        "lm_eval:own_choices/acc", "lm_eval:own_choices/acc_norm", "lm_eval:own_choices/acc_mutual_info",
        "lm_eval:own_replies/exact_match/last", "lm_eval:own_replies/exact_match/most",
        "lm_eval:own_sums/acc", "lm_eval:own_sums/exact_match/last", "lm_eval:own_sums/exact_match/most",
    }  # fmt: skip
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    cards = json.loads((folder / "protocol.json").read_text())["cards"]
    for name, row in found.items():
        assert row["family"] == "lm_eval" and cards[row["protocol"]]["benchmark"] == name
        own_rows = [one for one in rows if one["benchmark"] == name]
        if "own_sums" in name:  # a group has no responses of its own
            assert row["n"] == "12" and not own_rows
        else:
            mean = sum(one["score"] for one in own_rows) / 6
            assert row["n"] == "6" and float(row["score"]) == pytest.approx(100 * mean, abs=1e-4)
    card = cards[found["lm_eval:own_choices/acc"]["protocol"]]
    assert card["tasks"]["own_choices"] | {"config": "", "prompts": "", "golds": ""} == {
        "version": "1.5", "num_fewshot": 2, "num_questions": 6, "config": "", "prompts": "", "golds": "",
    }  # fmt: skip
    assert card["versions"] == {"lm-eval": "0.4.13"} and card["engine"] == "transformers"


def test_what_was_answered_is_not_asked_again(
    words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: (folder / name).read_text() for name in ("scores.csv", "rows.jsonl")}
    stored = (folder / "responses.jsonl").read_text().splitlines(keepends=True)
    cut = [*stored[:-1], stored[-1][:20]]  # as a process leaves it that was killed
    (folder / "responses.jsonl").write_text("".join(cut))
    assert main([*words, "num_threads=1"]) == 0
    again = (folder / "responses.jsonl").read_text().splitlines(keepends=True)
    assert again[:-1] == stored[:-1] and json.loads(again[-1]) == json.loads(stored[-1])
    assert before == {name: (folder / name).read_text() for name in before}
    monkeypatch.setattr("harness.rollout.transformers_engine.TransformersEngine.generate", None)
    assert main([*words, "num_threads=1"]) == 0, "everything was there"


def test_another_template_is_another_card_and_other_answers(words: list[str], folder: Path) -> None:
    plain, num = scores(folder), len((folder / "responses.jsonl").read_text().splitlines())
    chosen = [word for word in words if not word.startswith("eval.tasks")]
    assert main([*chosen, "eval.tasks=[lm_eval:own_replies]", "suite=chat", "eval.apply_chat_template=true"]) == 0
    chat = scores(folder.parent / "chat")
    assert set(chat) < set(plain)
    for name in chat:
        assert chat[name]["protocol"] != plain[name]["protocol"]
    rows = [json.loads(line) for line in (folder.parent / "chat" / "rows.jsonl").read_text().splitlines()]
    assert all("<|im_start|>" in row["messages"][0]["content"] for row in rows) and num


@pytest.mark.parametrize(
    ("tasks", "line"),
    [
        ("[arithmetic]", "eval.tasks=arithmetic is a task of the suite mini: write eval.mini_tasks=[arithmetic]"),
        ("[gsm8k]", "eval.tasks=gsm8k names no library. Write lm_eval:gsm8k or lmms_eval:gsm8k."),
        ("[lm_evl:gsm8k]", "eval.tasks=lm_evl:gsm8k names no library. Did you mean 'lm_eval'"),
        ("[lm_eval:own_code]", "eval.tasks=lm_eval:own_code runs code that the student writes: set eval.allow_code"),
        ("[lm_eval:own_with_code]", "eval.tasks=lm_eval:own_with_code (own_code) runs code that the student writes"),
        ("[lm_eval:own_absent]", "lm_eval:own_absent cannot be loaded (FileNotFoundError: "),
        pytest.param(
            "[lm_eval:gsm8kk]",
            "eval.tasks=lm_eval:gsm8kk: lm_eval has no such task. Did you mean 'gsm8k'",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_task_that_cannot_be_run_is_one_line_before_sampling(
    tasks: str, line: str, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "model=tiny_xs", f"eval.task_paths=[{own}]", f"outputs={tmp_path}", f"eval.tasks={tasks}"]
    assert main(words) == 2
    said = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert len(said) == 1 and line in said[0]
    assert not list(tmp_path.rglob("responses.jsonl"))


def test_a_task_without_data_is_a_hole_beside_others(own: Path, words: list[str], tmp_path: Path) -> None:
    given = [word for word in words if not word.startswith(("eval.tasks", "outputs"))]
    tasks = "eval.tasks=[lm_eval:own_absent,lm_eval:own_choices]"
    assert main([*given, tasks, f"outputs={tmp_path}", "limit=2", "suite=mine"]) == 0
    (file,) = tmp_path.rglob("scores.csv")
    found = scores(file.parent)
    assert found["lm_eval:own_absent"]["score"] == "" and found["lm_eval:own_choices/acc"]["n"] == "2"
    holes = json.loads((file.parent / "protocol.json").read_text())["holes"]
    assert list(holes) == ["lm_eval:own_absent"]
