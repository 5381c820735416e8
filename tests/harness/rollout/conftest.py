"""Small random models of each architecture, and a model whose replies are known by hand."""

from __future__ import annotations

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5TextConfig,
)

from harness.config.schema import ModelConfig
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.types import Prompt, Question

SPECIAL = ("<pad>", "<start>", "<end>", "<image>")
VOCAB = {piece: i for i, piece in enumerate((*SPECIAL, *"abcdefghijklmnopqrstuvwxyz0123456789:\n"))}
TEMPLATE = (
    "{% for m in messages %}<start>{{ m.role[0] }}:{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<start>a:{% endif %}"
)
PADDED_VOCAB = 48
"""Rows of the models; the tokenizer has 42 tokens."""


@pytest.fixture(scope="session")
def chat(tmp_path_factory) -> Chat:
    core = Tokenizer(models.WordLevel(vocab=VOCAB, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>", chat_template=TEMPLATE
    )
    return Chat(tokenizer, ModelConfig(name="toy", path=str(tmp_path_factory.mktemp("toy"))))


def qwen_text_config(layer_types: list[str]) -> Qwen3_5TextConfig:
    """With larger initial weights the chunked and the stepwise linear attention differ by more than 1e-5 in fp32."""
    return Qwen3_5TextConfig(
        vocab_size=PADDED_VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=len(layer_types),
        layer_types=layer_types,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        linear_num_key_heads=1,
        linear_num_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.12,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 1.0,
            "mrope_section": [8, 4, 4],
            "mrope_interleaved": True,
        },
    )


def make_model(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if name == "llama":
        return LlamaForCausalLM(llama_config()).eval()
    if name == "qwen_hybrid":
        return Qwen3_5ForCausalLM(qwen_text_config(["linear_attention", "full_attention"])).eval()
    text = qwen_text_config(["full_attention", "full_attention"]).to_dict()
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 1, "out_hidden_size": 32}
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision)).eval()


def llama_config(**changes) -> LlamaConfig:
    values = {
        "vocab_size": PADDED_VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**(values | changes))


@pytest.fixture(params=["llama", pytest.param("qwen_vl", marks=pytest.mark.slow), "qwen_hybrid"])
def model(request, chat) -> LanguageModel:
    return LanguageModel.for_chat(make_model(request.param), chat)


@pytest.fixture
def llama(chat) -> LanguageModel:
    return LanguageModel.for_chat(make_model("llama"), chat)


@pytest.fixture
def spelling(chat) -> LanguageModel:
    """A Llama that spells: after ':' comes 'a', then 'b', 'c', '<end>', surely at any usual temperature.

    Attention and MLP are zero, so the hidden state is the one-hot embedding of the last token times sqrt(64), and the
    head maps it to a logit of 8 * 10 for the next one.
    """
    model = LlamaForCausalLM(llama_config(hidden_size=64, max_position_embeddings=32)).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(PADDED_VOCAB, 64))
        model.lm_head.weight.zero_()
        for last, following in ((":", "a"), ("a", "b"), ("b", "c"), ("c", "<end>")):
            model.lm_head.weight[VOCAB[following], VOCAB[last]] = 10.0
    return LanguageModel.for_chat(model, chat)


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    """Four prompts of different lengths."""
    return [make_prompt(text) for text in ("2:3", "q", "longer:4567890", "abc")]


def make_prompt(text: str, prefix_ids: tuple[int, ...] = ()) -> Prompt:
    question = Question(id=text, text=text, answer="1")
    uid = f"{text}/{len(prefix_ids)}"
    return Prompt(uid=uid, question=question, messages=({"role": "user", "content": text},), prefix_ids=prefix_ids)


@pytest.fixture(scope="session")
def prompt_of():
    return make_prompt
