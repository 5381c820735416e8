from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5TextConfig,
)

from harness.models.forward import BANNED_LOGIT, LanguageModel, gather_logprobs

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.12,
}
QWEN = SMALL | {
    "head_dim": 32,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 1.0,
        "mrope_section": [8, 4, 4],
        "mrope_interleaved": True,
    },
}
FULL, LINEAR = "full_attention", "linear_attention"


def make(name: str, **changes):
    torch.manual_seed(0)
    if name == "qwen_vl":
        text = Qwen3_5TextConfig(**QWEN, layer_types=[FULL, FULL], **changes).to_dict()
        vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 1, "out_hidden_size": 32}
        return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision)).eval()
    if name == "qwen_hybrid":
        return Qwen3_5ForCausalLM(Qwen3_5TextConfig(**QWEN, layer_types=[LINEAR, FULL], **changes)).eval()
    config, model = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "gemma2": (Gemma2Config, Gemma2ForCausalLM),
        "cohere": (CohereConfig, CohereForCausalLM),
        "granite": (GraniteConfig, GraniteForCausalLM),
    }[name]
    return model(config(**SMALL, **changes)).eval()


@pytest.fixture(params=["llama", pytest.param("qwen_vl", marks=pytest.mark.slow), "qwen_hybrid"])
def model(request) -> LanguageModel:
    return LanguageModel(make(request.param))


@pytest.fixture
def sequences() -> list[list[int]]:
    return [[5, 9, 7], [8, 3, 30, 12, 6, 21, 9], [11]]


@torch.no_grad()
def alone(model: LanguageModel, ids: list[int]) -> torch.Tensor:
    ids_BT = torch.tensor([ids])
    return model.hidden(ids_BT, torch.ones_like(ids_BT))[0]


def padded(sequences, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    def pad(values):
        gap = [0] * (max(map(len, sequences)) - len(values))
        return gap + values if left else values + gap

    mask = [pad([1] * len(ids)) for ids in sequences]
    return torch.tensor([pad(ids) for ids in sequences]), torch.tensor(mask)


@pytest.mark.parametrize("left", [True, False])
def test_padding_on_either_side_changes_nothing(model, sequences, left):
    ids_BT, mask_BT = padded(sequences, left=left)
    with torch.no_grad():
        hidden_BTH = model.hidden(ids_BT, mask_BT)
    for row, ids in enumerate(sequences):
        torch.testing.assert_close(hidden_BTH[row][mask_BT[row] == 1], alone(model, ids), rtol=1e-5, atol=1e-5)


def test_continuing_a_cache_equals_one_pass(model, sequences):
    continued = [[*ids, 13, 14, 15] for ids in sequences]
    ids_BT, mask_BT = padded(sequences, left=True)
    cache = DynamicCache(config=model.module.config)
    with torch.no_grad():
        model.hidden(ids_BT, mask_BT, cache=cache)
        for token in (13, 14, 15):
            mask_BT = torch.cat([mask_BT, torch.ones(3, 1, dtype=torch.int64)], 1)
            hidden_BTH = model.hidden(torch.full((3, 1), token), mask_BT, cache=cache)
    for row, ids in enumerate(continued):
        torch.testing.assert_close(hidden_BTH[row, 0], alone(model, ids)[-1], rtol=1e-5, atol=1e-5)


def test_positions_count_tokens_not_padding(model):
    seen = []
    handle = model.module.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"].tolist()), with_kwargs=True
    )
    ids_BT, cache = torch.full((2, 4), 5), DynamicCache(config=model.module.config)
    with torch.no_grad():
        model.hidden(ids_BT, torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]))
        model.hidden(ids_BT, torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]), cache=cache)
        model.hidden(ids_BT[:, :1], torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]), cache=cache)
    handle.remove()
    assert seen == [[[0, 1, 1, 1], [0, 1, 2, 3]], [[0, 0, 0, 1], [0, 1, 2, 3]], [[2], [4]]]


def test_stale_rope_offsets_of_a_multimodal_call_are_not_used(sequences):
    model = LanguageModel(make("qwen_vl"))
    ids_BT, mask_BT = padded(sequences, left=True)
    results = []
    for offsets in (None, torch.full((1, 1), 7)):
        model.module.model.rope_deltas = offsets
        cache = DynamicCache(config=model.module.config)
        with torch.no_grad():
            model.hidden(ids_BT, mask_BT, cache=cache)
            mask_BU = torch.cat([mask_BT, torch.ones(3, 1, dtype=torch.int64)], 1)
            results.append(model.hidden(ids_BT[:, -1:], mask_BU, cache=cache))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"tie_word_embeddings": False}),
        ("llama", {"tie_word_embeddings": True}),
        ("qwen_vl", {}),
        ("qwen_hybrid", {}),
        ("gemma2", {"final_logit_softcapping": 0.5, "head_dim": 16}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 8.0}),
    ],
)
def test_logits_are_the_models_own(name, changes):
    module = make(name, **changes)
    ids_BT = torch.tensor([[5, 9, 7, 30]])
    mask_BT = torch.ones_like(ids_BT)
    model = LanguageModel(module)
    with torch.no_grad():
        expected = module(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits[0]
        logits_NV = model.logits(model.hidden(ids_BT, mask_BT)[0])
    assert logits_NV.shape == (4, 40) and expected.std() > 1e-3
    torch.testing.assert_close(logits_NV, expected, rtol=1e-5, atol=1e-6)


def test_banned_ids_have_probability_zero_and_padded_rows_do_not_exist():
    module = make("llama")
    model = LanguageModel(module, [3, 0, 39], num_tokens=37)
    hidden_NH = torch.randn(2, 32)
    logits_NV = model.logits(hidden_NH)
    assert logits_NV.shape == (2, 37) and model.banned_ids == [0, 3]
    assert logits_NV[:, [0, 3]].eq(BANNED_LOGIT).all() and math.isfinite(BANNED_LOGIT)
    assert logits_NV.softmax(-1)[:, [0, 3]].eq(0).all()
    others = [i for i in range(37) if i not in (0, 3)]
    torch.testing.assert_close(logits_NV[:, others], LanguageModel(module).logits(hidden_NH)[:, others])


def test_16_bit_weights_give_fp32_sums():
    module = make("llama", tie_word_embeddings=False).bfloat16()
    hidden_NH = torch.randn(5, 32).bfloat16()
    exact = hidden_NH.double() @ module.lm_head.weight.double().T
    logits_NV = LanguageModel(module).logits(hidden_NH)
    assert logits_NV.dtype == torch.float32
    torch.testing.assert_close(logits_NV.double(), exact, rtol=1e-5, atol=1e-5)
    assert (module.lm_head(hidden_NH).double() - exact).abs().max() > 1e-3
    assert module.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["llama", "qwen_vl", "qwen_hybrid"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_reaches_every_text_weight(name, checkpointing, sequences):
    module = make(name, tie_word_embeddings=False)
    module.train()
    if checkpointing:
        module.gradient_checkpointing_enable()
    model = LanguageModel(module, [0])
    ids_BT, mask_BT = padded(sequences, left=False)
    logits_NV = model.logits(model.hidden(ids_BT, mask_BT)[mask_BT == 1])
    gather_logprobs(logits_NV, torch.arange(1, 12)).sum().backward()
    text = {n: p for n, p in module.named_parameters() if "visual" not in n}
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in text.values())
    assert not module.get_output_embeddings().weight.grad[0].any()


def test_gather_logprobs_by_hand():
    # softmax of log(1), log(2), log(5) is 1/8, 2/8, 5/8.
    logits_NV = torch.tensor([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]).log() + 3
    expected = [math.log(2 / 8), math.log(5 / 8)]
    assert gather_logprobs(logits_NV, torch.tensor([1, 2])).tolist() == pytest.approx(expected)
    assert gather_logprobs(logits_NV.bfloat16(), torch.tensor([1, 2])).dtype == torch.float32
    banned = torch.tensor([[0.0, BANNED_LOGIT]])
    assert gather_logprobs(banned, torch.tensor([0])).tolist() == [0.0]
