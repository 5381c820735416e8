"""A small random Qwen3.5-class student (the shipped tiny shapes) and samples for it."""

import pytest
import torch

from harness.config.schema import ModelConfig
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.loading import load_model, load_tokenizer
from harness.types import TrainingSample


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
