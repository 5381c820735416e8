"""Shapes of the tiny family: Qwen3.5 vision-language models, small but of the architecture that real runs use.

transformers and vLLM both load them: head size 32, `mrope_section` that sums to half the rotary dimensions, linear
attention (hybrid only) with heads of 64. All embeddings are tied. One tokenizer serves all, so their vocabulary is one.
Importing this module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3_5Config

HEAD_DIM = 32
LINEAR_HEAD_DIM = 64
PATCH = 8
"""Pixels; 2x2 patches merge, so a 16x16 image is one token."""
MERGE = 2
TEMPORAL = 2


@dataclass(frozen=True, kw_only=True)
class Shape:
    hidden: int
    layer_types: tuple[str, ...]
    heads: int
    kv_heads: int
    init: float
    """Standard deviation of the initial weights."""
    vision_hidden: int = 32


FULL, LINEAR = "full_attention", "linear_attention"

SHAPES = {
    "xs": Shape(hidden=48, layer_types=(FULL,) * 2, heads=1, kv_heads=1, init=0.1),
    "s": Shape(hidden=64, layer_types=(FULL,) * 2, heads=2, kv_heads=1, init=0.08),
    "m": Shape(hidden=96, layer_types=(FULL,) * 3, heads=3, kv_heads=1, init=0.06, vision_hidden=64),
    "teacher": Shape(hidden=128, layer_types=(FULL,) * 3, heads=4, kv_heads=2, init=0.05, vision_hidden=64),
    "hybrid": Shape(hidden=64, layer_types=(LINEAR, FULL) * 2, heads=2, kv_heads=1, init=0.08),
}
STUDENTS = ("xs", "s", "m")
SIZES = tuple(SHAPES)
"""`hybrid` has linear-attention layers as the real models do; it serves tests and takes part in no comparison."""


def make_config(size: str, tokenizer: PreTrainedTokenizerFast) -> Qwen3_5Config:
    """The configuration of one size for this vocabulary."""
    from transformers import Qwen3_5Config, Qwen3_5TextConfig, Qwen3_5VisionConfig

    shape = SHAPES[size]
    ids: dict[str, int] = {token: tokenizer.get_vocab()[token] for token in tokenizer.all_special_tokens}
    text = Qwen3_5TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=3 * shape.hidden,
        num_hidden_layers=len(shape.layer_types),
        layer_types=list(shape.layer_types),
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=HEAD_DIM,
        linear_key_head_dim=LINEAR_HEAD_DIM,
        linear_value_head_dim=LINEAR_HEAD_DIM,
        linear_num_key_heads=1,
        linear_num_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=shape.init,
        pad_token_id=ids["<pad>"],
        eos_token_id=ids["<|im_end|>"],
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 1.0,
            "mrope_section": [8, 4, 4],
            "mrope_interleaved": True,
        },
    )
    vision = Qwen3_5VisionConfig(
        depth=1,
        hidden_size=shape.vision_hidden,
        intermediate_size=2 * shape.vision_hidden,
        num_heads=shape.vision_hidden // HEAD_DIM,
        patch_size=PATCH,
        spatial_merge_size=MERGE,
        temporal_patch_size=TEMPORAL,
        out_hidden_size=shape.hidden,
        num_position_embeddings=64,
        initializer_range=shape.init,
    )
    return Qwen3_5Config(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
