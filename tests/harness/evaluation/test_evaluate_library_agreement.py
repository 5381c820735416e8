"""The same task through lm-eval's own command line, on the exported model: same prompts, same replies, same score."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from harness.config.schema import EvalConfig, ModelConfig
from harness.data.synthetic import make_questions
from harness.evaluation.evaluate import evaluate
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.loading import load_model, load_tokenizer
from harness.models.tiny import tiny_path
from harness.rollout.transformers_engine import TransformersEngine
from methods.prompts import CLOSING

NUM = 24


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """Additions in the schema of AIME 2026."""
    folder = tmp_path / "data" / "MathArena" / "aime_2026"
    folder.mkdir(parents=True)
    questions = make_questions(["arithmetic"], [1, 2], NUM, seed=0, split="held_out")
    rows = [{"problem_idx": i, "problem": q.text, "answer": int(q.answer)} for i, q in enumerate(questions)]
    datasets.Dataset.from_list(rows).to_parquet(folder / "train-00000-of-00001.parquet")
    return tmp_path / "data"


@pytest.mark.slow
def test_score_and_replies_are_those_of_lm_evals_own_command(data_root: Path, grader: Any, tmp_path: Path) -> None:
    greedy = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "presence_penalty": 0.0, "max_response_tokens": 48}
    config = EvalConfig(suite="llm10", columns=["aime26"], data_root=str(data_root), **greedy)
    model = ModelConfig(name="tiny_s", path="tiny:s", dtype="float32")
    chat = Chat(load_tokenizer(model), model)
    engine = TransformersEngine(LanguageModel.for_chat(load_model(model, "cpu"), chat), chat, "student", 64)
    (ours,) = evaluate(config, engine, grader, out_dir=tmp_path / "ours", model_name="tiny_s", identity="tiny_s")
    replies = [json.loads(line)["response"] for line in (tmp_path / "ours" / "rows.jsonl").read_text().splitlines()]

    task = {
        "task": "own_additions",
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"train": str(next(data_root.rglob("*.parquet")))}},
        "test_split": "train",
        "output_type": "generate_until",
        "doc_to_text": "{{problem}}\n\n" + CLOSING,
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 48},
        "filter_list": [
            {
                "name": "boxed",
                "filter": [
                    {"function": "regex", "regex_pattern": r"\\boxed\{([^{}]*)\}", "group_select": -1},
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text(yaml.safe_dump(task))
    command = [
        sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", "own_additions", "--include_path",
        str(tmp_path / "tasks"), "--model_args", f"pretrained={tiny_path('s')},dtype=float32", "--device", "cpu",
        "--apply_chat_template", "--output_path", str(tmp_path / "theirs"), "--log_samples", "--batch_size", "24",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    samples = [
        json.loads(line) for line in next((tmp_path / "theirs").rglob("samples_*.jsonl")).read_text().splitlines()
    ]
    results = json.loads(next((tmp_path / "theirs").rglob("results_*.json")).read_text())["results"]["own_additions"]
    by_id = {sample["doc_id"]: sample["resps"][0][0] for sample in samples}
    assert [by_id[i] for i in range(NUM)] == replies
    assert round(100 * results["exact_match,boxed"], 4) == ours["score"]
    assert 20.0 < ours["score"] < 95.0, "a student that knows nothing or everything shows nothing here"
