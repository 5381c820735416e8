"""Folders of small random models, as `save_pretrained` of transformers writes them, and ways to damage one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>",
         "<|vision_end|>")  # fmt: skip
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif p.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ p.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WEIGHTS = "model.safetensors"


def tokenizer(
    template: str | None = CHATML, special: Sequence[str] = MARKS, *, more: Sequence[str] = (), **options: Any
) -> PreTrainedTokenizerFast:
    """One id a byte after the special tokens, so that every text has ids; `more` are added last, as special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*special, *alphabet])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in (*special, *more)])
    chosen = {"pad_token": special[0], "eos_token": special[2]} | options
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=template, model_max_length=4096, **chosen)


SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.15, "tie_word_embeddings": False,
}  # fmt: skip


def text_model(kind: str = "llama", made: PreTrainedTokenizerFast | None = None, **options: Any) -> PreTrainedModel:
    """A random causal language model of an architecture, for a tokenizer."""
    made = made or tokenizer()
    ids = {"pad_token_id": made.pad_token_id, "eos_token_id": made.eos_token_id, "bos_token_id": made.bos_token_id}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SMALL | {"vocab_size": len(made)} | ids | options))


def save(folder: Path, model: PreTrainedModel, made: Any) -> Path:
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def damage(folder: Path, how: str) -> None:
    """Change the weights of a folder."""
    tensors = load_file(folder / WEIGHTS)
    if how == "no head":
        del tensors["lm_head.weight"]
    elif how == "one missing":
        del tensors["model.layers.1.mlp.up_proj.weight"]
    elif how == "prefixed":
        tensors = {f"base_model.{name}": tensor for name, tensor in tensors.items()}
    elif how == "one more":
        tensors["model.extra.weight"] = torch.ones(3)
    elif how == "shape":
        tensors["model.norm.weight"] = torch.ones(16)
    else:
        tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float(how)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def edit(file: Path, **changes: Any) -> None:
    """Change entries of a JSON file; None takes one out."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
