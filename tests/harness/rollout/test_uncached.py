from __future__ import annotations

import pytest

from harness.config.schema import ModelConfig
from harness.models.chat import Chat
from harness.models.loading import load_tokenizer
from harness.models.probe import open_model
from harness.rollout.base import Sampling
from harness.rollout.transformers_engine import TransformersEngine
from harness.types import Question
from methods.base import plain_prompt
from tests.support.folders import save, text_model, tokenizer


def test_without_a_cache_the_same_is_sampled(tmp_path):
    """Rows end at different times, so some are dropped on the way."""
    made = tokenizer()
    config = ModelConfig(name="toy", path=str(save(tmp_path, text_model(made=made), made)), dtype="float32")
    chat = Chat(load_tokenizer(config), config)
    chat.stop_ids |= set(range(7, 60))
    model = open_model(config, "cpu", chat)
    prompts = [plain_prompt(Question(id=text, text=text, answer="")) for text in ("Compute 2+2.", "Why?")]
    sampling = Sampling(num_rollouts=3, max_new_tokens=6, seed=1)

    def sampled() -> list:
        groups = TransformersEngine(model, chat, "student", 6).generate(prompts, sampling)
        return [rollout for group in groups for rollout in group.rollouts]

    cached = sampled()
    model.caches = False
    uncached = sampled()
    assert len({len(rollout.completion_ids) for rollout in cached}) > 1
    for a, b in zip(cached, uncached, strict=True):
        assert (a.completion_ids, a.finish_reason) == (b.completion_ids, b.finish_reason)
        assert a.rollout_logprobs == pytest.approx(b.rollout_logprobs, abs=1e-4)
