"""Small random models of many architectures: what each needs in its configuration beyond the common dimensions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast

from tests.support.folders import CHATML, MARKS, save, text_model, tokenizer

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
DELTA = {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 1,
         "linear_num_value_heads": 2}  # fmt: skip
HYBRID = {"layer_types": ["linear_attention", "full_attention"], **DELTA}
LATENT = {"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8,
          "qk_nope_head_dim": 8, "v_head_dim": 16}  # fmt: skip
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 32}
STATE = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
HEAD = {"head_dim": 16}
WINDOW = {"sliding_window": 8}
TIED = {"tie_word_embeddings": True}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}

TEXT: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": HEAD,
    "qwen3_moe": HEAD | EXPERTS,
    "qwen3_5_text": HEAD | HYBRID,
    "qwen3_5_moe_text": HEAD | HYBRID | EXPERTS | {"shared_expert_intermediate_size": 32},
    "qwen3_next": HEAD | DELTA | EXPERTS | {"shared_expert_intermediate_size": 32, "num_hidden_layers": 4},
    "mistral": WINDOW,
    "ministral": WINDOW | HEAD,
    "mixtral": LOCAL,
    "gemma": HEAD | TIED,
    "gemma2": HEAD | WINDOW | TIED | {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0},
    "gemma3_text": HEAD | WINDOW | TIED | {"num_hidden_layers": 6},
    "gemma3n_text": HEAD | WINDOW | TIED | {
        "num_hidden_layers": 4, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, "laurel_rank": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "activation_sparsity_pattern": [0.0] * 4,
        "intermediate_size": [64] * 4, "vocab_size_per_layer_input": 263,
    },
    "gemma4_text": HEAD | WINDOW | TIED | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 263},
    "phi": {},
    "phi3": {"rope_scaling": None},
    "gpt2": GPT,
    "gpt_neox": {},
    "gptj": GPT | {"rotary_dim": 8},
    "gpt_bigcode": GPT,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 16},
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512},
    "olmo2": {},
    "olmo3": WINDOW,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "olmo_hybrid": HYBRID,
    "granite": {"logits_scaling": 8.0, "residual_multiplier": 0.22, "embedding_multiplier": 12.0},
    "granitemoehybrid": LOCAL | STATE | {
        "logits_scaling": 6.0, "shared_intermediate_size": 32, "layer_types": ["mamba", "attention"],
        "mamba_expand": 2,
    },
    "cohere": TIED | {"logit_scale": 0.25},
    "cohere2": TIED | WINDOW | {"logit_scale": 0.25, "num_hidden_layers": 4},
    "deepseek_v2": LATENT | ROUTED | {"first_k_dense_replace": 1},
    "deepseek_v3": LATENT | ROUTED | {"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1},
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "expand": 2},
    "falcon_mamba": {"state_size": 8},
    "falcon_h1": STATE | {"lm_head_multiplier": 0.5, "mamba_d_ssm": 64},
    "bamba": STATE | {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
              "num_experts": 4, "mamba_d_state": 8, "use_mamba_kernels": False},
    "zamba2": {"mamba_headdim": 16, "n_mamba_heads": 4, "mamba_d_state": 8, "mamba_ngroups": 1, "num_mem_blocks": 1,
               "layers_block_type": ["mamba", "hybrid"], "use_mamba_kernels": False},
    "lfm2": {"full_attn_idxs": [1], "block_multiple_of": 8},
    "recurrent_gemma": TIED | {"num_hidden_layers": 3, "attention_window_size": 64, "logits_soft_cap": 3.0,
                               "lru_width": 32},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {"sliding_window": None},
    "gpt_oss": HEAD | WINDOW | LOCAL,
    "llama4_text": HEAD | {"intermediate_size_mlp": 64, "num_local_experts": 4, "num_experts_per_tok": 1,
                           "attention_chunk_size": 32},
    "glm": HEAD,
    "glm4": HEAD,
    "glm4_moe": HEAD | ROUTED | {"n_group": 1, "topk_group": 1},
    "nemotron": {},
    "nemotron_h": {"hybrid_override_pattern": "M*-", "num_hidden_layers": 3, "mamba_num_heads": 4,
                   "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1},
    "exaone4": {},
    "hunyuan_v1_dense": HEAD,
    "seed_oss": HEAD,
    "ernie4_5": {},
    "minimax": HEAD | LOCAL,
    "minicpm3": LATENT,
    "hyperclovax": {"logits_scaling": 0.25},
    "helium": HEAD,
    "apertus": {},
    "arcee": {},
    "bitnet": {},
    "persimmon": {},
    "rwkv": {"context_length": 512},
    "xglm": {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4},
    "modernbert-decoder": {"local_attention": 32, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1},
    "nanochat": {},
    "xlstm": {"num_blocks": 2, "num_heads": 4},
    "vaultgemma": HEAD | WINDOW | TIED | {"final_logit_softcapping": 3.0},
}  # fmt: skip


def text_family(kind: str) -> PreTrainedModel:
    """A model of `TEXT` for the tokenizer of `tests.support.folders`, with noise in norms and biases."""
    model = text_model(kind, **TEXT[kind]).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1 and ("norm" in name.lower() or "bias" in name) and "dt_" not in name:
                weight.add_(torch.randn_like(weight) * 0.05)
    return model


DECODER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
           "num_key_value_heads": 1, "max_position_embeddings": 4096}  # fmt: skip
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "image_size": 32, "patch_size": 8}  # fmt: skip
PLAIN = CHATML.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
PLAIN = PLAIN.replace("<|vision_start|><|video_pad|><|vision_end|>", "<video>")


def _decoder(made: PreTrainedTokenizerFast, **options: Any) -> dict[str, Any]:
    ids = {"pad_token_id": made.pad_token_id, "eos_token_id": made.eos_token_id, "bos_token_id": made.bos_token_id}
    return DECODER | {"vocab_size": len(made)} | ids | options


def _plain(*names: str, template: str = PLAIN, **more: str) -> PreTrainedTokenizerFast:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *names)
    named = {"image_token": "<image>"} | ({"video_token": "<video>"} if "<video>" in names else {}) | more
    return tokenizer(template, special, extra_special_tokens=named)


def _qwen(kind: str, processor: str, images: dict, videos: Any, text: dict, vision: dict) -> tuple[Any, Any]:
    names = dict(zip(("image_token", "video_token", "vision_start_token", "vision_end_token"), MARKS[3:], strict=True))
    made = tokenizer(extra_special_tokens=names)
    ids = {f"{name}_id": made.convert_tokens_to_ids(token) for name, token in names.items()}
    sizes = {"shortest_edge": 1024, "longest_edge": 65536}
    packer = getattr(transformers, processor)(
        image_processor=transformers.Qwen2VLImageProcessor(size=sizes, merge_size=2, **images),
        tokenizer=made,
        video_processor=videos(size=sizes | {"longest_edge": 65536 * 8}, merge_size=2, **images),
        chat_template=made.chat_template,
    )
    config = getattr(transformers, kind)(text_config=_decoder(made, **text), vision_config=vision, **ids)
    return config, packer


def _qwen2(kind: str, vision: dict) -> tuple[Any, Any]:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
    videos = transformers.Qwen2VLVideoProcessor
    common = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2}
    size = {"patch_size": 14}
    return _qwen(f"{kind}Config", f"{kind}Processor", size, videos, {"rope_parameters": rope}, common | vision)


def _qwen3(kind: str, text: dict, vision: dict) -> tuple[Any, Any]:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [8, 4, 4], "mrope_interleaved": True}
    images = {"patch_size": 16, "temporal_patch_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    common = {"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 1, "patch_size": 16,
              "spatial_merge_size": 2, "out_hidden_size": 32, "num_position_embeddings": 64}  # fmt: skip
    videos = transformers.Qwen3VLVideoProcessor
    text = {"head_dim": 32, "rope_parameters": rope} | text
    return _qwen(f"{kind}Config", "Qwen3VLProcessor", images, videos, text, common | vision)


def qwen2_vl() -> tuple[Any, Any]:
    return _qwen2("Qwen2VL", {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2})


def qwen2_5_vl() -> tuple[Any, Any]:
    window = {"window_size": 56, "fullatt_block_indexes": [1]}
    return _qwen2("Qwen2_5_VL", {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32, **window})


def qwen3_vl() -> tuple[Any, Any]:
    return _qwen3("Qwen3VL", {}, {"deepstack_visual_indexes": [0, 1, 2]})


def qwen3_vl_moe() -> tuple[Any, Any]:
    return _qwen3("Qwen3VLMoe", EXPERTS, {"deepstack_visual_indexes": [0, 1]})


def qwen3_5() -> tuple[Any, Any]:
    return _qwen3("Qwen3_5", HYBRID, {})


def qwen3_5_moe() -> tuple[Any, Any]:
    return _qwen3("Qwen3_5Moe", HYBRID | EXPERTS | {"shared_expert_intermediate_size": 32}, {})


def llava() -> tuple[Any, Any]:
    made = _plain("<image>")
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    packer = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(**size), tokenizer=made, patch_size=8,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=made.chat_template,
    )  # fmt: skip
    return transformers.LlavaConfig(
        text_config=_decoder(made, model_type="llama"), vision_config=TOWER | {"model_type": "clip_vision_model"},
        image_token_id=made.convert_tokens_to_ids("<image>"),
    ), packer  # fmt: skip


def llava_onevision() -> tuple[Any, Any]:
    made = _plain("<image>", "<video>")
    places = [[32, 32], [32, 64], [64, 32], [64, 64]]
    size = {"height": 32, "width": 32}
    packer = transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=places),
        tokenizer=made, video_processor=transformers.LlavaOnevisionVideoProcessor(size=size), num_image_tokens=16,
        vision_feature_select_strategy="full", chat_template=made.chat_template,
    )  # fmt: skip
    tower = TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False}
    image, video = made.convert_tokens_to_ids(["<image>", "<video>"])
    return transformers.LlavaOnevisionConfig(
        text_config=_decoder(made, model_type="qwen2"), vision_config=tower, image_token_id=image,
        video_token_id=video, image_grid_pinpoints=places,
    ), packer  # fmt: skip


def internvl() -> tuple[Any, Any]:
    template = PLAIN.replace("<image>", "<IMG_CONTEXT>\n").replace("<video>", "<video>\n")
    marks = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    made = tokenizer(
        template, ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks.values(), "<video>"),
        extra_special_tokens=marks | {"video_token": "<video>"},
    )  # fmt: skip
    size = {"height": 32, "width": 32}
    packer = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=size, crop_to_patches=False), tokenizer=made,
        video_processor=transformers.InternVLVideoProcessor(size=size), image_seq_length=4,
        chat_template=made.chat_template,
    )  # fmt: skip
    tower = TOWER | {"image_size": [32, 32], "patch_size": [8, 8]}
    return transformers.InternVLConfig(
        text_config=_decoder(made, model_type="qwen2"), vision_config=tower, image_seq_length=4,
        image_token_id=made.convert_tokens_to_ids("<IMG_CONTEXT>"),
    ), packer  # fmt: skip


def idefics3() -> tuple[Any, Any]:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    marks = {"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>",
             "end_of_utterance_token": "<end_of_utterance>"}  # fmt: skip
    made = _plain("<image>", *marks.values(), *tiles, **marks)
    size = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    packer = transformers.Idefics3Processor(
        image_processor=transformers.Idefics3ImageProcessor(**size), tokenizer=made, image_seq_len=4,
        chat_template=made.chat_template,
    )  # fmt: skip
    return transformers.Idefics3Config(
        text_config=_decoder(made, model_type="llama"), vision_config=TOWER, scale_factor=2,
        image_token_id=made.convert_tokens_to_ids("<image>"), pad_token_id=made.pad_token_id,
    ), packer  # fmt: skip


def gemma3() -> tuple[Any, Any]:
    marks = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    special = ("<pad>", "<start_of_turn>", "<end_of_turn>", "<bos>", *marks.values())
    template = PLAIN.replace("<image>", "<start_of_image>").replace("<|im_start|>", "<start_of_turn>")
    template = "{{ bos_token }}" + template.replace("<|im_end|>", "<end_of_turn>")
    made = tokenizer(template, special, bos_token="<bos>", extra_special_tokens=marks)
    packer = transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(size={"height": 32, "width": 32}), tokenizer=made,
        image_seq_length=4, chat_template=made.chat_template,
    )  # fmt: skip
    begin, end, soft = made.convert_tokens_to_ids(list(marks.values()))
    return transformers.Gemma3Config(
        text_config=_decoder(made, head_dim=16, sliding_window=16, num_hidden_layers=6),
        vision_config=TOWER | {"vision_use_head": False}, mm_tokens_per_image=4, boi_token_index=begin,
        eoi_token_index=end, image_token_index=soft,
    ), packer  # fmt: skip


VISION = {made.__name__: made for made in (
    qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe, qwen3_5, qwen3_5_moe, llava, llava_onevision, internvl, idefics3,
    gemma3,
)}  # fmt: skip
CLIPS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "llava_onevision", "internvl")
"""Families that read clips."""


def vision_family(name: str, folder: Path) -> Path:
    """A folder of a vision-language model with its processor."""
    config, packer = VISION[name]()
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for parameter, weight in model.named_parameters():
            if weight.ndim >= 2:
                weight.copy_(torch.randn_like(weight) * (0.3 if "embed" in parameter else 0.15))
    return save(folder, model, packer)
