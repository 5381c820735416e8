"""`zppo eval` on finished runs and on models, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness.app import main
from harness.commands.evaluate import data_text, eval_command, list_text
from harness.models.tiny import tiny_path
from harness.records.lock import FolderInUse, RunLock
from reports.runs.collect import collect, find_runs
from reports.tables import compare
from tests.harness.commands.conftest import FIXTURES, SMALL


def scores(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "scores.csv").open() as file:
        return {row["benchmark"]: row for row in csv.DictReader(file)}


def test_a_run_is_scored_again_on_its_own_suite_from_what_is_there(run: Path) -> None:
    folder = run / "eval" / "mini"
    before = {name: (folder / name).read_bytes() for name in ("scores.csv", "rows.jsonl", "responses.jsonl")}
    (folder / "scores.csv").unlink()
    text = eval_command([f"run={run}"])  # with the run's own options
    # The saved model is the one that was evaluated alive: nothing was generated anew.
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert text.splitlines()[0].split()[:3] == ["benchmark", "family", "score"]
    assert text.splitlines()[1].startswith("arithmetic_l1  LLM") and text.splitlines()[-1] == f"Written: {folder}"


def test_one_process_at_a_time_evaluates_on_a_suite(run: Path) -> None:
    lock = RunLock(run / "eval" / "mini")
    with pytest.raises(FolderInUse, match=r"mini is being written by"):
        eval_command([f"run={run}"])
    lock.release()
    assert "arithmetic_l1" in eval_command([f"run={run}"])


def test_a_run_on_another_suite_joins_the_tables_of_its_study(run: Path) -> None:
    options = [f"data_root={FIXTURES}", "eval.columns=[aime26,mmlu,infovqa]", "eval.max_response_tokens=8"]
    eval_command([f"run={run}", "suite=paper31", *options])
    found = scores(run / "eval" / "paper31")
    assert {name: (row["family"], row["n"]) for name, row in found.items()} == {
        "infovqa": ("VLM", "2"), "aime26": ("LLM", "2"), "mmlu": ("LLM", "2"),
    }  # fmt: skip
    decoding = next(iter(json.loads((run / "eval/paper31/protocol.json").read_text())["cards"].values()))["decoding"]
    # The published decoding, the run's own limits of pixels.
    assert (decoding["temperature"], decoding["presence_penalty"], decoding["media"]["max_pixels"]) == (
        0.6,
        1.5,
        65_536,
    )
    tables = compare(collect(run.parents[2]))
    assert {(table.suite, table.family) for table in tables} == {
        ("mini", "LLM"),
        ("paper31", "LLM"),
        ("paper31", "VLM"),
    }
    # The fixture's copies are small parts of the benchmarks: file and table say so, line by line.
    parts = {
        "infovqa": "2 of 2801 rows of lmms-lab/DocVQA are here",
        "aime26": "2 of 30 rows of MathArena/aime_2026 are here",
        "mmlu": "2 of 14042 rows of cais/mmlu are here",
    }
    assert json.loads((run / "eval/paper31/protocol.json").read_text())["partial"] == parts
    said = {table.family: table.refused for table in tables if table.suite == "paper31"}
    assert said == {
        "VLM": (f"infovqa: {parts['infovqa']} (1 run)",),
        "LLM": tuple(f"{name}: {parts[name]} (1 run)" for name in ("aime26", "mmlu")),
    }
    (run / "eval/paper31/protocol.json").write_text("{")
    assert [found.incomplete for found in find_runs(run.parents[2])] == [
        "paper31/protocol.json is damaged: evaluate the run again"
    ]


def test_a_models_folder_is_scored_as_its_run_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["eval.mini_tasks=[bar_chart]", "eval.levels=[1]", "eval.num_questions=6"]
    assert main(["eval", f"run={run}", *few]) == 0
    words = ["eval", f"model={run / 'model'}", f"outputs={run.parent}", "study=copy", *few]
    assert main(words) == 0
    folder = run.parent / "copy" / "base" / "model" / "seed0" / "eval" / "mini"
    by_run, by_folder = scores(run / "eval" / "mini"), scores(folder)
    assert by_run == by_folder  # the protocol too
    card = json.loads((folder / "protocol.json").read_text())["cards"][by_folder["bar_chart_l1"]["protocol"]]
    assert (card["engine"], card["dtype"]) == ("transformers", "float32")
    assert (card["decoding"]["media"]["min_pixels"], card["decoding"]["media"]["max_pixels"]) == (256, 65_536)
    # The user decides before the folder does, and a stored reply of another dtype is no reply.
    num_stored = len((folder / "responses.jsonl").read_text().splitlines())
    assert num_stored == 6
    assert main([*words, "student.dtype=bfloat16", "eval.media.max_pixels=32768"]) == 0
    (card,) = json.loads((folder / "protocol.json").read_text())["cards"].values()
    assert card["dtype"] == "bfloat16"
    assert (card["decoding"]["media"]["min_pixels"], card["decoding"]["media"]["max_pixels"]) == (256, 32_768)
    assert len((folder / "responses.jsonl").read_text().splitlines()) == 12
    assert main(words) == 0 and scores(folder) == by_run
    assert len((folder / "responses.jsonl").read_text().splitlines()) == 12


def test_pictures_that_changed_under_their_names_are_shown_again(tmp_path: Path) -> None:
    root = Path(shutil.copytree(FIXTURES / "MathLLMs", tmp_path / "data" / "MathLLMs")).parent
    options = ["suite=vlm16", "eval.columns=[mathvision]", "eval.max_response_tokens=8", f"data_root={root}"]
    words = ["eval", "model=tiny_xs", *options, f"outputs={tmp_path}"]
    folder = tmp_path / "eval" / "base" / "tiny_xs" / "seed0" / "eval" / "vlm16"
    seen = []
    for colour in (None, None, "red"):
        if colour is not None:
            (file,) = root.rglob("*.parquet")
            buffer = io.BytesIO()
            Image.new("RGB", (64, 48), colour).save(buffer, "PNG")
            table = pq.read_table(file)
            picture = pa.array([{"bytes": buffer.getvalue(), "path": None}] * len(table), table["decoded_image"].type)
            place = table.column_names.index("decoded_image")
            pq.write_table(table.set_column(place, table.schema.field(place), picture), file)
        assert main(words) == 0
        rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
        num_stored = len((folder / "responses.jsonl").read_text().splitlines())
        seen.append((num_stored, scores(folder)["mathvision"]["protocol"], [row["images"] for row in rows]))
    (num, protocol, names), same, (num_after, protocol_after, names_after) = seen
    assert same == (num, protocol, names)
    assert (num_after, names_after) == (2 * num, names) and protocol_after != protocol


def test_a_model_by_its_path_is_a_row_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = shutil.copytree(tiny_path("xs"), tmp_path / "My-Model")
    small = [*SMALL, "recipe=tiny", "eval.max_response_tokens=24", f"outputs={tmp_path}", "student.dtype=float32"]
    assert main(["eval", f"model={model}", "study=other", *small]) == 0
    folder = tmp_path / "other" / "base" / "my-model" / "seed0"
    assert json.loads((folder / "run.json").read_text())["status"] == "done"
    assert str(folder / "eval" / "mini") in capsys.readouterr().out
    first = (folder / "eval" / "mini" / "rows.jsonl").read_text()
    # Once more, in two passes, the second without a model.
    shutil.rmtree(folder / "eval")
    text = eval_command([f"model={model}", "study=other", "stage=generate", *small])
    assert text.endswith("score them with stage=judge") and not (folder / "eval" / "mini" / "scores.csv").exists()
    shutil.move(model, tmp_path / "elsewhere")
    eval_command([f"model={model}", "study=other", "stage=judge", *small])
    assert (folder / "eval" / "mini" / "rows.jsonl").read_text() == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "zppo eval needs run=FOLDER of a finished run, or model=NAME or path"),
        (["run=a", "model=tiny_s"], "zppo eval needs run=FOLDER"),
        (["run"], "zppo eval needs run=FOLDER"),
        (["run=a", "run=b"], "run= is given twice: evaluate one at a time"),
        (["run=nowhere"], "nowhere is no finished run (no run.json)"),
        (["model=tiny_z"], "model=tiny_z is neither a student ("),
        (["model=tiny_s", "suite=papr31"], "suite=papr31: no such suite. Did you mean 'paper31'?"),
        (
            ["model=tiny_s", "eval.options.charxiv=all"],
            "charxiv must be 'reasoning', 'descriptive' or 'both', got 'all'",
        ),
        (["model=tiny_s", "eval.judge.when=never"], "eval.judge.when must be 'unmatched' or 'unparsed', got 'never'"),
        (["model=tiny_s", "suite=llm10", "data_root=nowhere"], "eval.data_root=nowhere is no folder"),
        (
            ["model=tiny_s", "suite=llm10", f"data_root={FIXTURES}", "limit=0"],
            "eval.limit must be greater than 0, or",
        ),
        (["model=tiny_s", "suite=llm10", "eval.columns=[mmul]"], "eval.columns: llm10 has no 'mmul'. Did you mean"),
        (["model=tiny_s", "suite=llm10", "eval.colums=[mmlu]"], "unknown option 'eval.colums'"),
        (["model=tiny_s", "stage=judge"], "has no responses: generate them first, with stage=generate"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = [] if "run=nowhere" in words else [f"outputs={tmp_path}"]
    assert main(["eval", *words, *outputs]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_a_run_takes_other_options_of_its_own_suite(run: Path) -> None:
    eval_command([f"run={run}", "eval.num_questions=4", "eval.levels=[1]"])
    assert {name: row["n"] for name, row in scores(run / "eval" / "mini").items()} == {"arithmetic_l1": "4"}


def test_a_model_whose_first_evaluation_failed_is_a_row_after_the_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["suite=paper31", "eval.columns=[aime26]", "eval.max_response_tokens=8"]
    words = ["model=tiny_xs", *chosen, f"outputs={tmp_path}"]
    (tmp_path / "empty").mkdir()
    assert main(["eval", *words, f"data_root={tmp_path / 'empty'}"]) == 2
    assert "aime26: there is no folder" in capsys.readouterr().err
    assert main(["eval", *words, f"data_root={FIXTURES}"]) == 0
    run_json = tmp_path / "eval" / "base" / "tiny_xs" / "seed0" / "run.json"
    run_json.write_text(json.dumps(json.loads(run_json.read_text()) | {"status": "failed"}))  # as a run leaves it
    assert collect(tmp_path / "eval").empty
    assert main(["eval", *words, f"data_root={FIXTURES}"]) == 0
    (row,) = collect(tmp_path / "eval").to_dict("records")
    assert (row["label"], row["student"], row["benchmark"], row["n"]) == ("base", "tiny_xs", "aime26", 2)


def test_a_run_keeps_its_student(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", f"run={run}", "student=tiny_s"]) == 2
    assert "student=tiny_s: only eval., student., " in capsys.readouterr().err


def test_the_list_has_every_column_with_its_options_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = list_text().splitlines()
    assert len(lines) == 1 + 31 + 4
    (mmlu,) = [line for line in lines if line.startswith("mmlu ")]
    assert mmlu.split() == ["mmlu", "MMLU", "LLM", "14042", "exact_judge", "cais/mmlu"]
    (videos,) = [line for line in lines if line.startswith("videomme_sub ")]
    assert videos.split()[-1] == "videomme_subtitles=all"
    (ocr,) = [line for line in lines if line.startswith("ocrbench_v2_zh ")]
    assert ocr.endswith("ocrbench_v2=categories")
    assert "llm10 (10), paper31 (31), video5 (5), vlm16 (16)" in lines[-3]
    shutil.copytree(FIXTURES / "cais", tmp_path / "cais")
    missing, there = data_text([f"data_root={tmp_path}"]).splitlines()
    assert there.startswith("data there: ") and "mmlu" in there.split(", ") and missing.startswith("data missing: ")
    assert len(f"{there}, {missing}".split(", ")) == 31
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_text(["data_root=~"]).splitlines() == [missing, there]


class _Offline(Exception):
    """As httpx2 raises: related to no class of httpx, and no OSError."""


def test_the_list_is_printed_before_the_hub_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    printed = []

    def refuse(*args: object, **options: object) -> None:
        printed.append(capsys.readouterr().out)
        raise _Offline("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    assert main(["eval", "--list"]) == 0
    assert sorted(printed)[-1].splitlines()[:-3] == list_text().splitlines()[:-3]
    assert capsys.readouterr().out.splitlines() == [
        "data unreachable: all 31",
        "the hub does not answer: look again later, or keep copies in data_root=DIR",
    ]


def test_what_ends_a_first_evaluation_leaves_no_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import harness.evaluation.evaluate

    words = ["eval", "model=tiny_xs", "suite=mini", "limit=2", *SMALL, f"outputs={tmp_path}"]
    run_json = tmp_path / "eval" / "base" / "tiny_xs" / "seed0" / "run.json"
    seen = []

    def stop(*args: object, **options: object) -> None:
        seen.append(json.loads(run_json.read_text())["status"])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(harness.evaluation.evaluate, "evaluate", stop)
        assert main(words) == 130
    assert seen == ["running"] and json.loads(run_json.read_text())["status"] == "interrupted"
    assert main(words) == 0
    assert json.loads(run_json.read_text())["status"] == "done"
    assert {row["n"] for row in scores(run_json.parent / "eval" / "mini").values()} == {"2"}
    with monkeypatch.context() as patched:  # it has scores: another evaluation takes nothing from them
        patched.setattr(harness.evaluation.evaluate, "evaluate", stop)
        assert main(words) == 130
    assert json.loads(run_json.read_text())["status"] == "done"
