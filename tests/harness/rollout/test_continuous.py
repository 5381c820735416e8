"""The fast path against the model's own forward pass: the tiny models of the fixtures stand for large ones."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama import modeling_llama

from harness.models.forward import LanguageModel
from harness.rollout.base import Sampling
from harness.rollout.continuous import decoder_gap
from harness.rollout.decoding import is_dense
from harness.rollout.transformers_engine import FAST_WEIGHTS, MOST_GAP, TransformersEngine

B, A = 5, 4


@pytest.fixture(scope="module")
def qwen3(chat) -> LanguageModel:
    """Norms of queries and keys, biases, three query heads of a key, fewer ids than rows."""
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=48, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=256, initializer_range=0.2, attention_bias=True,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return LanguageModel.for_chat(model, chat)


def sampled(model, chat, prompts, sampling, *, fast: bool, max_sequences=64):
    engine = TransformersEngine(model, chat, "student", max_sequences, fast_from=0 if fast else math.inf)
    groups = list(engine.generate(prompts, sampling))
    assert (engine._gap is not None) == fast
    return groups


def replies(groups):
    return [(g.uid, r.index, r.completion_ids, r.finish_reason, r.num_prefix) for g in groups for r in g.rollouts]


SAMPLINGS = {
    "plain": Sampling(num_rollouts=3, max_new_tokens=20),
    "hot": Sampling(num_rollouts=5, max_new_tokens=40, temperature=1.7),
    "greedy": Sampling(num_rollouts=2, max_new_tokens=40, temperature=0.0),
    "cut": Sampling(num_rollouts=5, max_new_tokens=40, temperature=0.8, top_p=0.9, top_k=20, min_p=0.01),
    "penalties": Sampling(num_rollouts=3, max_new_tokens=20, presence_penalty=0.5, repetition_penalty=1.2),
    "one": Sampling(num_rollouts=1, max_new_tokens=40),
}


@pytest.mark.parametrize(
    "name", ["plain", *(pytest.param(n, marks=pytest.mark.slow) for n in SAMPLINGS if n != "plain")]
)
@pytest.mark.parametrize("max_sequences", [7, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 5, 64))])
def test_fast_path_samples_what_the_reference_samples(qwen3, chat, prompts, prompt_of, name, max_sequences):
    """Same tokens, log-probabilities within rounding: with prefixes, groups cut in parts, and places taken again."""
    prompts = [*prompts, prompt_of("q", (B, A, 20)), prompt_of("2:3", (A,))]
    expected, found = (
        sampled(qwen3, chat, prompts, SAMPLINGS[name], fast=fast, max_sequences=max_sequences) for fast in (False, True)
    )
    assert replies(found) == replies(expected)
    for group, reference in zip(found, expected, strict=True):
        for rollout, other in zip(group.rollouts, reference.rollouts, strict=True):
            assert rollout.rollout_logprobs == pytest.approx(other.rollout_logprobs, abs=1e-4)
    if name == "plain":
        assert len({len(ids) for _, _, ids, _, _ in replies(found)}) > 3


def test_gap_is_rounding_for_equal_models_and_seen_for_others(qwen3, llama, monkeypatch):
    assert 0 < decoder_gap(qwen3) < MOST_GAP / 3 and 0 < decoder_gap(llama) < MOST_GAP / 3
    qwen3.module.model.layers[1].self_attn.scaling *= 1.001  # both paths read it: still equal
    assert decoder_gap(qwen3) < MOST_GAP / 3
    qwen3.module.model.layers[1].self_attn.scaling /= 1.001
    forward = modeling_llama.LlamaMLP.forward
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", lambda self, x: 1.01 * forward(self, x))
    assert decoder_gap(llama) > 10 * MOST_GAP


def test_model_that_differs_samples_by_its_own_forward_pass_and_says_so_once(llama, chat, prompts, monkeypatch, caplog):
    forward = modeling_llama.LlamaMLP.forward
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", lambda self, x: 1.5 * forward(self, x))
    sampling = Sampling(num_rollouts=2, max_new_tokens=6)
    expected = replies(sampled(llama, chat, prompts, sampling, fast=False))
    engine = TransformersEngine(llama, chat, "student", 64, fast_from=0)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert replies(engine.generate(prompts, sampling)) == expected
    (record,) = caplog.records
    assert f"differs by {decoder_gap(llama):.2g} nats" in record.getMessage()
    assert record.getMessage().startswith("student samples by the model's own forward pass")


def test_new_weights_are_sampled_with_at_once(llama, chat, prompts):
    engine = TransformersEngine(llama, chat, "student", 64, fast_from=0)
    sampling = Sampling(num_rollouts=2, max_new_tokens=6)
    before = replies(engine.generate(prompts, sampling))
    with torch.no_grad():
        for parameter in llama.module.parameters():
            parameter.mul_(1.3)
    after = replies(engine.generate(prompts, sampling))
    assert after != before and after == replies(sampled(llama, chat, prompts, sampling, fast=False))


def test_replies_do_not_depend_on_the_batch_and_groups_come_in_order(qwen3, chat, prompts):
    sampling = Sampling(num_rollouts=2, max_new_tokens=12)
    prompts = prompts[:3]
    together = sampled(qwen3, chat, prompts, sampling, fast=True)
    assert [group.uid for group in together] == [prompt.uid for prompt in prompts]
    alone = [group for prompt in prompts for group in sampled(qwen3, chat, [prompt], sampling, fast=True)]
    assert replies(alone) == replies(together)


def test_closed_engine_stops_on_the_fast_path(qwen3, chat, prompts):
    engine = TransformersEngine(qwen3, chat, "student", 4, fast_from=0)
    groups = engine.generate(prompts, Sampling(num_rollouts=2, max_new_tokens=200))
    next(groups)
    engine.close()
    with pytest.raises(RuntimeError, match="closed while it sampled"):
        list(groups)


def test_which_models_are_dense(model, llama, chat):
    assert is_dense(model) == (model.module.config.model_type == "llama")
    assert sum(p.numel() for p in llama.module.parameters()) < FAST_WEIGHTS
    assert not TransformersEngine(llama, chat, "student", 4)._wants_fast
    assert not is_dense(LanguageModel(llama.module, compute_dtype=torch.bfloat16))
    layer = llama.module.model.layers[0].self_attn
    layer.q_proj = torch.nn.Sequential(layer.q_proj)  # what an adapter does
    assert not is_dense(llama)


@pytest.mark.slow
def test_smollm2_is_fast_and_samples_what_its_own_forward_pass_samples(prompt_of, smollm2: Path):
    """With the same draws most replies are the same tokens, so rewards have one distribution. The others part where a
    draw lies within rounding of the border of two tokens."""
    from harness.config.schema import ModelConfig
    from harness.models.chat import Chat
    from harness.models.loading import load_model, load_tokenizer

    config = ModelConfig(name="smollm2", path=str(smollm2), dtype="float32")
    chat = Chat(load_tokenizer(config), config)
    model = LanguageModel.for_chat(load_model(config, "cpu"), chat)
    assert decoder_gap(model) < MOST_GAP
    prompts = [prompt_of(f"What is {a} + {a + 5}?") for a in range(4)]
    sampling = Sampling(num_rollouts=4, max_new_tokens=24)
    default = TransformersEngine(model, chat, "student", 16)
    found = [r for group in default.generate(prompts, sampling) for r in group.rollouts]
    assert default._gap is not None
    expected = [r for group in sampled(model, chat, prompts, sampling, fast=False) for r in group.rollouts]
    same = [(a, b) for a, b in zip(found, expected, strict=True) if a.completion_ids == b.completion_ids]
    assert len(same) >= 12
    for a, b in same:
        assert a.rollout_logprobs == pytest.approx(b.rollout_logprobs, abs=1e-3)
