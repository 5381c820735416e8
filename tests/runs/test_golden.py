"""Per-step losses of every method on stored rollouts: a change of the numbers has to be meant.

The rollouts were sampled once and are read from tests/golden/rollouts.json; the student is a seeded random model, so
rebuilt weights of the tiny family change nothing here. `python -P tests/runs/test_golden.py` records both files anew.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from harness.config.schema import ModelConfig, UpdateConfig
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.loading import load_tokenizer
from harness.models.tiny import tiny_path
from harness.teacher.local import LocalScorer
from harness.training.dealing import deal, mini_batches
from harness.training.update import Updater
from harness.types import Prompt, Question, Rollout, RolloutGroup
from methods import registry

GOLDEN = Path(__file__).parents[1] / "golden"
METHODS = {
    "grpo": {"class": "grpo", "updates_per_step": 3},
    "grpo_none": {"class": "grpo", "updates_per_step": 3, "advantage_normalization": "none"},
    "zppo": {"class": "zppo", "updates_per_step": 3},
    "off_policy_kd": {"class": "off_policy_kd"},
    "on_policy_kd": {"class": "on_policy_kd"},
    "on_policy_kd_reverse": {"class": "on_policy_kd", "jsd_beta": 1.0},
    "sft": {"class": "sft"},
}


def model(seed: int) -> LanguageModel:
    torch.manual_seed(seed)
    config = ModelConfig(name="tiny_xs", path="tiny:xs", dtype="float32")
    shape = AutoConfig.from_pretrained(tiny_path("xs"))
    chat = Chat(load_tokenizer(config), config)
    return LanguageModel.for_chat(AutoModelForImageTextToText.from_config(shape, dtype=torch.float32).eval(), chat)


def stored_groups() -> list[RolloutGroup]:
    groups = []
    for row in json.loads((GOLDEN / "rollouts.json").read_text(encoding="utf-8")):
        question = Question(id=row["question_id"], text="", answer="")
        prompt = Prompt(uid=row["uid"], question=question, messages=(), kind=row["kind"])
        rollouts = [Rollout(**rollout) for rollout in row["rollouts"]]
        groups.append(RolloutGroup(uid=row["uid"], prompt=prompt, rollouts=rollouts))
    return groups


def losses(name: str, num_steps: int = 3) -> list[list[float]]:
    """Loss and gradient norm of every update; the same rollouts are trained `num_steps` times."""
    method = registry.build({"name": name, **METHODS[name]})
    assert method is not None
    updater = Updater(
        student=model(0),
        teacher=LocalScorer(model(1), 1.0) if method.needs_teacher == "distribution" else None,
        method=method,
        config=UpdateConfig(learning_rate=1e-3, old_logprobs="recompute"),
        temperature=1.0,
    )
    rows = []
    for step in range(num_steps):
        samples = method.credit(stored_groups())
        updater.fill_old_logprobs(samples)
        uids = list(dict.fromkeys(sample.uid for sample in samples))
        dealt = deal(uids, num_batches=method.config.updates_per_step, rng=np.random.default_rng([0, step]))
        for part in mini_batches(samples, dealt):
            row = updater.update(part)
            rows.append([row["loss"], row["grad_norm"]])
    return rows


@pytest.mark.clause("C066")
@pytest.mark.parametrize("name", METHODS)
def test_losses_are_the_recorded_ones(name):
    expected = json.loads((GOLDEN / "losses.json").read_text(encoding="utf-8"))[name]
    np.testing.assert_allclose(losses(name), expected, rtol=2e-3, atol=1e-6)


def record() -> None:
    """Sample one ZPPO step with the shipped tiny models, keep a few groups of each kind, and compute the losses."""
    import tempfile

    import pandas as pd

    from harness.config.compose import compose
    from harness.config.schema import from_hydra
    from harness.run.run import run

    config = ModelConfig(name="tiny_xs", path="tiny:xs", dtype="float32")
    chat = Chat(load_tokenizer(config), config)
    with tempfile.TemporaryDirectory() as outputs:
        overrides = ["steps=1", "eval=none", "method.group_size=4", "method.teacher_group_size=2", f"outputs={outputs}"]
        folder = run(from_hydra(compose(overrides)))
        frame = pd.read_parquet(folder / "rollouts" / "step-000001.parquet")
    kept: dict[str, int] = {}
    rows = []
    for uid, part in frame.groupby("uid", sort=False):
        kind, sampler = part.iloc[0]["kind"], part.iloc[0]["sampler"]
        kept[kind + sampler] = kept.get(kind + sampler, 0) + 1
        if kept[kind + sampler] > {"plainstudent": 6}.get(kind + sampler, 3):
            continue
        rollouts = [_rollout(chat, row) for row in part.to_dict("records")]
        rows.append({"uid": uid, "question_id": part.iloc[0]["question_id"], "kind": kind, "rollouts": rollouts})
    lines = ",\n".join(json.dumps(row) for row in rows)
    (GOLDEN / "rollouts.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    found = {name: losses(name) for name in METHODS}
    text = ",\n".join(f'"{name}": {json.dumps(rows)}' for name, rows in found.items())
    (GOLDEN / "losses.json").write_text("{\n" + text + "\n}\n", encoding="utf-8")


def _rollout(chat: Chat, row: dict) -> dict:
    completion = chat.encode_text(row["response_text"])
    rollout = Rollout(
        sampler=row["sampler"],
        index=row["index"],
        prompt_ids=chat.encode_text(row["prompt_text"]),
        completion_ids=[*completion, chat.end_id],
        rollout_logprobs=[0.0] * (len(completion) + 1),
        text=row["response_text"],
        finish_reason="stop",
        answer=row["answer"],
        reward=row["reward"],
        verdict=row["verdict"],
    )
    return dataclasses.asdict(rollout)


if __name__ == "__main__":
    record()
