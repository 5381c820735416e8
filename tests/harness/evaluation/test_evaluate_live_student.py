"""The mini suite on the embedded student, through the engine that trains it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.schema import EvalConfig, ModelConfig
from harness.evaluation.evaluate import evaluate
from harness.evaluation.protocol import eval_sampling
from harness.evaluation.suites import load_suite
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.loading import load_model, load_tokenizer
from harness.rollout.transformers_engine import TransformersEngine
from harness.types import Prompt
from methods.prompts import plain_messages


@pytest.fixture(scope="module")
def student() -> LanguageModel:
    config = ModelConfig(name="tiny_s", path="tiny:s", dtype="float32")
    chat = Chat(load_tokenizer(config), config)
    return LanguageModel.for_chat(load_model(config, "cpu"), chat)


@pytest.fixture(scope="module")
def engine(student: LanguageModel) -> TransformersEngine:
    config = ModelConfig(name="tiny_s", path="tiny:s", dtype="float32")
    return TransformersEngine(student, Chat(load_tokenizer(config), config), "student", 64)


@pytest.fixture
def config(two_levels: EvalConfig) -> EvalConfig:
    """Decodes as conf/eval/mini.yaml."""
    return replace(two_levels, num_questions=16, top_p=1.0, top_k=0, presence_penalty=0.0)


def test_scores_are_those_of_what_the_engine_samples(
    config: EvalConfig, engine: TransformersEngine, grader: Any, tmp_path: Path
) -> None:
    scores = evaluate(config, engine, grader, out_dir=tmp_path, model_name="tiny_s", identity="tiny_s")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    prompts = [
        Prompt(uid=uid, question=question, messages=plain_messages(question))
        for benchmark in load_suite(config).benchmarks
        for uid, question in benchmark.uids().items()
    ]
    rollouts = [group.rollouts[0] for group in engine.generate(prompts, eval_sampling(config))]
    assert [row["response"] for row in rows] == [rollout.text for rollout in rollouts]
    assert [row["num_tokens"] for row in rows] == [len(rollout.completion_ids) for rollout in rollouts]
    right = [float(f"\\boxed{{{row['gold']}}}" in row["response"]) for row in rows]
    assert [row["score"] for row in rows] == right
    assert [s["score"] for s in scores] == [100 * sum(right[:16]) / 16, 100 * sum(right[16:]) / 16]
    assert 0 < sum(right) < 32, "a student that knows nothing or everything shows nothing here"


def test_same_model_same_scores_and_other_weights_other_scores(
    config: EvalConfig, student: LanguageModel, engine: TransformersEngine, grader: Any, tmp_path: Path
) -> None:
    def rows(name: str) -> str:
        evaluate(config, engine, grader, out_dir=tmp_path / name, model_name="tiny_s", identity=name)
        return (tmp_path / name / "rows.jsonl").read_text()

    student.module.train()
    before = {name: tensor.clone() for name, tensor in student.module.state_dict().items()}
    first = rows("first")
    assert rows("second") == first
    assert student.module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.module.state_dict().items())

    weight = student.module.get_output_embeddings().weight
    engine.load_weights([("lm_head.weight", weight.detach() * -1)])
    try:
        assert rows("changed") != first
    finally:
        student.module.load_state_dict(before)
