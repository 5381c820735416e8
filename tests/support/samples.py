"""A small random Qwen3.5-class student (the shipped tiny shapes), samples for it, and a step of distillation."""

from typing import Any

import pytest
import torch

from harness.config.schema import ModelConfig, UpdateConfig
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.loading import load_model, load_tokenizer
from harness.teacher.base import TeacherScorer
from harness.training.update import Updater
from harness.types import TrainingSample
from methods import registry


@pytest.fixture
def chat():
    config = ModelConfig(name="tiny_xs", path="tiny:xs", dtype="float32")
    return Chat(load_tokenizer(config), config)


@pytest.fixture
def make_student(chat):
    """A fresh copy of the smallest tiny model at each call."""

    def make(size: str = "xs") -> LanguageModel:
        config = ModelConfig(name=size, path=f"tiny:{size}", dtype="float32")
        return LanguageModel.for_chat(load_model(config, "cpu"), chat)

    return make


@pytest.fixture
def make_samples():
    """Samples of different lengths with random ids, advantages and old log-probabilities near the model's."""

    def make(num_samples: int, seed: int = 0) -> list[TrainingSample]:
        rng = torch.Generator().manual_seed(seed)
        samples = []
        for i in range(num_samples):
            num_prompt = 2 + int(torch.randint(5, (1,), generator=rng))
            num_completion = 1 + int(torch.randint(9, (1,), generator=rng))
            length = num_prompt + num_completion
            ids = torch.randint(30, 90, (length,), generator=rng).tolist()
            mask = [0] * num_prompt + [1] * num_completion
            advantage = float(torch.randn(1, generator=rng))
            samples.append(
                TrainingSample(
                    uid=f"q{i // 2}/plain",
                    token_ids=ids,
                    loss_mask=mask,
                    advantages=[advantage * m for m in mask],
                    rollout_logprobs=[-4.0 * m for m in mask],
                )
            )
        return samples

    return make


def distilled(student: LanguageModel, scorer: TeacherScorer, samples: list[TrainingSample], temperature: float) -> Any:
    """(loss and gradient norm, the weights after it) of one step of on-policy distillation."""
    method = registry.build({"name": "on_policy_kd", "class": "on_policy_kd"})
    assert method is not None
    config = UpdateConfig(learning_rate=1e-3, micro_batch_tokens=100, logit_memory_mb=0.01)
    row = Updater(student=student, teacher=scorer, method=method, config=config, temperature=temperature).update(
        samples
    )
    return row, [p.detach().clone() for p in student.module.parameters()]
