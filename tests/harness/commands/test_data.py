"""The commands as a user gives them, and training on what they make."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from harness.app import main
from harness.builders.corpus.hashes import BenchmarkHashes

BENCHMARKS = Path(__file__).parents[2] / "fixtures" / "benchmarks"
COLUMNS = "ai2d,mathvista,gpqa_diamond"


def test_the_fixture_is_built_and_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`zppo data build zppo77k --fixture`, then two steps as the issue asks for them, of few questions."""
    out = tmp_path / "corpus"
    assert main(["data", "build", "zppo77k", "--fixture", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "258  kept" in text and "near duplicates of benchmarks: 2 removed" in text
    assert f"258 rows in 3 shards: {out}" in text
    assert json.loads((out / "card.json").read_text())["num_rows"] == 258
    words = [f"data.path={out}", "student=tiny_xs", "steps=2", "data.batch_size=4", "method=grpo", "eval=none"]
    words += ["method.group_size=2", "rollout.max_response_tokens=16"]
    assert main(["train", "data=parquet", *words, f"outputs={tmp_path}"]) == 0
    run = tmp_path / "default" / "grpo" / "tiny_xs" / "seed0"
    assert json.loads((run / "run.json").read_text())["status"] == "done"
    rows = pq.read_table(run / "rollouts" / "step-000002.parquet").to_pylist()
    assert len({row["question_id"] for row in rows}) == 4
    # 112x112 pixels are 7x7 tokens of 16x16.
    assert all(row["prompt_text"].count("<|image_pad|>") == 49 and "Compute " in row["prompt_text"] for row in rows)


def test_benchmarks_are_hashed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "new" / "hashes.json"
    words = ["data", "hash", "--out", str(out), "--data-root", str(BENCHMARKS)]
    assert main([*words, "--columns", COLUMNS]) == 0
    hashes = BenchmarkHashes.load(out)
    assert hashes.columns == {"ai2d": 2, "mathvista": 4, "gpqa_diamond": 4} and hashes.missing == {}
    assert {key.partition("/")[0] for key in hashes.images.values()} == {"ai2d", "mathvista"}
    assert capsys.readouterr().out.startswith("10 questions of 3 benchmarks")


def test_benchmarks_whose_data_are_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "root" / "lmms-lab").mkdir(parents=True)
    (tmp_path / "root" / "lmms-lab" / "ai2d").symlink_to(BENCHMARKS / "lmms-lab" / "ai2d")
    words = ["data", "hash", "--out", str(tmp_path / "h.json"), "--data-root", str(tmp_path / "root")]
    assert main([*words, "--columns", "ai2d,mathvista"]) == 0
    assert "not in it: mathvista (" in capsys.readouterr().out
    assert list(BenchmarkHashes.load(tmp_path / "h.json").missing) == ["mathvista"]
    assert main([*words, "--columns", "mathvista"]) == 2
    assert "AI4Math/MathVista" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["build", "zppo77k", "--fixture", "--vero", "here"], "--fixture brings its own --vero"),
        (["build", "zppo77k", "student=tiny_xs", "--vero", "/no/where"], "--vero: the data set /no/where cannot be"),
        (["build", "zppo77k", "student=nobody"], "nobody"),
        (["hash", "--columns", "ai2"], "--columns: paper31 has no 'ai2'. Did you mean 'ai2d'"),
        (["hash", "--suite", "llm"], "--suite=llm is not known"),
        (["hash", "--data-root", "/no/where"], "--data-root=/no/where is no folder"),
    ],
)
def test_bad_words(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_options_may_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--vero", "/no/where", "zppo77k", "--seed", "3", "student=tiny_xs", "--tier1-cap", "5", "data.seed=1"]
    assert main(["data", "build", *words]) == 2
    assert "/no/where" in capsys.readouterr().err
